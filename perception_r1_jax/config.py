"""The configuration of a run: every field with its default, and the checks before any device work.

A config file under `configs/` starts from `default_config()` and sets fields; the result is locked, so a
misspelt field is an error. `fidelity="paper"` switches rewards, parsing, advantages, loss, pictures and
schedule to the semantics of the authors' code (arXiv 2506.07218 and its repository).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from perception_r1_jax.data.load import WORLD
from perception_r1_jax.errors import UserError
from perception_r1_jax.grpo.advantages import ADVANTAGES
from perception_r1_jax.grpo.aggregation import AGGREGATIONS
from perception_r1_jax.grpo.kl import KL_ESTIMATORS, KL_PLACES, KL_SCHEDULES, has_kl
from perception_r1_jax.grpo.losses import LOSSES
from perception_r1_jax.inference.stop import STOP_STRINGS, are_stop_strings
from perception_r1_jax.judge.endpoint import base_url, is_url
from perception_r1_jax.judge.template import MODES
from perception_r1_jax.models import BACKENDS, REMAT_POLICIES
from perception_r1_jax.models.lora import INPUTS
from perception_r1_jax.rewards.accuracy import FIDELITIES
from perception_r1_jax.rewards.failures import POLICIES
from perception_r1_jax.rewards.perception import VISUAL_MODES
from perception_r1_jax.training.moments import MOMENTS_DTYPES
from perception_r1_jax.training.optimizer import OPTIMIZERS, SCHEDULES

PAPER = {
    "judge.mode": "free",
    "judge.on_failure": "abort",
    "grpo.advantages": "grpo",
    "grpo.loss": "clipped",
    "grpo.aggregation": "micro_batch_mean",
    "optimizer.name": "adamw",
}
"""What `fidelity="paper"` sets, whatever a config says. The rest of the switch is in the code that reads `fidelity`."""

CHOICES = {
    "fidelity": FIDELITIES,
    "model.dtype": ("float32", "bfloat16"),
    "model.remat": tuple(REMAT_POLICIES),
    "model.attention": tuple(BACKENDS),
    "judge.mode": MODES,
    "judge.on_failure": POLICIES,
    "reward.visual_mode": VISUAL_MODES,
    "grpo.advantages": ADVANTAGES,
    "grpo.loss": tuple(LOSSES),
    "grpo.aggregation": AGGREGATIONS,
    "grpo.kl_estimator": KL_ESTIMATORS,
    "grpo.kl_in": KL_PLACES,
    "grpo.kl_schedule": KL_SCHEDULES,
    "optimizer.name": OPTIMIZERS,
    "optimizer.schedule": SCHEDULES,
    "optimizer.moments_dtype": MOMENTS_DTYPES,
}
"""Fields that take one of a few words."""

LEAST = {
    "seed": 0,
    "steps": 1,
    "data.prefetch": 0,
    "model.min_pixels": 1,
    "lora.rank": 1,
    "judge.max_prompt_tokens": 1,
    "judge.max_thought_tokens": 0,
    "judge.max_new_tokens": 1,
    "judge.batch_size": 1,
    "judge.failure_window": 1,
    "judge.cache_size": 0,
    "judge.retries": 0,
    "judge.concurrency": 1,
    "rollout.prompts_per_step": 1,
    "rollout.max_rounds": 1,
    "rollout.samples_per_prompt": 2,  # advantages compare the members of a group
    "rollout.top_k": 0,
    "rollout.slots": 1,
    "rollout.min_p": 0,
    "rollout.min_new_tokens": 0,
    "reward.ngram_size": 1,
    "reward.overlong_tokens": 0,
    "reward.workers": 1,
    "grpo.clip_low": 0,
    "grpo.clip_high": 0,
    "grpo.dual_clip": 0,
    "grpo.importance_cap": 0,
    "grpo.kl_coefficient": 0,
    "grpo.kl_final": 0,
    "grpo.entropy_coefficient": 0,
    "grpo.updates_per_batch": 1,
    "grpo.log_prob_chunk": 1,
    "optimizer.warmup_fraction": 0,
    "optimizer.weight_decay": 0,
    "checkpoint.every": 1,
    "checkpoint.keep_last": 1,
    "checkpoint.keep_best": 0,
    "evaluation.problems": 0,
    "evaluation.batch_size": 1,
    "evaluation.max_new_tokens": 1,
    "evaluation.probe_max_new_tokens": 1,
}
"""The least value of fields that have one."""

POSITIVE = (
    "lora.alpha",
    "judge.weights_memory",
    "judge.cache_memory",
    "judge.timeout_seconds",
    "rollout.temperature",  # training divides logits by it, so it cannot be greedy
    "rollout.weights_memory",
    "rollout.cache_memory",
    "reward.deadline_seconds",
    "grpo.kl_target",
    "optimizer.learning_rate",
    "optimizer.eps",
    "optimizer.max_grad_norm",
)
"""Fields that must be above 0."""

FINITE = (
    "reward.format_weight",
    "reward.accuracy_weight",
    "reward.visual_weight",
    "reward.repetition_weight",
    "reward.custom_weight",
    "reward.overlong_weight",
    "reward.repetition_max_penalty",
)
"""Fields that may be any number."""


def default_config() -> ConfigDict:
    """All fields of a training run, with the method's values where the paper gives one."""
    config = ConfigDict()
    config.seed = 1  # every random key derives from it: shuffling, sampling, random models
    config.fidelity = "default"  # "paper": exactly as the authors' code does it, defects included (docs/design.md)
    config.steps = 275  # batches of rollouts, each for one optimizer step (grpo.updates_per_batch)
    # Appended to every problem, after a space: the text, or a file with it (.txt, or .json under this field's name).
    config.format_instruction = (
        "Think first, step by step, inside <think> </think> tags: say what you see in the picture, then reason from "
        "it. Then give the result inside <answer> </answer> tags, with the final answer in \\boxed{}."
    )

    config.data = ConfigDict()  # the problems
    # A folder with {split}.jsonl (Geometry3K) or {split}*.parquet, one parquet file, or "geometry_world".
    config.data.path = WORLD
    config.data.split = "train"  # which files of a folder, or of the world; a single file is one split
    config.data.shuffle = True  # a new order each epoch, by seed
    config.data.prefetch = 1  # batches prepared ahead of the step, pictures decoded; 0: each when it is needed

    config.model = ConfigDict()  # the policy
    config.model.path = ""  # a Hugging Face folder, a converted checkpoint, or "random" for a small random model
    config.model.tokenizer = ""  # folder of the tokenizer, where it is not the model's own
    config.model.min_pixels = 3136  # pixels of a picture; smaller ones are enlarged
    config.model.max_pixels = 1_806_336  # pixels of a picture; larger ones are reduced
    config.model.dtype = "bfloat16"  # of computing, the judge's too; master weights are float32
    config.model.remat = "full"  # what a layer keeps for the backward pass: none (all), dots, full (nothing)
    config.model.attention = "xla"  # of training: anywhere; or cudnn (GPUs), splash (TPUs) (docs/memory.md)
    config.model.freeze_vision = False  # True trains the decoder only

    config.lora = ConfigDict()  # low-rank adapters, trained in place of the parameters (docs/memory.md)
    # Matrices of the layers that have one, of q, k, v, o, gate, up and down, in the vision tower (unless it is frozen)
    # qkv for the first three. () is none: the parameters themselves are trained.
    config.lora.modules = ()
    config.lora.rank = 32  # of an adapter A B: columns of A
    config.lora.alpha = 64.0  # times A B, over the rank

    config.judge = ConfigDict()  # the model behind the visual reward
    # As model.path, a text model or (judge.sees) a Qwen2.5-VL; or the address of an OpenAI-compatible endpoint, such as
    # http://localhost:8000/v1 (docs/judge.md). "" runs without a judge (no visual reward).
    config.judge.path = ""
    # True: it sees the pictures and gives a response one verdict, whether what it says of them is right; annotations
    # play no part. False: it reads the annotations and says of each whether the response shows it.
    config.judge.sees = False
    config.judge.tokenizer = ""  # folder of the tokenizer, where it is not the judge's own
    config.judge.prompt = ""  # JSON file of another wording (docs/judge.md); "" is the package's own
    config.judge.mode = "constrained"  # read only the digits of the known answer form; "free": generate, then parse
    config.judge.max_prompt_tokens = 8192  # tokens: instruction, annotations or pictures, response; a longer one fails
    # Tokens of thoughts, up to `</think>`, before constrained verdicts; longer ones fail. 0 leaves no room to think.
    config.judge.max_thought_tokens = 0
    config.judge.max_new_tokens = 512  # tokens of an answer
    config.judge.batch_size = 64  # requests judged at once, over all devices
    config.judge.streaming = True  # judges groups as they finish; False: after the rollout (docs/judge.md)
    config.judge.weights_memory = 0.45  # share of a device's memory for its weights; larger ones are split
    config.judge.cache_memory = 0.3  # share of a device's memory for keys and values of requests and answers
    config.judge.weights_int8 = False  # True keeps its matrices in 8 bits: half of bfloat16 (docs/judge.md)
    config.judge.host_memory = False  # True keeps its weights in the host's memory but when it judges (docs/memory.md)
    config.judge.on_failure = "drop_sample"  # or drop_term_for_group, zero, abort (docs/judge.md)
    config.judge.max_failure_rate = 0.5  # share of the last judgements that may fail; above it the run ends
    config.judge.failure_window = 1024  # so many are the last judgements; until there are as many, none is too many
    config.judge.cache_size = 65_536  # judgements kept, so that the same response is judged once; 0 keeps none
    config.judge.flip_probability = 0.0  # of turning a verdict round, at random, to study a judge that errs
    # The next four are of an endpoint.
    config.judge.model = ""  # the model's name there; "" takes the only one that it has
    config.judge.timeout_seconds = 120.0  # that one attempt at a request may take
    config.judge.retries = 3  # further attempts where the endpoint fails or is silent, after growing waits
    config.judge.concurrency = 32  # requests under way at a time

    config.rollout = ConfigDict()  # how responses are drawn
    config.rollout.prompts_per_step = 128  # N, prompts in a batch
    config.rollout.samples_per_prompt = 8  # G, responses to each: the size of a group
    # Above 1, groups whose rewards are all equal are replaced by others, from at most so many rounds of drawing a step
    # (dynamic sampling, docs/losses.md). 1: a batch is taken as it comes.
    config.rollout.max_rounds = 1
    config.rollout.temperature = 1.0  # divides the logits, in training too
    config.rollout.top_p = 1.0  # draw from the likeliest tokens that have this probability together; 1: from all
    config.rollout.top_k = 0  # draw from so many of the likeliest tokens; 0: from all
    config.rollout.min_p = 0.0  # draw from tokens at least this times as probable as the likeliest; 0: from all
    config.rollout.min_new_tokens = 0  # a stop id is drawn only after so many tokens
    config.rollout.stop_strings = ()  # texts that end a response as a stop id does; it keeps them
    config.rollout.prompt_buckets = (512, 1024, 2048, 4096)  # tokens; a longer prompt is dropped and named
    config.rollout.window_buckets = (0, 16, 32, 64, 96, 192)  # 112-pixel windows; more are dropped and named
    config.rollout.response_buckets = (512, 1024, 2048, 4096)  # tokens; the last one is the limit of a response
    config.rollout.save = ""  # folder: each step's responses are kept there as step-000123.npz; "" keeps none
    # For debugging: such a file, whose step takes the responses in it instead of drawing, or a folder of them, for all
    # steps that have one there. They belong to the problems of their step: keep seed, data and batch sizes. "": none.
    config.rollout.replay = ""
    config.rollout.slots = 256  # responses that a device decodes at a time; others wait for one of them to end
    config.rollout.weights_memory = 0.45  # share of a device's memory for weights that roll out; larger ones are split
    config.rollout.cache_memory = 0.3  # share of a device's memory for keys and values of prompts and responses
    config.rollout.cache_int8 = False  # True keeps these in 8 bits: half of bfloat16, at some cost in agreement

    config.reward = ConfigDict()  # the terms of the reward and their weights in its sum
    config.reward.format_weight = 0.1  # times 0 or 1
    config.reward.accuracy_weight = 0.9  # times 0 or 1
    config.reward.visual_weight = 0.7  # times a share between 0 and 1
    # What an annotation counts in that share: "hard": the verdict, 0 or 1; "probability": the judge's probability of a
    # 1 (only of a judge on the mesh in the mode "constrained").
    config.reward.visual_mode = "hard"
    config.reward.repetition_weight = 1.0  # times the penalty, which is negative itself
    config.reward.custom_weight = 1.0  # times what `function` returns
    config.reward.overlong_weight = 1.0  # times a penalty between -1 and 0, for the last `overlong_tokens` of the limit
    config.reward.overlong_tokens = 0  # tokens below the limit of a response where that penalty begins; 0: no such term
    config.reward.ngram_size = 20  # words that make a repetition
    config.reward.repetition_max_penalty = -2.0  # what a response of one repeated n-gram approaches
    config.reward.function = ""  # a reward of your own, "package.module:function" of (row, response); "" is none
    config.reward.workers = 2  # processes that check answers
    config.reward.deadline_seconds = 5.0  # seconds that checking one answer may take

    config.grpo = ConfigDict()  # the loss and how a batch is cut for it
    config.grpo.advantages = "grpo"  # or dr_grpo, rloo, reinforce_plus_plus; docs/losses.md has this and what follows
    config.grpo.loss = "clipped"  # of a token: or gspo (one ratio per response), cispo
    config.grpo.clip_low = 0.2  # the ratio of new to old probability is clipped at 1 - clip_low
    config.grpo.clip_high = 0.3  # and at 1 + clip_high
    config.grpo.dual_clip = 3.0  # with a negative advantage a loss is at most so many times that; 0: no such limit
    config.grpo.aggregation = "sequence_mean"  # paper; or token_mean (all tokens alike), constant, micro_batch_mean
    # A token's loss is weighted by its probability in training over that in the rollout, at most so much. 0: it is not.
    config.grpo.importance_cap = 0.0
    config.grpo.kl_coefficient = 0.0  # weight of the KL term; above 0 keeps the starting policy as reference
    config.grpo.kl_estimator = "k3"  # of that term: k1, k2 or k3 (grpo/kl.py)
    config.grpo.kl_in = "loss"  # where the term counts; or reward: less in the reward of a response
    config.grpo.kl_schedule = "fixed"  # of its weight; or adaptive: follows kl_target; dynamic: goes to kl_final
    config.grpo.kl_target = 0.01  # KL per token that an adaptive weight holds
    config.grpo.kl_final = 0.0  # a dynamic weight goes from kl_coefficient to this, from the first update to the last
    config.grpo.entropy_coefficient = 0.0  # weight of the policy's entropy, as a bonus
    config.grpo.mask_truncated = False  # True leaves responses that were cut at the limit out of the loss
    # True skips groups whose advantages are all zero. With neither KL nor entropy term no gradient changes.
    config.grpo.drop_flat_groups = False
    config.grpo.updates_per_batch = 1  # optimizer steps, each on its share of the prompts of a batch of rollouts
    config.grpo.micro_batch_prompts = 8  # rows of a micro-batch over all devices, of like length: a prompt each
    config.grpo.micro_batch_samples = 8  # of the longest responses in the row of their prompt; of shorter ones more
    config.grpo.log_prob_chunk = 256  # positions of each row: no more logits than these have exist at a time

    config.optimizer = ConfigDict()  # what becomes of a gradient
    config.optimizer.name = "adamw"  # or muon: for the matrices of the layers, with AdamW for the rest
    config.optimizer.learning_rate = 1e-6  # after warm-up
    config.optimizer.schedule = "constant"  # from there on; or cosine: down to a tenth at the last step
    config.optimizer.warmup_fraction = 0.05  # share of all steps over which the rate rises to its value
    config.optimizer.b1 = 0.9  # decay of the mean of gradients
    config.optimizer.b2 = 0.999  # decay of the mean of their squares (AdamW)
    config.optimizer.eps = 1e-8  # added to the root of the latter
    config.optimizer.weight_decay = 1e-3  # times the learning rate: the share that a matrix loses in a step
    config.optimizer.max_grad_norm = 1.0  # a gradient with a larger norm over all parameters is scaled down to it
    config.optimizer.moments_dtype = "float32"  # of both means; bfloat16 halves them, and rounds them by chance
    config.optimizer.host_memory = False  # True keeps them in the host's memory but for the update (docs/memory.md)

    config.mesh = ConfigDict()  # sizes multiply to the number of devices; -1 is "all that is left"
    config.mesh.data = 1  # ways that split the batch, each with a copy of the parameters
    config.mesh.fsdp = -1  # ways that split the batch and the parameters
    config.mesh.tensor = 1  # ways that split heads, MLP and vocabulary

    config.checkpoint = ConfigDict()  # what is kept on disk
    config.checkpoint.every = 10  # steps between two checkpoints; the last step is always saved
    config.checkpoint.keep_last = 2  # the latest so many
    config.checkpoint.keep_best = 1  # and so many with the highest mean reward

    config.evaluation = ConfigDict()  # greedy responses to other problems, before the first step and after the last
    config.evaluation.split = ""  # of data.path, another one than data.split; "" makes no evaluation
    config.evaluation.problems = 0  # the first so many of the split; 0: all
    # Problems of a shape with the engine at a time; where one is done, the next of its shape takes its place. As many
    # of each shape wait at most, their pictures in memory.
    config.evaluation.batch_size = 256
    config.evaluation.max_new_tokens = 4096  # tokens; a longer response is cut, counted, and graded as it stands
    # A module that knows the truth of the pictures (evaluation/checker.py): what responses perceive, and a probe, which
    # asks for a single fact of each. "" measures accuracy alone.
    config.evaluation.checker = ""
    config.evaluation.probe_max_new_tokens = 32  # tokens of the answer to a probe
    return config.lock()


def resolve(config: ConfigDict, *, paths: bool = True) -> ConfigDict:
    """The config as it runs: a copy, with what `fidelity="paper"` sets, and checked; without `paths` as `validate`.

    Raises:
        UserError, FileNotFoundError: as `validate`.
    """
    config = config.copy_and_resolve_references()
    if config.fidelity == "paper":
        config.update_from_flattened_dict(PAPER)
    validate(config, paths=paths)
    return config


def validate(config: ConfigDict, *, paths: bool = True) -> None:
    """Checks a config before any device work; without `paths`, for those who read no file that it names, all the rest.

    Raises:
        UserError: a field with an impossible value, batch sizes that do not divide, or an instruction file
            without the instruction; it says what to set.
        FileNotFoundError: a path that is not given or does not exist.
    """
    check_fields(config, LEAST)
    _require(config, "rollout.top_p", 0 < config.rollout.top_p <= 1, "it must be above 0 and at most 1")
    _require(config, "rollout.min_p", config.rollout.min_p <= 1, "it must be at most 1")
    _require(config, "rollout.stop_strings", are_stop_strings(config.rollout.stop_strings), f"give {STOP_STRINGS}")
    for section in ("rollout", "judge"):
        _check_shares(config, section)
    for field in ("judge.flip_probability", "judge.max_failure_rate"):
        _require(config, field, 0 <= _get(config, field) <= 1, "it must be between 0 and 1")
    advice = "an endpoint is asked about annotations; set judge.path to a Qwen2.5-VL model, or judge.sees to False"
    _require(config, "judge.sees", not (config.judge.sees and is_url(config.judge.path)), advice)
    both = config.judge.host_memory and config.judge.streaming
    advice = "its weights would be on the devices all the while that responses are drawn; set judge.streaming to False"
    _require(config, "judge.host_memory", not both, advice)
    _check_visual_mode(config)
    for field, least in {"prompt_buckets": 1, "window_buckets": 0, "response_buckets": 1}.items():
        _check_buckets(config, f"rollout.{field}", least)
    minimum, limit = config.rollout.min_new_tokens, config.rollout.response_buckets[-1]
    _require(config, "rollout.min_new_tokens", minimum <= limit, f"it is above the largest response bucket, {limit}")
    for field in ("rollout.save", "rollout.replay"):
        one_draw = config.rollout.max_rounds == 1 or not _get(config, field)
        _require(config, field, one_draw, "a file holds one draw of a step; set rollout.max_rounds to 1")
    margin = config.reward.overlong_tokens
    _require(config, "reward.overlong_tokens", margin <= limit, f"it is above the largest response bucket, {limit}")
    prompts, updates = config.rollout.prompts_per_step, config.grpo.updates_per_batch
    check_divides("grpo.updates_per_batch", updates, prompts)
    check_divides("grpo.micro_batch_prompts", config.grpo.micro_batch_prompts, prompts // updates)
    check_divides("grpo.micro_batch_samples", config.grpo.micro_batch_samples, config.rollout.samples_per_prompt)
    adapts = config.grpo.kl_schedule == "adaptive" and not has_kl(config.grpo)
    _require(config, "grpo.kl_schedule", not adapts, "give it a weight to adapt, grpo.kl_coefficient above 0")
    dual = config.grpo.dual_clip
    _require(config, "grpo.dual_clip", dual == 0 or dual >= 1, "it must be at least 1, or 0 for no such limit")
    if paths:
        _check_paths(config)
        _check_evaluation(config)
        load_instruction(config)


def check_fields(config: ConfigDict, least: Mapping[str, float]) -> None:
    """Checks the fields of the tables above, those that this config has, and the sections that every run has.

    Raises:
        UserError: a field with an impossible value.
    """
    for field, choices in _present(config, CHOICES):
        _require(config, field, _get(config, field) in choices, f"choose one of {', '.join(choices)}")
    for field, low in _present(config, LEAST | least):
        _require(config, field, low <= _get(config, field) < math.inf, f"it must be a number of at least {low}")
    for field, _ in _present(config, dict.fromkeys(POSITIVE)):
        _require(config, field, 0 < _get(config, field) < math.inf, "it must be a number above 0")
    for field, _ in _present(config, dict.fromkeys(FINITE)):
        _require(config, field, math.isfinite(_get(config, field)), "it must be a finite number")
    for field in ("optimizer.b1", "optimizer.b2"):
        _require(config, field, 0 <= _get(config, field) < 1, "it must be at least 0 and below 1")
    _require(config, "optimizer.warmup_fraction", config.optimizer.warmup_fraction <= 1, "it must be at most 1")
    _check_lora(config)
    narrow = config.model.attention != "cudnn" or config.model.dtype == "bfloat16"
    _require(config, "model.attention", narrow, "it computes in bfloat16; set model.dtype to bfloat16")
    highest = config.model.max_pixels
    _require(config, "model.min_pixels", config.model.min_pixels <= highest, f"it is above model.max_pixels, {highest}")


def _check_lora(config: ConfigDict) -> None:
    modules = config.lora.modules
    known = isinstance(modules, (tuple, list)) and set(modules) <= set(INPUTS)
    _require(config, "lora.modules", known, f"list some of {', '.join(INPUTS)}")
    trains = not modules or not config.model.freeze_vision or set(modules) != {"qkv"}
    _require(config, "lora.modules", trains, "qkv is of the vision tower, which model.freeze_vision leaves as it is")
    advice = "muon is for whole matrices; set optimizer.name to adamw to train adapters"
    _require(config, "lora.modules", not modules or config.optimizer.name != "muon", advice)


def _present(config: ConfigDict, table: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The table's items for fields in sections that the config has."""
    return [(field, value) for field, value in table.items() if field.split(".")[0] in config]


def _check_shares(config: ConfigDict, section: str) -> None:
    """What one model's weights and its cache may take lies in the same memory at once."""
    weights = config[section].weights_memory
    _require(config, f"{section}.weights_memory", weights < 1, "it is a share of the memory, below 1")
    advice = f"{section}.weights_memory = {weights} leaves less of the memory; the two are at most 1 together"
    _require(config, f"{section}.cache_memory", config[section].cache_memory + weights <= 1, advice)


def _check_visual_mode(config: ConfigDict) -> None:
    """Only a judge that chooses between digits here says how sure it is."""
    if config.reward.visual_mode == "probability" and config.judge.path:
        remote = "an endpoint gives no probabilities; set judge.path to a model, or this to 'hard'"
        _require(config, "reward.visual_mode", not is_url(config.judge.path), remote)
        free = f"judge.mode = {config.judge.mode!r} gives no probabilities; set it to 'constrained', or this to 'hard'"
        _require(config, "reward.visual_mode", config.judge.mode == "constrained", free)


def check_divides(name: str, size: int, total: int) -> None:
    """Raises UserError with the nearest legal values unless `size`, the config's field `name`, divides `total`."""
    if 0 < size <= total and total % size == 0:
        return
    legal = [value for value in range(1, total + 1) if total % value == 0]
    nearest = sorted(sorted(legal, key=lambda value: abs(value - size))[:2])
    raise UserError(
        f"config.{name} is {size}, which does not divide {total}. "
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
        "judge.path": (config.judge.path,) if is_url(config.judge.path) else ("random", ""),
        "data.path": (WORLD,),
        "model.tokenizer": ("",),
        "judge.tokenizer": ("",),
        "judge.prompt": ("",),
        "rollout.replay": ("",),
        "format_instruction": () if _is_file_name(config.format_instruction) else (config.format_instruction,),
    }.items():
        check_path(config, field, words)
    if is_url(config.judge.path):
        base_url(config.judge.path)
    folder = config.rollout.save
    _require(config, "rollout.save", not folder or not Path(folder).is_file(), "this is a file; name a folder")


def check_path(config: ConfigDict, field: str, words: Sequence[str]) -> None:
    """Raises FileNotFoundError unless the field holds a path that exists, or one of the words."""
    value = _get(config, field)
    if value not in words and (value == "" or not Path(value).exists()):  # Path("") would be the current folder
        raise FileNotFoundError(f"config.{field} = {value!r} does not exist. Give a path that does{_or(words)}.")


def _check_evaluation(config: ConfigDict) -> None:
    """A policy evaluated on what it trains on would seem better than it is."""
    if config.evaluation.split:
        another = config.evaluation.split != config.data.split
        _require(config, "evaluation.split", another, "the run trains on this split; name another one")
        advice = "a single file has one split, which the run trains on; set data.path to a folder of several"
        _require(config, "evaluation.split", not Path(config.data.path).is_file(), advice)


def _or(words: Sequence[str]) -> str:
    return "".join(f", or {word!r}" for word in words)


def _get(config: ConfigDict, field: str):
    for name in field.split("."):
        config = config[name]
    return config


def _require(config: ConfigDict, field: str, condition: bool, advice: str) -> None:
    if not condition:
        raise UserError(f"config.{field} = {_get(config, field)!r}: {advice}.")


def optimizer_steps(config: ConfigDict) -> int:
    """Of a whole run: `grpo.updates_per_batch` for each batch of rollouts."""
    return config.steps * config.grpo.updates_per_batch


def arithmetic(
    config: ConfigDict, *, problems: int, parameters: int, judge_parameters: int, mesh: dict[str, int]
) -> str:
    """The block that a run prints at its start: how the batch sizes multiply out."""
    n, g = config.rollout.prompts_per_step, config.rollout.samples_per_prompt
    prompt, response = config.rollout.prompt_buckets[-1], config.rollout.response_buckets[-1]
    epoch = problems // n
    epochs = config.steps / max(epoch, 1)
    lines = [
        ("problems", f"{problems:,}, {epoch} steps an epoch, {config.steps} steps = {epochs:.1f} epochs"),
        ("a step", f"{n} prompts x {g} samples = {n * g:,} responses, {_updates(config)}"),
        ("micro-batches", _micro_batches(config)),
        ("tokens", f"prompt <= {prompt:,}, response <= {response:,}, step <= {n * g * (prompt + response):,}"),
        ("parameters", f"policy {parameters:,}, judge {judge_parameters:,}"),
        ("mesh", " x ".join(f"{name} {size}" for name, size in mesh.items())),
    ]
    if config.fidelity == "paper":
        lines.insert(0, ("fidelity", "paper: " + ", ".join(f"{field} = {value}" for field, value in PAPER.items())))
    lines += [("note", note) for note in notes(config, mesh)]
    return "\n".join(f"  {name:<14} {text}" for name, text in lines)


def notes(config: ConfigDict, mesh: Mapping[str, int]) -> Iterator[str]:
    """What is allowed and hardly meant."""
    ways, rows = mesh["data"] * mesh["fsdp"], config.grpo.micro_batch_prompts
    if rows % ways:
        text = f"{ways} devices (data x fsdp) do not divide the {rows} rows of a micro-batch: each computes them all."
        yield f"{text} Set grpo.micro_batch_prompts to a multiple of {ways}."
    if config.rollout.max_rounds > 1 and not config.grpo.importance_cap:
        text = "groups that a step carries over count as if the next step's policy had drawn them."
        yield f"{text} Set grpo.importance_cap, mostly to 2, to weigh their tokens by how likely they are to it."


def _updates(config: ConfigDict) -> str:
    updates = config.grpo.updates_per_batch
    prompts = config.rollout.prompts_per_step // updates
    return "one optimizer update" if updates == 1 else f"{updates} optimizer updates of {prompts} prompts"


def _micro_batches(config: ConfigDict) -> str:
    rollout, prompts, samples = config.rollout, config.grpo.micro_batch_prompts, config.grpo.micro_batch_samples
    size, group = prompts * samples, rollout.samples_per_prompt
    count, of = rollout.prompts_per_step * group // size, f"{size} ({prompts} prompts x {samples})"
    if samples == group:
        return f"{count} of {of}, by length"
    return f"at most {count}, of {of} or more where responses are short, by length"


def load_instruction(config: ConfigDict) -> str:
    """The format instruction itself, read from its file where the config names one.

    Raises:
        UserError: a file that is no text, or a JSON file without a text under the key "format_instruction".
    """
    text = config.format_instruction
    if not _is_file_name(text):
        return text
    try:
        content = Path(text).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"config.format_instruction = {text!r}: it must be text in UTF-8.") from error
    return _instruction_of_json(text, content) if text.endswith(".json") else content.strip()


def _instruction_of_json(path: str, content: str) -> str:
    try:
        text = json.loads(content)["format_instruction"]
    except (ValueError, LookupError, TypeError):
        text = None
    if not isinstance(text, str):
        raise UserError(
            f"config.format_instruction = {path!r}: it must be a JSON object with a text under 'format_instruction'."
        )
    return text


def _is_file_name(instruction: str) -> bool:
    return instruction.endswith((".txt", ".json"))
