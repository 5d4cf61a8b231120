"""How the embedded policy was made, second stage: from reading to what each number belongs to.

Whole problems ask for this too, but thinly: a number in some twenty words. Asked for by itself, from left to right, it
is learned in a few hundred steps. `make mini-models` runs it.
"""

from ml_collections import ConfigDict

from configs import mini_sft_policy


def get_config() -> ConfigDict:
    """As the third stage, with shorter conversations."""
    config = mini_sft_policy.get_config()
    config.steps = 1500  # some 90 conversations each
    config.data.path = "geometry_world:binding"  # drawn as they are needed, no two alike
    config.model.path = "runs/mini_sft/reading"  # what configs/mini_sft_reading.py made
    config.sft.row_windows = 6  # a picture is one window, and five or six conversations make a row
    config.sft.rows_per_step = 16  # rows
    return config
