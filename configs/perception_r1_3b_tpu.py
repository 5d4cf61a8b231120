"""The 3B run for 8 TPUs of 16 GB (v5e:2x4), its 7B judge included.

    python scripts/plan.py --config configs/perception_r1_3b_tpu.py --topology v5e:2x4

The work is that of `perception_r1_3b`; where it lies, and in how many bits, is not. docs/performance.md says what
it takes there. This config has not been run yet.
"""

from ml_collections import ConfigDict

from configs import perception_r1_3b, perception_r1_7b_tpu


def get_config() -> ConfigDict:
    """As the 3B run, with what makes room for it."""
    config = perception_r1_7b_tpu.make_room(perception_r1_3b.get_config())
    config.rollout.weights_memory = 0.23  # its 7 GB of bfloat16 are split over 2 devices
    config.grpo.micro_batch_prompts = 8  # a row for each device
    return config
