"""The whole loop in a minute on a CPU: random models, drawn pictures.

    python scripts/train.py --config configs/debug.py --workdir runs/debug

With `--config.data.path=.../geometry3k --config.model.tokenizer=.../qwen2_5_vl_tokenizer` the same loop runs on
real problems with the real tokenizer. The models know nothing, so rewards say nothing either: this shows that
every stage works, and where each number comes from.
"""

from ml_collections import ConfigDict

from perception_r1_jax.config import default_config


def get_config() -> ConfigDict:
    """A few steps of few, short responses."""
    config = default_config()
    config.steps = 4

    config.model.path = "random"
    config.model.max_pixels = 160_000  # 400 x 400: most Geometry3K diagrams keep their size
    config.model.dtype = "float32"
    config.model.remat = "none"

    config.judge.path = "random"
    config.judge.max_prompt_tokens = 3072
    config.judge.max_new_tokens = 512
    config.judge.batch_size = 8
    config.judge.on_failure = "drop_term_for_group"

    config.rollout.prompts_per_step = 4
    config.rollout.samples_per_prompt = 4
    config.rollout.prompt_buckets = (256, 512)
    config.rollout.window_buckets = (16, 32)
    config.rollout.response_buckets = (32,)

    config.grpo.micro_batch_prompts = 2
    config.grpo.micro_batch_samples = 4
    config.grpo.log_prob_chunk = 64

    config.optimizer.learning_rate = 1e-4  # large enough to see the parameters move
    config.checkpoint.every = 2
    return config
