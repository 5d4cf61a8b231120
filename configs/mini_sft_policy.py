"""How the embedded policy was made, third stage: from seeing to solving. `make mini-models` runs it."""

from ml_collections import ConfigDict

from perception_r1_jax.sft.config import sft_config


def get_config() -> ConfigDict:
    """A small model, short rows."""
    config = sft_config()
    config.steps = 2600  # some 70 conversations each

    config.data.path = "geometry_world:policy"  # drawn as they are needed, no two alike

    config.model.path = "runs/mini_sft/binding"  # what configs/mini_sft_binding.py made
    config.model.dtype = "float32"  # a CPU is no quicker in less
    config.model.remat = "none"  # the activations are small

    config.sft.row_tokens = 256  # two or three conversations
    config.sft.row_windows = 3  # a picture is one window
    config.sft.rows_per_step = 24  # rows
    config.sft.micro_batch_rows = 2  # rows whose activations stay in the cache
    config.sft.validate_every = 250  # steps
    config.sft.validate_conversations = 256  # of the val split
    config.sft.log_every = 50  # steps

    config.optimizer.name = "muon"  # takes fewer steps than AdamW
    config.optimizer.warmup_fraction = 0.02  # of the steps
    config.optimizer.learning_rate = 2e-3  # high, as small models want it
    config.optimizer.b2 = 0.98  # a short memory: the gradients change quickly
    config.optimizer.weight_decay = 0.01  # of matrices
    config.checkpoint.every = 500  # steps
    return config
