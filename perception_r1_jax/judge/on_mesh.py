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
from perception_r1_jax.judge.verdicts import NONE, OK, Judgement, parse_verdicts, parse_verdicts_paper
from perception_r1_jax.models import ModelConfig, load_config
from perception_r1_jax.processing import Processor, PromptTooLong, batch_prompts, bucket_size
from perception_r1_jax.records import Prompt
from perception_r1_jax.sharding import make_mesh
from perception_r1_jax.weights import load_params, locate_model

TOO_LONG, TOO_MANY, NOT_FINITE = "too_long", "too_many", "not_finite"

_PROBE_COUNT = 12  # numbers of one digit and of two


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
        self._constrained, self._paper = mode == "constrained", fidelity == "paper"
        self._max_prompt_tokens, self._max_new_tokens = max_prompt_tokens, max_new_tokens
        self._batch_size = batch_size
        self._template = functools.cache(functools.partial(answer_template, processor.tokenizer))
        if self._constrained:
            self._template(_PROBE_COUNT)

    def judge(self, requests: Sequence[JudgeRequest]) -> list[Judgement]:
        """One judgement per request, in their order.

        Batches depend on the requests alone: sorted by bucket, then by place, always of `batch_size` rows. A request
        without annotations is not asked ("none"). Failures beside those of `parse_verdicts`: "too_long" (the prompt,
        which is never cut), "too_many" (annotations for max_new_tokens), "not_finite" (the model's logits).
        """
        prepared = [self._prepare(index, request) for index, request in enumerate(requests)]
        asks = [item for item in prepared if isinstance(item, _Ask)]
        for batch in batches(asks, self._batch_size):
            generated = self._generate(batch)
            for row, ask in enumerate(batch):
                prepared[ask.index] = self._read(generated, row, ask.count)
        return prepared

    @property
    def model(self) -> ModelConfig:
        """Shapes of the judging model."""
        return self._engine.config

    @property
    def compilations(self) -> int:
        """Programs compiled so far."""
        return self._engine.compilations

    def _prepare(self, index: int, request: JudgeRequest) -> _Ask | Judgement:
        """The request's prompt and buckets, or the judgement of one that cannot be asked."""
        count = len(request.annotations)
        if count == 0:
            return Judgement(None, 0, 0, NONE)
        write = self.prompt.raw_messages if self._paper else self.prompt.messages
        try:
            prompt = self._processor.text_prompt(write(request))
        except PromptTooLong:
            return Judgement(None, count, 0, TOO_LONG)
        answer = len(self._processor.tokenizer.encode(answer_text([0] * count), add_special_tokens=False)) + 1
        if answer > self._max_new_tokens and not self._paper:
            return Judgement(None, count, 0, TOO_MANY)
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

    def _read(self, generated: Generated, row: int, count: int) -> Judgement:
        if np.isnan(generated.logps[row, 0]).any():  # else a broken judge would say 0 to everything
            return Judgement(None, count, 0, NOT_FINITE)
        text = self._processor.decode(generated.tokens[row, 0][generated.mask[row, 0]])
        if not self._paper:
            return parse_verdicts(text, count)
        scores = parse_verdicts_paper(text)
        return Judgement(scores, count, len(scores), OK)


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
    fidelity: str = "default",
) -> Judge:
    """The judge in any directory that holds a model; on a mesh of all devices where none is given.

    Args as in `config.judge`. Raises what reading the model, its tokenizer and the prompt raises.
    """
    mesh = make_mesh() if mesh is None else mesh
    model_dir = locate_model(directory).model_dir
    config = load_config(model_dir)
    return Judge(
        Engine(config, load_params(directory, config, mesh, dtype), mesh, dtype=dtype),
        Processor.from_directory(model_dir, tokenizer_dir=tokenizer or None),
        load_prompt(prompt),
        mode=mode,
        max_prompt_tokens=max_prompt_tokens,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        fidelity=fidelity,
    )
