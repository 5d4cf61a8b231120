"""The judge as a model on the mesh: requests in, judgements out, with the engine that also makes the rollouts.

Two modes. "constrained": the engine writes the fixed text of the answer and the model only chooses each digit, so the
answer is always well-formed. "free": the model writes the answer. Both read the resulting text with the same parser.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike

from perception_r1_jax.errors import UserError
from perception_r1_jax.inference import Engine, Generated, Sampling
from perception_r1_jax.judge.prompts import JudgePrompt, JudgeRequest, load_prompt
from perception_r1_jax.judge.template import MODES, answer_template, answer_text
from perception_r1_jax.judge.verdicts import NONE, NOT_FINITE, OK, TOO_LONG, TOO_MANY, Judgement, read_answer
from perception_r1_jax.models import count_params, load_config
from perception_r1_jax.processing import Processor, PromptTooLong, batch_prompts, bucket_size
from perception_r1_jax.records import Prompt
from perception_r1_jax.sharding import make_mesh
from perception_r1_jax.weights import locate_model, stream_params

_PROBE_COUNT = 12  # numbers of one digit and of two


class Answer(NamedTuple):
    """What the judge has written to one request.

    Attributes:
        tokens: ids, the one that stops included; none without an answer.
        stopped: false where the answer was cut at its limit.
        status: "ok", or why there is no answer.
    """

    tokens: tuple[int, ...]
    stopped: bool
    status: str


class _Ask(NamedTuple):
    """A request ready to run: its place in the caller's list, m, its prompt, and its buckets (L, C)."""

    index: int
    count: int
    prompt: Prompt
    bucket: tuple[int, int]


class Judge:
    """A judging LLM.

    Attributes:
        prompt: the templates that requests are written with.
    """

    def __init__(
        self,
        engine: Engine,
        processor: Processor,
        prompt: JudgePrompt,
        *,
        mode: str,
        max_prompt_tokens: int,
        max_new_tokens: int,
        batch_size: int,
        fidelity: str = "default",
    ):
        """Args as in `config.judge`; with fidelity "paper" texts are pasted in raw and answers read as the authors do.

        Raises:
            UserError: an unknown mode, fidelity "paper" in another mode than "free", or (constrained) a tokenizer
                without a single token for a verdict's digit.
        """
        if mode not in MODES:
            raise UserError(f"config.judge.mode is {mode!r}; choose one of {', '.join(MODES)}.")
        if fidelity == "paper" and mode != "free":
            raise UserError(f"the judge's mode is {mode!r}; with fidelity 'paper' it must be 'free'.")
        self.prompt = prompt
        self._engine = engine
        self._processor = dataclasses.replace(processor, max_prompt_tokens=max_prompt_tokens)
        self._constrained, self._fidelity = mode == "constrained", fidelity
        self._max_prompt_tokens, self._max_new_tokens = max_prompt_tokens, max_new_tokens
        self._batch_size = batch_size
        self._template = functools.cache(functools.partial(answer_template, processor.tokenizer))
        if self._constrained:
            self._template(_PROBE_COUNT)

    def judge(self, requests: Sequence[JudgeRequest]) -> list[Judgement]:
        """One judgement per request, in their order. Failures are those of `parse_verdicts` and of `answer`."""
        answers = self.answer(requests)
        return [self._read(answer, len(request.annotations)) for answer, request in zip(answers, requests)]

    def answer(self, requests: Sequence[JudgeRequest]) -> list[Answer]:
        """One answer per request, in their order.

        Batches depend on the requests alone: sorted by bucket, then by place, always of `batch_size` rows. A request
        without annotations is not asked ("none"). Failures: "too_long" (the prompt, which is never cut), "too_many"
        (annotations for max_new_tokens), "not_finite" (the model's logits).
        """
        prepared = [self._prepare(index, request) for index, request in enumerate(requests)]
        asks = [item for item in prepared if isinstance(item, _Ask)]
        for batch in batches(asks, self._batch_size):
            generated = self._generate(batch)
            for row, ask in enumerate(batch):
                prepared[ask.index] = self._answer(generated, row)
        return prepared

    def read_messages(self, messages: object) -> JudgeRequest:
        """The request that this judge writes as these messages. Raises as `JudgePrompt.read_messages`."""
        return self.prompt.read_messages(messages, raw=self._fidelity == "paper")

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of an answer's tokens, or of the first of them."""
        return self._processor.decode(tokens)

    @property
    def parameters(self) -> int:
        """How many the model has."""
        return count_params(self._engine.config)

    def metrics(self) -> dict[str, float]:
        """None beside those of its judgements."""
        return {}

    @property
    def compilations(self) -> int:
        """Programs compiled so far."""
        return self._engine.compilations

    def _prepare(self, index: int, request: JudgeRequest) -> _Ask | Answer:
        """The request's prompt and buckets, or why it cannot be asked."""
        count = len(request.annotations)
        if count == 0:
            return _no_answer(NONE)
        write = self.prompt.raw_messages if self._fidelity == "paper" else self.prompt.messages
        try:
            prompt = self._processor.text_prompt(write(request))
        except PromptTooLong:
            return _no_answer(TOO_LONG)
        answer = len(self._processor.tokenizer.encode(answer_text([0] * count), add_special_tokens=False)) + 1
        if answer > self._max_new_tokens and self._fidelity != "paper":
            return _no_answer(TOO_MANY)
        response_bucket = bucket_size(answer, self._max_new_tokens) if self._constrained else self._max_new_tokens
        return _Ask(index, count, prompt, (bucket_size(len(prompt.tokens), self._max_prompt_tokens), response_bucket))

    def _generate(self, batch: Sequence[_Ask]) -> Generated:
        """Answers to one batch of one bucket, G = 1; rows past the batch's end are filler."""
        length, response = batch[0].bucket
        prompts = batch_prompts(
            [ask.prompt for ask in batch],
            rows=self._batch_size,
            length=length,
            windows=0,
            pad_id=self._processor.pad_id,
        )
        sampling = Sampling(
            max_new_tokens=response,
            stop_ids=self._processor.stop_ids,
            pad_id=self._processor.pad_id,
            temperature=0.0,
            banned_ids=self._processor.banned_ids,
        )
        key = jax.random.key(0)  # greedy: never drawn from
        if not self._constrained:
            return self._engine.generate(prompts, 1, sampling, key)
        choices = self._template(_PROBE_COUNT).choice_ids
        forced = self._forced(batch, response)
        return self._engine.generate(prompts, 1, sampling, key, forced=forced, choice_ids=choices)

    def _forced(self, batch: Sequence[_Ask], response: int) -> np.ndarray:
        """int32 [N, C]: each row's answer with open digits, then stop tokens."""
        forced = np.full((self._batch_size, response), self._processor.stop_ids[0], np.int32)
        for row, ask in enumerate(batch):
            tokens = self._template(ask.count).tokens
            forced[row, : len(tokens)] = tokens
        return forced

    def _answer(self, generated: Generated, row: int) -> Answer:
        if np.isnan(generated.logps[row, 0]).any():  # else a broken judge would say 0 to everything
            return _no_answer(NOT_FINITE)
        tokens = generated.tokens[row, 0][generated.mask[row, 0]]
        return Answer(tuple(tokens.tolist()), bool(generated.stopped[row, 0]), OK)

    def _read(self, answer: Answer, count: int) -> Judgement:
        if answer.status != OK:
            return Judgement(None, count, 0, answer.status)
        return read_answer(self.decode(answer.tokens), count, self._fidelity)


def _no_answer(status: str) -> Answer:
    return Answer((), False, status)


def batches(asks: Sequence[_Ask], size: int) -> Iterator[list[_Ask]]:
    """Runs of at most `size` requests of one bucket: smallest bucket first, the caller's order within."""
    ordered = sorted(asks, key=lambda ask: (ask.bucket, ask.index))
    for _, run in itertools.groupby(ordered, key=lambda ask: ask.bucket):
        run = list(run)
        yield from (run[start : start + size] for start in range(0, len(run), size))


def load_judge(
    directory: str | Path,
    mesh: Mesh | None = None,
    *,
    tokenizer: str | Path = "",
    prompt: str | Path = "",
    mode: str = "constrained",
    max_prompt_tokens: int = 8192,
    max_new_tokens: int = 512,
    batch_size: int = 16,
    dtype: DTypeLike = jnp.bfloat16,
    weights_int8: bool = False,
    fidelity: str = "default",
) -> Judge:
    """The judge in any directory that holds a model; on a mesh of all devices where none is given.

    Args as in `config.judge`. Raises what reading the model, its tokenizer and the prompt raises.
    """
    mesh = make_mesh() if mesh is None else mesh
    model_dir = locate_model(directory).model_dir
    config = load_config(model_dir)
    engine = Engine(config, None, mesh, dtype=dtype, weights_int8=weights_int8)
    engine.read(functools.partial(stream_params, directory, config))
    return Judge(
        engine,
        Processor.from_directory(model_dir, tokenizer_dir=tokenizer or None),
        load_prompt(prompt),
        mode=mode,
        max_prompt_tokens=max_prompt_tokens,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        fidelity=fidelity,
    )
