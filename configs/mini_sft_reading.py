"""How the embedded policy was made, first stage: from random weights to a model that reads letters and numbers.

A model that cannot see yet learns the language first, and the loss then stays where guessing leaves it for some hundred
steps. Short questions about pictures with few letters get over that more quickly than whole problems.
`make mini-models` runs it.
"""

from ml_collections import ConfigDict

from configs import mini_sft_binding


def get_config() -> ConfigDict:
    """As the second stage, with AdamW."""
    config = mini_sft_binding.get_config()
    config.steps = 1000  # some 90 conversations each
    config.data.path = "geometry_world:reading"  # drawn as they are needed, no two alike
    config.model.path = "runs/mini_sft/policy_start"  # random weights, of the embedded policy's shapes
    config.optimizer.name = "adamw"  # Muon has not been tried on it
    config.optimizer.learning_rate = 1e-3  # high, as small models want it
    return config
