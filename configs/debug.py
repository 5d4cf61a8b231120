"""The whole loop in a minute on a CPU: random models, drawn problems.

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
    config.steps = 4  # two checkpoints

    config.model.path = "random"  # a small model, made and converted on the spot
    config.model.max_pixels = 160_000  # 400 x 400: most Geometry3K diagrams keep their size
    config.model.dtype = "float32"  # no rounding between master weights and computing
    config.model.remat = "none"  # the activations are small

    config.judge.path = "random"  # likewise
    config.judge.max_prompt_tokens = 3072  # the instruction has most of them
    config.judge.max_new_tokens = 512  # tokens of an answer
    config.judge.batch_size = 8  # requests; 8 devices can share them
    config.judge.on_failure = "drop_term_for_group"  # so that a failure shows without making the batch smaller

    config.rollout.prompts_per_step = 4  # few prompts
    config.rollout.samples_per_prompt = 4  # and few responses to each
    config.rollout.prompt_buckets = (256, 512)  # tokens
    config.rollout.window_buckets = (16, 32)  # 112-pixel windows: 16 hold 400 x 400 pixels
    config.rollout.response_buckets = (32,)  # tokens; one bucket, so one compilation

    config.grpo.micro_batch_prompts = 2  # two micro-batches a step
    config.grpo.micro_batch_samples = 4  # whole groups
    config.grpo.log_prob_chunk = 256  # positions: the whole group at once

    config.optimizer.learning_rate = 1e-4  # large enough to see the parameters move
    config.checkpoint.every = 2  # steps
    return config
