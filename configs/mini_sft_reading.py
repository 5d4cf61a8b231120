"""How the embedded policy was made, first stage: from random weights to a model that reads letters and numbers.

A model that cannot see yet learns the language first, and the loss then stays where guessing leaves it for some hundred
steps. Short questions about pictures with few letters get over that more quickly than whole problems.
`make mini-models` runs it.
"""

from ml_collections import ConfigDict

from perception_r1_jax.sft.config import sft_config


def get_config() -> ConfigDict:
    """A small model, short rows."""
    config = sft_config()
    config.steps = 1500  # some 85 conversations each

    config.data.path = "geometry_world:reading"  # drawn as they are needed, no two alike

    config.model.path = "runs/mini_sft/policy_start"  # random weights, of the embedded policy's shapes
    config.model.dtype = "float32"  # a CPU is no quicker in less
    config.model.remat = "none"  # the activations are small

    config.sft.row_tokens = 256  # five or six conversations
    config.sft.row_windows = 6  # a picture is one window
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
