"""How the embedded judge was made. `make mini-models` runs it."""

from ml_collections import ConfigDict

from configs import mini_sft_policy


def get_config() -> ConfigDict:
    """As the policy, without pictures and with longer rows."""
    config = mini_sft_policy.get_config()
    config.steps = 4500  # some 27 conversations each
    config.data.path = "geometry_world:judge"  # notes and verdicts
    config.model.path = "runs/mini_sft/judge_start"  # random weights, of the embedded judge's shapes
    config.sft.row_tokens = 576  # one or two conversations; one in a hundred is longer, and left out
    config.sft.row_windows = 0  # no pictures
    config.sft.rows_per_step = 8  # rows
    return config
