"""The published recipe on Qwen2.5-VL-3B-Instruct, for smaller machines.

    python scripts/train.py --config configs/perception_r1_3b.py --workdir runs/3b \\
        --config.model.path=DIR_OF_Qwen2.5-VL-3B-Instruct --config.judge.path=DIR_OF_Qwen2.5-7B-Instruct \\
        --config.data.path=geo3k_with_visual_key_info.parquet

The authors did not publish this size. They warn that a 7B judge invites reward hacking: watch the samples.
This config has not been run at full size yet.
"""

from ml_collections import ConfigDict

from configs import perception_r1_7b


def get_config() -> ConfigDict:
    """As the 7B run, with smaller models and responses half as long."""
    config = perception_r1_7b.get_config()
    config.model.path = "Qwen2.5-VL-3B-Instruct"  # Hugging Face folder, or converted
    config.judge.path = "Qwen2.5-7B-Instruct"  # smaller than theirs: see the warning above
    config.rollout.response_buckets = (512, 1024, 2048)  # tokens; theirs are up to 4,096
    return config
