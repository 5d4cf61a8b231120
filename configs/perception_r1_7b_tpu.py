"""The published run for 16 TPUs of 16 GB (v5e:4x4), judge included.

    python scripts/plan.py --config configs/perception_r1_7b_tpu.py --topology v5e:4x4

The work is that of `perception_r1_7b`; where it lies, and in how many bits, is not. docs/performance.md says what
it takes there. This config has not been run yet.
"""

from ml_collections import ConfigDict

from configs import perception_r1_7b


def get_config() -> ConfigDict:
    """As the published run, with what makes room for it."""
    return make_room(perception_r1_7b.get_config())


def make_room(config: ConfigDict) -> ConfigDict:
    """Sets what takes less of a device's memory and does the same work."""
    config.model.attention = "splash"  # holds no scores
    config.judge.weights_int8 = True  # 32 billion parameters are 33 GB instead of 66
    config.judge.streaming = False  # it judges when the rollout's weights and cache have left the devices
    config.optimizer.moments_dtype = "bfloat16"  # of 8 billion 33 GB instead of 66; rounded by chance, right on average
    config.optimizer.host_memory = True  # on 16 devices 2 GB of each come and go with an update
    config.rollout.cache_memory = 0.2  # the pictures' program needs a GB beside it
    return config
