"""How the embedded judge was made, first stage: telling numbers apart. `make mini-models` runs it."""

from ml_collections import ConfigDict

from configs import mini_sft_policy


def get_config() -> ConfigDict:
    """As the policy, without pictures and with longer rows."""
    config = mini_sft_policy.get_config()
    config.steps = 600  # some 40 conversations each
    config.data.path = "geometry_world:number"  # one number in one sentence
    config.model.path = "runs/mini_sft/judge_start"  # random weights, of the embedded judge's shapes
    config.sft.row_tokens = 512  # several conversations
    config.sft.row_windows = 0  # no pictures
    config.sft.rows_per_step = 4  # rows
    config.optimizer.name = "muon"  # AdamW takes nearly twice as many steps to find out what to compare
    return config
