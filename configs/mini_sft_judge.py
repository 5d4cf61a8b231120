"""How the embedded judge was made: from random weights, on requests and verdicts. `make mini-models` runs it."""

from ml_collections import ConfigDict

from perception_r1_jax.sft.config import sft_config


def get_config() -> ConfigDict:
    """A small text model, short rows."""
    config = sft_config()
    config.steps = 6000  # steps

    config.data.path = "geometry_world:judge"  # drawn as they are needed, no two alike

    config.model.path = "runs/mini_sft/judge_start"  # random weights, of the embedded judge's shapes
    config.model.dtype = "float32"  # a CPU is no quicker in less
    config.model.remat = "none"  # the activations are small

    config.sft.row_tokens = 512  # a few conversations
    config.sft.row_windows = 0  # no pictures
    config.sft.rows_per_step = 16  # rows
    config.sft.micro_batch_rows = 2  # rows whose activations stay in the cache
    config.sft.validate_every = 250  # steps
    config.sft.validate_conversations = 256  # of the val split
    config.sft.log_every = 50  # steps

    config.optimizer.warmup_fraction = 0.02  # of the steps
    config.optimizer.learning_rate = 1e-3  # high, as small models want it
    config.optimizer.b2 = 0.98  # a short memory: the gradients change quickly
    config.optimizer.weight_decay = 0.01  # of matrices
    config.checkpoint.every = 500  # steps
    return config
