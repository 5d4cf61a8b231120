"""How the embedded judge was made, second stage: telling names apart. `make mini-models` runs it."""

from ml_collections import ConfigDict

from configs import mini_sft_judge_numbers


def get_config() -> ConfigDict:
    """As the stage before it, and longer: there are more letters than digits."""
    config = mini_sft_judge_numbers.get_config()
    config.steps = 1000  # some 40 conversations each
    config.data.path = "geometry_world:name"  # one sentence about this or something else
    config.model.path = "runs/mini_sft/judge_numbers"  # what configs/mini_sft_judge_numbers.py made
    return config
