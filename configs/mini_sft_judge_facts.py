"""How the embedded judge was made, third stage: telling facts apart. `make mini-models` runs it."""

from ml_collections import ConfigDict

from configs import mini_sft_judge_names


def get_config() -> ConfigDict:
    """As the stage before it."""
    config = mini_sft_judge_names.get_config()
    config.data.path = "geometry_world:fact"  # one fact in one sentence
    config.model.path = "runs/mini_sft/judge_names"  # what configs/mini_sft_judge_names.py made
    return config
