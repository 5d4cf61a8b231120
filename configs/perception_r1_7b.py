"""The published run: Qwen2.5-VL-7B-Instruct on 1,442 Geometry3K problems with visual annotations.

    python scripts/train.py --config configs/perception_r1_7b.py --workdir runs/7b \\
        --config.model.path=DIR_OF_Qwen2.5-VL-7B-Instruct --config.judge.path=DIR_OF_Qwen2.5-32B-Instruct \\
        --config.data.path=geo3k_with_visual_key_info.parquet

The authors (arXiv 2506.07218) used 16 A800-80G for 16 hours, 8 of them only to serve the judge, and report
MathVista 74.2, MathVerse 54.3, MathVision 28.6, We-Math 72.0. This config has not been run at full size yet.
Every value is the authors' unless its comment says otherwise. `--config.fidelity=paper` reproduces their code; their
words are read from a file: `--config.format_instruction=prompts.json --config.judge.prompt=prompts.json`.
"""

from ml_collections import ConfigDict

from perception_r1_jax.config import default_config


def get_config() -> ConfigDict:
    """All fields that make the run, those at their default included."""
    config = default_config()
    config.seed = 1  # also the authors' seed, though not their random numbers
    config.fidelity = "default"  # "paper" for their parsing, loss, pictures and schedule, defects included
    config.steps = 275  # 25 epochs of floor(1442 / 128) = 11 steps
    # This project's wording; theirs is read from a .json or .txt file that this names.
    config.format_instruction = default_config().format_instruction

    config.data.path = "geo3k_with_visual_key_info.parquet"  # problem, answer, images, visual_key_info
    config.data.split = "train"  # read for folders only; a parquet file is one split
    config.data.shuffle = True  # a new order each epoch
    config.data.prefetch = 1  # 128 pictures of up to 1.8 megapixels are ready before each step

    config.model.path = "Qwen2.5-VL-7B-Instruct"  # Hugging Face folder, or converted
    config.model.tokenizer = ""  # the model's own
    config.model.min_pixels = 3_136  # 56 x 56
    config.model.max_pixels = 1_806_336  # 1344 x 1344: at most 2,304 image tokens
    config.model.dtype = "bfloat16"  # master weights and optimizer stay float32
    config.model.remat = "full"  # a row has 8,192 tokens: keep only the layers' inputs
    config.model.attention = "xla"  # on every device; splash on a TPU, which has not been timed yet
    config.model.freeze_vision = False  # the vision tower trains too: it is what should see better

    config.lora.modules = ()  # theirs: all parameters are trained
    config.lora.rank = 32  # not used without modules
    config.lora.alpha = 64.0  # nor is this

    config.judge.path = "Qwen2.5-32B-Instruct"  # theirs: AWQ int4 of it, which loads too
    config.judge.sees = False  # True: their multimodal reward model (figure 5), with path = Qwen2.5-VL-32B-Instruct
    config.judge.tokenizer = ""  # the judge's own
    config.judge.prompt = ""  # this project's wording; theirs is read from a JSON file that this names
    config.judge.mode = "constrained"  # theirs, under "paper", is "free": parsed, however it is formed
    config.judge.max_prompt_tokens = 8_192  # instruction, annotations and a response of up to 4,096 tokens
    config.judge.max_thought_tokens = 0  # theirs does not reason: it answers at once
    config.judge.max_new_tokens = 512  # tokens; a verdict takes about 10
    config.judge.batch_size = 64  # ours: requests judged at once, of the 1,024 of a step
    config.judge.streaming = True  # False: when the rollout's weights and cache have left the devices
    config.judge.weights_memory = 0.45  # ours: its 66 GB of bfloat16 are split over 2 devices of 80 GB
    config.judge.cache_memory = 0.3  # ours: more than it takes with the digits alone open
    config.judge.weights_int8 = False  # True: its 66 GB of bfloat16 become 33
    config.judge.host_memory = False  # at hand; True takes its 66 GB off the devices while it does not judge
    config.judge.on_failure = "drop_sample"  # theirs, under "paper", is "abort": a failed request kills the step
    config.judge.max_failure_rate = 0.5  # a judge that fails on most of a step has something wrong with it
    config.judge.failure_window = 1024  # judgements: a step's
    config.judge.cache_size = 65_536  # judgements of 64 steps; at temperature 1 few come again
    config.judge.flip_probability = 0.0  # the judge's verdicts as they are
    config.judge.model = ""  # this and the next three are of an endpoint; this judge is on the mesh
    config.judge.timeout_seconds = 120.0  # not used
    config.judge.retries = 3  # not used
    config.judge.concurrency = 32  # not used; theirs sends the requests of a step together

    config.rollout.prompts_per_step = 128  # times 8 samples: 1,024 responses and one update
    config.rollout.samples_per_prompt = 8  # the size of a group
    config.rollout.max_rounds = 1  # no dynamic sampling
    config.rollout.temperature = 1.0  # the policy's own distribution: strictly on-policy
    config.rollout.top_p = 1.0  # off
    config.rollout.top_k = 0  # off
    config.rollout.min_p = 0.0  # off
    config.rollout.min_new_tokens = 0  # a response may end at once
    config.rollout.stop_strings = ()  # none: the stop ids alone end a response
    config.rollout.prompt_buckets = (512, 1024, 2048, 4096)  # 4,096 is their limit; ours drops and names, never cuts
    config.rollout.window_buckets = (0, 16, 32, 64, 96, 192)  # 1.8 megapixels fill 144 windows, more if narrow
    config.rollout.response_buckets = (512, 1024, 2048, 4096)  # 4,096 is their limit
    config.rollout.save = ""  # no: some 10 MB a step
    config.rollout.replay = ""  # every step draws
    config.rollout.slots = 256  # a device's share of the 1,024 responses passes through them
    config.rollout.weights_memory = 0.45  # whole on 80 GB; split over 4 devices of 16 GB
    config.rollout.cache_memory = 0.3  # the update has it back
    config.rollout.cache_int8 = False  # the sampler's log-probs are to be the trainer's

    config.reward.format_weight = 0.1  # times 0 or 1
    config.reward.accuracy_weight = 0.9  # times 0 or 1
    config.reward.visual_mode = "hard"  # the paper's: a verdict counts 0 or 1, however sure the judge is
    config.reward.visual_weight = 0.7  # gamma; their ablation is flat from 0.1 to 0.9, and above 0 throughout
    config.reward.repetition_weight = 1.0  # times a penalty between -2 and 0
    config.reward.custom_weight = 1.0  # of `function`, where there is one
    config.reward.overlong_weight = 1.0  # not used without such tokens
    config.reward.overlong_tokens = 0  # no penalty for length
    config.reward.ngram_size = 20  # words; a response of fewer has no penalty
    config.reward.repetition_max_penalty = -2.0  # times the share of n-grams that stood there before
    config.reward.function = ""  # no reward beside the four
    config.reward.workers = 16  # ours: processes for 1,024 answers a step
    config.reward.deadline_seconds = 5.0  # theirs has none: one hanging expression holds the whole run

    config.grpo.advantages = "grpo"  # theirs
    config.grpo.loss = "clipped"  # theirs
    config.grpo.clip_low = 0.2  # the ratio stays above 0.8
    config.grpo.clip_high = 0.3  # and below 1.3
    config.grpo.dual_clip = 3.0  # and a loss below 3 times its advantage, where that is negative
    config.grpo.aggregation = "sequence_mean"  # the paper's formula; their code's, under "paper", depends on the split
    config.grpo.importance_cap = 0.0  # theirs; sampler and trainer are one model here
    config.grpo.kl_coefficient = 0.0  # no KL term, no reference model
    config.grpo.kl_estimator = "k3"  # not used without a KL term
    config.grpo.kl_in = "loss"  # nor is this
    config.grpo.kl_schedule = "fixed"  # nor this
    config.grpo.kl_target = 0.01  # nor this
    config.grpo.kl_final = 0.0  # nor this
    config.grpo.entropy_coefficient = 0.0  # no bonus
    config.grpo.mask_truncated = False  # a response cut at the limit keeps its tokens
    config.grpo.drop_flat_groups = False  # theirs goes through all
    config.grpo.updates_per_batch = 1  # strictly on-policy
    config.grpo.micro_batch_prompts = 16  # theirs is 8 responses a device; one prompt a device on 16 devices
    config.grpo.micro_batch_samples = 1  # a row has up to 8,192 tokens: one response of 4,096, or 8 of 512
    config.grpo.log_prob_chunk = 256  # ours: as many logits at a time as 256 positions of a row have, 156 MB in float32

    config.optimizer.name = "adamw"  # theirs
    config.optimizer.learning_rate = 1e-6  # after warm-up
    config.optimizer.schedule = "constant"  # theirs
    config.optimizer.warmup_fraction = 0.05  # 13 steps
    config.optimizer.b1 = 0.9  # AdamW's usual value
    config.optimizer.b2 = 0.999  # AdamW's usual value
    config.optimizer.eps = 1e-8  # AdamW's usual value
    config.optimizer.weight_decay = 1e-3  # matrices only; theirs, under "paper", takes biases and norms too
    config.optimizer.max_grad_norm = 1.0  # a step whose norm is not finite is skipped and counted
    config.optimizer.moments_dtype = "float32"  # theirs; bfloat16 takes 33 GB instead of 66
    config.optimizer.host_memory = False  # at hand; True takes these off the devices but for the update

    config.mesh.data = 1  # no device holds the same share of the parameters as another
    config.mesh.fsdp = -1  # all devices hold a share of parameters and optimizer
    config.mesh.tensor = 1  # layers are not split

    config.checkpoint.every = 10  # steps, as theirs
    config.checkpoint.keep_last = 2  # ours: the latest, and the one before it
    config.checkpoint.keep_best = 1  # ours: by mean reward

    config.evaluation.split = ""  # none beside benchmarks: the file has training problems alone
    config.evaluation.problems = 0  # all
    config.evaluation.batch_size = 256  # ours: all at once over 16 devices; more would take more memory for pictures
    config.evaluation.max_new_tokens = 4096  # theirs
    config.evaluation.checker = ""  # none knows these pictures
    config.evaluation.probe_max_new_tokens = 32  # not used without a checker
    return config
