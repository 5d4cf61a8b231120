"""The configuration of a run: every field with its default, and the checks before any device work.

A config file under `configs/` starts from `default_config()` and sets fields; the result is locked, so a
misspelt field is an error. `fidelity="paper"` switches rewards, parsing, advantages, loss, pictures and
schedule to the semantics of the authors' code (arXiv 2506.07218 and its repository).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

CHOICES = {
    "fidelity": ("default", "paper"),
    "model.dtype": ("float32", "bfloat16"),
    "model.remat": ("none", "full", "dots"),
    "judge.mode": ("constrained", "free"),
    "judge.on_failure": ("drop_sample", "drop_term_for_group", "zero", "abort"),
    "grpo.aggregation": ("sequence_mean", "token_mean", "micro_batch_token_mean"),
    "grpo.kl_estimator": ("k1", "k2", "k3"),
}
"""Fields that take one of a few words."""


def default_config() -> ConfigDict:
    """All fields of a training run, with the method's values where the paper gives one."""
    config = ConfigDict()
    config.seed = 1  # every random key derives from it: shuffling, sampling, drawn pictures
    config.fidelity = "default"  # "paper": exactly as the authors' code does it, defects included
    config.steps = 275  # optimizer steps, one per batch of rollouts
    # Appended to every problem, after a space. A path of a text file is read.
    config.format_instruction = (
        "Think first, step by step, inside <think> </think> tags: say what you see in the picture, then reason from it. "
        "Then give the result inside <answer> </answer> tags, with the final answer in \\boxed{}."
    )

    config.data = ConfigDict()
    config.data.path = "drawn"  # a geometry3k folder, a .parquet file, or "drawn" for drawn pictures
    config.data.split = "train"
    config.data.shuffle = True  # anew each epoch, by seed
    config.data.threads = 4  # that decode pictures ahead of the step

    config.model = ConfigDict()
    config.model.path = ""  # a Hugging Face folder, a converted checkpoint, or "random" for a small random model
    config.model.tokenizer = ""  # folder of the tokenizer, where it is not the model's own
    config.model.min_pixels = 3136  # smaller pictures are enlarged
    config.model.max_pixels = 1_806_336  # larger pictures are reduced
    config.model.dtype = "bfloat16"  # of computing; master weights are float32
    config.model.remat = "full"  # what a layer keeps for the backward pass: none (all), dots, full (nothing)
    config.model.freeze_vision = False  # train the decoder only

    config.judge = ConfigDict()
    config.judge.path = ""  # as model.path, a Qwen2.5 text model; "" runs without a judge (no visual reward)
    config.judge.tokenizer = ""  # folder of the tokenizer, where it is not the model's own
    config.judge.prompt = ""  # file of another wording; "" is the package's own
    config.judge.mode = "constrained"  # read only the digits of the known answer form; "free": generate, then parse
    config.judge.max_prompt_tokens = 8192  # instruction, annotations and response; a longer request is a failure
    config.judge.max_new_tokens = 512
    config.judge.batch_size = 64  # requests judged at once
    config.judge.on_failure = "drop_sample"  # or drop_term_for_group, zero, abort

    config.rollout = ConfigDict()
    config.rollout.prompts_per_step = 128  # N
    config.rollout.samples_per_prompt = 8  # G, the size of a group
    config.rollout.temperature = 1.0
    config.rollout.top_p = 1.0
    config.rollout.top_k = 0  # 0: off
    config.rollout.prompt_buckets = (512, 1024, 2048, 4096)  # tokens; a longer prompt is dropped and named
    config.rollout.window_buckets = (0, 16, 32, 64, 96, 192)  # 112-pixel windows; more are dropped and named
    config.rollout.response_buckets = (512, 1024, 2048, 4096)  # tokens; the last one is the limit of a response

    config.reward = ConfigDict()
    config.reward.format_weight = 0.1
    config.reward.accuracy_weight = 0.9
    config.reward.visual_weight = 0.7
    config.reward.repetition_weight = 1.0  # the penalty is negative itself
    config.reward.custom_weight = 1.0
    config.reward.ngram_size = 20  # words
    config.reward.repetition_max_penalty = -2.0
    config.reward.function = ""  # a reward of your own, "package.module:function" of (row, response)
    config.reward.workers = 2  # processes that check answers
    config.reward.deadline_seconds = 5.0  # for one answer

    config.grpo = ConfigDict()
    config.grpo.clip_low = 0.2
    config.grpo.clip_high = 0.3
    config.grpo.dual_clip = 3.0
    config.grpo.aggregation = "sequence_mean"  # paper; "token_mean" weighs all tokens of the batch alike
    config.grpo.kl_coefficient = 0.0  # > 0 keeps the starting policy as reference
    config.grpo.kl_estimator = "k3"
    config.grpo.micro_batch_prompts = 8  # prompts of a micro-batch, over all devices
    config.grpo.micro_batch_samples = 8  # samples of each of them
    config.grpo.log_prob_chunk = 1024  # tokens whose logits exist at a time

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 1e-6  # constant after warm-up
    config.optimizer.warmup_fraction = 0.05  # of all steps
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.eps = 1e-8
    config.optimizer.weight_decay = 1e-3
    config.optimizer.max_grad_norm = 1.0

    config.mesh = ConfigDict()  # sizes multiply to the number of devices; -1 is "all that is left"
    config.mesh.data = 1
    config.mesh.fsdp = -1
    config.mesh.tensor = 1

    config.checkpoint = ConfigDict()
    config.checkpoint.every = 10  # steps; the last step is always saved
    config.checkpoint.keep_last = 2
    config.checkpoint.keep_best = 1  # by mean reward
    return config.lock()


def validate(config: ConfigDict) -> None:
    """Checks a config before any device work.

    Raises:
        ValueError: a field with an impossible value, or batch sizes that do not divide; it says what to set.
        FileNotFoundError: a path that does not exist.
    """
    for field, choices in CHOICES.items():
        _require(_get(config, field) in choices, field, _get(config, field), f"choose one of {', '.join(choices)}")
    for field in ("steps", "judge.batch_size", "checkpoint.every", "rollout.prompts_per_step", "reward.workers"):
        _require(_get(config, field) >= 1, field, _get(config, field), "it must be at least 1")
    _require(
        config.rollout.samples_per_prompt >= 2,
        "rollout.samples_per_prompt",
        config.rollout.samples_per_prompt,
        "a group needs at least 2 samples, since advantages compare them",
    )
    for field in ("prompt_buckets", "window_buckets", "response_buckets"):
        buckets = tuple(config.rollout[field])
        _require(len(buckets) > 0 and buckets == tuple(sorted(set(buckets))), f"rollout.{field}", buckets, "list it rising")
    check_divides("grpo.micro_batch_prompts", config.grpo.micro_batch_prompts, config.rollout.prompts_per_step)
    check_divides("grpo.micro_batch_samples", config.grpo.micro_batch_samples, config.rollout.samples_per_prompt)
    _check_paths(config)


def check_divides(field: str, value: int, total: int) -> None:
    """Raises ValueError that names the nearest legal values unless `value` divides `total`."""
    legal = [d for d in range(1, total + 1) if total % d == 0]
    near = sorted(sorted(legal, key=lambda d: abs(d - value))[:3])
    _require(value in legal, field, value, f"it must divide {total}; the nearest that do are {', '.join(map(str, near))}")


def _check_paths(config: ConfigDict) -> None:
    _require(bool(config.model.path), "model.path", config.model.path, "name a model folder, or 'random' for a small one")
    for field, words in {
        "model.path": ("random",),
        "judge.path": ("random", ""),
        "data.path": ("drawn",),
        "model.tokenizer": ("",),
        "judge.tokenizer": ("",),
        "judge.prompt": ("",),
    }.items():
        value = _get(config, field)
        if value not in words and not Path(value).exists():
            raise FileNotFoundError(f"config.{field} = {value!r} does not exist. Give a path that does{_or(words)}.")


def _or(words: Sequence[str]) -> str:
    return "".join(f", or {word!r}" for word in words)


def _get(config: ConfigDict, field: str):
    for name in field.split("."):
        config = config[name]
    return config


def _require(condition: bool, field: str, value, advice: str) -> None:
    if not condition:
        raise ValueError(f"config.{field} = {value!r}: {advice}.")


def arithmetic(config: ConfigDict, *, problems: int, parameters: int, judge_parameters: int, mesh: dict[str, int]) -> str:
    """The block that a run prints at its start: how the batch sizes multiply out."""
    n, g = config.rollout.prompts_per_step, config.rollout.samples_per_prompt
    rows = config.grpo.micro_batch_prompts * config.grpo.micro_batch_samples
    prompt, response = config.rollout.prompt_buckets[-1], config.rollout.response_buckets[-1]
    epoch = problems // n
    lines = [
        ("problems", f"{problems:,}, {epoch} steps an epoch, {config.steps} steps = {config.steps / max(epoch, 1):.1f} epochs"),
        ("a step", f"{n} prompts x {g} samples = {n * g:,} responses, one optimizer update"),
        ("micro-batches", f"{n * g // rows} of {rows} ({config.grpo.micro_batch_prompts} prompts x {config.grpo.micro_batch_samples})"),
        ("tokens", f"prompt <= {prompt:,}, response <= {response:,}, step <= {n * g * (prompt + response):,}"),
        ("parameters", f"policy {parameters:,}, judge {judge_parameters:,}"),
        ("mesh", " x ".join(f"{name} {size}" for name, size in mesh.items())),
    ]
    return "\n".join(f"  {name:<14} {text}" for name, text in lines)


def load_instruction(config: ConfigDict) -> str:
    """The format instruction itself, read from its file where the config names one."""
    text = config.format_instruction
    if "\n" not in text and len(text) < 500 and Path(text).is_file():
        return Path(text).read_text().strip()
    return text
