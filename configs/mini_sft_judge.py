"""How the embedded judge was made, fourth stage: judging whole responses. `make mini-models` runs it."""

from ml_collections import ConfigDict

from configs import mini_sft_judge_facts


def get_config() -> ConfigDict:
    """As the stages before it, with larger batches."""
    config = mini_sft_judge_facts.get_config()
    config.steps = 2500  # some 50 conversations each
    config.data.path = "geometry_world:judge"  # several facts, whole responses
    config.model.path = "runs/mini_sft/judge_facts"  # what configs/mini_sft_judge_facts.py made
    config.sft.rows_per_step = 8  # rows
    return config
