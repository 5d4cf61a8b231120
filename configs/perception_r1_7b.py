"""The published run: Qwen2.5-VL-7B-Instruct on 1,442 Geometry3K problems with visual annotations.

    python scripts/train.py --config configs/perception_r1_7b.py --workdir runs/7b \\
        --config.model.path=DIR_OF_Qwen2.5-VL-7B-Instruct --config.judge.path=DIR_OF_Qwen2.5-32B-Instruct \\
        --config.data.path=geo3k_with_visual_key_info.parquet

The authors (arXiv 2506.07218) used 16 A800-80G for 16 hours, 8 of them only to serve the judge, and report
MathVista 74.2, MathVerse 54.3, MathVision 28.6, We-Math 72.0. This config has not been run at full size yet.
Every value is the authors' unless its comment says otherwise; `config.fidelity = "paper"` reproduces their code.
"""

from ml_collections import ConfigDict

from perception_r1_jax.config import default_config


def get_config() -> ConfigDict:
    """All fields that make the run, those at their default included."""
    config = default_config()
    config.seed = 1  # also the authors' seed, though not their random numbers
    config.fidelity = "default"  # "paper" for their parsing, loss aggregation and schedule, defects included
    config.steps = 275  # 25 epochs of floor(1442 / 128) = 11 steps

    config.data.path = "geo3k_with_visual_key_info.parquet"  # problem, answer, images, visual_key_info
    config.data.split = "train"  # read for folders only; a parquet file is one split
    config.data.shuffle = True
    config.data.prefetch = 1  # 128 pictures of up to 1.8 megapixels are ready before each step

    config.model.path = "Qwen2.5-VL-7B-Instruct"  # Hugging Face folder, or converted
    config.model.tokenizer = ""  # the model's own
    config.model.min_pixels = 3_136  # 56 x 56
    config.model.max_pixels = 1_806_336  # 1344 x 1344: at most 2,304 image tokens
    config.model.dtype = "bfloat16"  # master weights and optimizer stay float32
    config.model.remat = "full"  # a row has 8,192 tokens: keep only the layers' inputs
    config.model.freeze_vision = False  # the vision tower trains too: it is what should see better

    config.judge.path = "Qwen2.5-32B-Instruct"  # theirs: AWQ int4 of it
    config.judge.tokenizer = ""  # the judge's own
    config.judge.prompt = ""  # this project's wording; a file for another one
    config.judge.mode = "constrained"  # theirs is "free"; both agree where the free text is well-formed
    config.judge.max_prompt_tokens = 8_192  # instruction, annotations and a response of up to 4,096 tokens
    config.judge.max_new_tokens = 512
    config.judge.batch_size = 64
    config.judge.on_failure = "drop_sample"  # theirs is "zero"

    config.rollout.prompts_per_step = 128
    config.rollout.samples_per_prompt = 8
    config.rollout.temperature = 1.0
    config.rollout.top_p = 1.0
    config.rollout.top_k = 0
    config.rollout.prompt_buckets = (512, 1024, 2048, 4096)  # 4,096 is their limit; ours drops and names, never cuts
    config.rollout.window_buckets = (0, 16, 32, 64, 96, 192)  # 1.8 megapixels fill 144 windows, more if narrow
    config.rollout.response_buckets = (512, 1024, 2048, 4096)  # 4,096 is their limit

    config.reward.format_weight = 0.1
    config.reward.accuracy_weight = 0.9
    config.reward.visual_weight = 0.7
    config.reward.repetition_weight = 1.0  # times a penalty between -2 and 0
    config.reward.ngram_size = 20
    config.reward.repetition_max_penalty = -2.0
    config.reward.workers = 16
    config.reward.deadline_seconds = 5.0  # theirs has none: one hanging expression holds the whole run

    config.grpo.clip_low = 0.2
    config.grpo.clip_high = 0.3
    config.grpo.dual_clip = 3.0
    config.grpo.aggregation = "sequence_mean"  # the paper's formula; their code's mean depends on the split
    config.grpo.kl_coefficient = 0.0  # no KL term, no reference model
    config.grpo.micro_batch_prompts = 16  # theirs is 8 responses a device; one prompt a device on 16 devices
    config.grpo.micro_batch_samples = 1
    config.grpo.log_prob_chunk = 256

    config.optimizer.learning_rate = 1e-6
    config.optimizer.warmup_fraction = 0.05  # 13 steps
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.eps = 1e-8
    config.optimizer.weight_decay = 1e-3
    config.optimizer.max_grad_norm = 1.0  # a step whose norm is not finite is skipped and counted

    config.mesh.data = 1
    config.mesh.fsdp = -1  # all devices hold a share of parameters and optimizer
    config.mesh.tensor = 1

    config.checkpoint.every = 10
    config.checkpoint.keep_last = 2
    config.checkpoint.keep_best = 1
    return config
