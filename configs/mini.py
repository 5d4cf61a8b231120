"""Perception-R1 in miniature: the embedded policy and judge on the geometry world, in minutes on a CPU.

    python scripts/train.py --config configs/mini.py --workdir runs/mini/run

`make mini-inputs` makes what it reads, from the embedded models. The same loop, rewards and fields as
configs/perception_r1_7b.py; only models, pictures and batches are smaller.
"""

from ml_collections import ConfigDict

from perception_r1_jax.config import default_config
from perception_r1_jax.data.geometry_world.conversations import INSTRUCTION


def get_config() -> ConfigDict:
    """GRPO with all four rewards, and an evaluation before and after."""
    config = default_config()
    config.seed = 0  # of shuffling and sampling
    config.steps = 45  # some seven minutes
    config.format_instruction = INSTRUCTION  # as the policy heard it before

    config.data.path = "runs/mini/data"  # `make mini-inputs` writes it

    config.model.path = "runs/mini/models/policy"  # converted from perception_r1_jax/assets/mini/policy
    config.model.dtype = "float32"  # as fast as bfloat16 on a CPU
    config.model.remat = "none"  # the activations are small

    config.judge.path = "runs/mini/models/judge"  # from perception_r1_jax/assets/mini/judge
    config.judge.prompt = "perception_r1_jax/assets/mini/judge_prompt.json"  # as the judge heard it before
    config.judge.mode = "free"  # it writes notes before its verdicts
    config.judge.max_prompt_tokens = 160  # tokens
    config.judge.max_new_tokens = 256  # tokens of notes, of each statement one, and verdicts
    config.judge.batch_size = 8  # requests; more at once are slower on a CPU

    config.rollout.prompts_per_step = 16  # prompts
    config.rollout.samples_per_prompt = 8  # responses to each, as in the paper
    config.rollout.prompt_buckets = (88,)  # tokens; 16 of them are the picture
    config.rollout.window_buckets = (1,)  # a picture is one window
    config.rollout.response_buckets = (80,)  # tokens; solutions have 30 to 72

    config.reward.workers = 1  # processes that check answers

    config.grpo.micro_batch_prompts = 1  # small micro-batches, which stay in the cache
    config.grpo.micro_batch_samples = 8  # whole groups
    config.grpo.log_prob_chunk = 640  # positions: the whole group at once

    config.optimizer.learning_rate = 5e-5  # a small model takes larger steps; at 1e-4 answers get worse (docs/claim.md)
    config.optimizer.weight_decay = 0.0  # over so few steps it would only be noise

    config.mesh.fsdp = 1  # one device
    config.checkpoint.every = 15  # steps

    config.evaluation.split = "test"  # never trained on
    config.evaluation.problems = 400  # all of them
    config.evaluation.batch_size = 100  # problems
    config.evaluation.max_new_tokens = 80  # tokens
    config.evaluation.checker = "perception_r1_jax.data.geometry_world.checker"  # knows the truth of each picture
    config.evaluation.probe_max_new_tokens = 8  # tokens
    return config
