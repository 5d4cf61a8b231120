"""The configuration of a run: every field with its default, and the checks before any device work.

A config file under `configs/` starts from `default_config()` and sets fields; the result is locked, so a
misspelt field is an error. `fidelity="paper"` switches rewards, parsing, advantages, loss, pictures and
schedule to the semantics of the authors' code (arXiv 2506.07218 and its repository).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

CHOICES = {
    "fidelity": ("default", "paper"),
    "model.dtype": ("float32", "bfloat16"),
    "model.remat": ("none", "full", "dots"),
    "judge.mode": ("constrained", "free"),
    "judge.on_failure": ("drop_sample", "drop_term_for_group", "zero", "abort"),
    "grpo.aggregation": ("sequence_mean", "token_mean", "constant", "micro_batch_mean"),
    "grpo.kl_estimator": ("k1", "k2", "k3"),
}
"""Fields that take one of a few words."""

LEAST = {
    "steps": 1,
    "data.prefetch": 0,
    "model.min_pixels": 1,
    "judge.max_prompt_tokens": 1,
    "judge.max_new_tokens": 1,
    "judge.batch_size": 1,
    "rollout.prompts_per_step": 1,
    "rollout.samples_per_prompt": 2,  # advantages compare the members of a group
    "rollout.top_k": 0,
    "reward.ngram_size": 1,
    "reward.workers": 1,
    "grpo.clip_low": 0,
    "grpo.clip_high": 0,
    "grpo.dual_clip": 1,
    "grpo.kl_coefficient": 0,
    "grpo.log_prob_chunk": 1,
    "optimizer.warmup_fraction": 0,
    "optimizer.weight_decay": 0,
    "checkpoint.every": 1,
    "checkpoint.keep_last": 1,
    "checkpoint.keep_best": 0,
}
"""The least value of fields that have one."""

POSITIVE = ("rollout.temperature", "reward.deadline_seconds", "optimizer.learning_rate", "optimizer.max_grad_norm")
"""Fields that must be above 0: training divides logits by the temperature, so it cannot be greedy."""


def default_config() -> ConfigDict:
    """All fields of a training run, with the method's values where the paper gives one."""
    config = ConfigDict()
    config.seed = 1  # every random key derives from it: shuffling, sampling, drawn pictures
    config.fidelity = "default"  # "paper": exactly as the authors' code does it, defects included
    config.steps = 275  # optimizer steps, one per batch of rollouts
    # Appended to every problem, after a space. Where it is the name of a .txt file, the content of the file.
    config.format_instruction = (
        "Think first, step by step, inside <think> </think> tags: say what you see in the picture, then reason from "
        "it. Then give the result inside <answer> </answer> tags, with the final answer in \\boxed{}."
    )

    config.data = ConfigDict()
    config.data.path = "drawn"  # a geometry3k folder, a .parquet file, or "drawn" for drawn pictures
    config.data.split = "train"
    config.data.shuffle = True  # anew each epoch, by seed
    config.data.prefetch = 1  # batches prepared ahead of the step, pictures decoded; 0: each when it is needed

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
    config.grpo.log_prob_chunk = 256  # positions of each row whose logits exist at a time

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
        FileNotFoundError: a path that is not given or does not exist.
    """
    for field, choices in CHOICES.items():
        _require(config, field, _get(config, field) in choices, f"choose one of {', '.join(choices)}")
    for field, least in LEAST.items():
        _require(config, field, _get(config, field) >= least, f"it must be at least {least}")
    for field in POSITIVE:
        _require(config, field, 0 < _get(config, field) < math.inf, "it must be a number above 0")
    _require(config, "rollout.top_p", 0 < config.rollout.top_p <= 1, "it must be above 0 and at most 1")
    highest = config.model.max_pixels
    _require(config, "model.min_pixels", config.model.min_pixels <= highest, f"it is above model.max_pixels, {highest}")
    for field, least in {"prompt_buckets": 1, "window_buckets": 0, "response_buckets": 1}.items():
        _check_buckets(config, f"rollout.{field}", least)
    check_divides("micro_batch_prompts", config.grpo.micro_batch_prompts, config.rollout.prompts_per_step)
    check_divides("micro_batch_samples", config.grpo.micro_batch_samples, config.rollout.samples_per_prompt)
    _check_paths(config)


def check_divides(name: str, size: int, total: int) -> None:
    """Raises ValueError with the nearest legal values unless `size`, a field of `config.grpo`, divides `total`."""
    if 0 < size <= total and total % size == 0:
        return
    legal = [value for value in range(1, total + 1) if total % value == 0]
    nearest = sorted(sorted(legal, key=lambda value: abs(value - size))[:2])
    raise ValueError(
        f"config.grpo.{name} is {size}, which does not divide {total}. "
        f"The nearest values that do: {' and '.join(map(str, nearest))}."
    )


def _check_buckets(config: ConfigDict, field: str, least: int) -> None:
    buckets = tuple(_get(config, field))
    rising = all(isinstance(size, int) for size in buckets) and buckets == tuple(sorted(set(buckets)))
    _require(config, field, rising and len(buckets) > 0, "list whole numbers, rising")
    _require(config, field, buckets[0] >= least, f"the smallest must be at least {least}")


def _check_paths(config: ConfigDict) -> None:
    for field, words in {
        "model.path": ("random",),
        "judge.path": ("random", ""),
        "data.path": ("drawn",),
        "model.tokenizer": ("",),
        "judge.tokenizer": ("",),
        "judge.prompt": ("",),
        "format_instruction": () if _is_file_name(config.format_instruction) else (config.format_instruction,),
    }.items():
        value = _get(config, field)
        if value not in words and (value == "" or not Path(value).exists()):  # Path("") would be the current folder
            raise FileNotFoundError(f"config.{field} = {value!r} does not exist. Give a path that does{_or(words)}.")


def _or(words: Sequence[str]) -> str:
    return "".join(f", or {word!r}" for word in words)


def _get(config: ConfigDict, field: str):
    for name in field.split("."):
        config = config[name]
    return config


def _require(config: ConfigDict, field: str, condition: bool, advice: str) -> None:
    if not condition:
        raise ValueError(f"config.{field} = {_get(config, field)!r}: {advice}.")


def arithmetic(
    config: ConfigDict, *, problems: int, parameters: int, judge_parameters: int, mesh: dict[str, int]
) -> str:
    """The block that a run prints at its start: how the batch sizes multiply out."""
    n, g = config.rollout.prompts_per_step, config.rollout.samples_per_prompt
    p, s = config.grpo.micro_batch_prompts, config.grpo.micro_batch_samples
    prompt, response = config.rollout.prompt_buckets[-1], config.rollout.response_buckets[-1]
    epoch = problems // n
    epochs = config.steps / max(epoch, 1)
    lines = [
        ("problems", f"{problems:,}, {epoch} steps an epoch, {config.steps} steps = {epochs:.1f} epochs"),
        ("a step", f"{n} prompts x {g} samples = {n * g:,} responses, one optimizer update"),
        ("micro-batches", f"{n * g // (p * s)} of {p * s} ({p} prompts x {s})"),
        ("tokens", f"prompt <= {prompt:,}, response <= {response:,}, step <= {n * g * (prompt + response):,}"),
        ("parameters", f"policy {parameters:,}, judge {judge_parameters:,}"),
        ("mesh", " x ".join(f"{name} {size}" for name, size in mesh.items())),
    ]
    ways = mesh["data"] * mesh["fsdp"]
    if (p * s) % ways:
        text = (
            f"a micro-batch of {p * s} rows does not divide over data x fsdp = {ways}: each device computes all of it"
        )
        lines.append(("note", text))
    return "\n".join(f"  {name:<14} {text}" for name, text in lines)


def load_instruction(config: ConfigDict) -> str:
    """The format instruction itself, read from its file where the config names one."""
    text = config.format_instruction
    return Path(text).read_text(encoding="utf-8").strip() if _is_file_name(text) else text


def _is_file_name(instruction: str) -> bool:
    return instruction.endswith(".txt")
