"""The judge as a model on the mesh: requests in, judgements out, with the engine that also makes the rollouts.

Two modes. "constrained": the engine writes the fixed text of the answer and the model only chooses each digit, so the
answer is always well-formed; it may think before. "free": the model writes the answer. One parser reads both.

The instruction that all requests begin with is computed once, with the first of them, and kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike

from perception_r1_jax.data.errors import DroppedProblem
from perception_r1_jax.errors import UserError
from perception_r1_jax.host_memory import check_host_memory
from perception_r1_jax.inference import Engine
from perception_r1_jax.inference.engine import CACHE_MEMORY, WEIGHTS_MEMORY
from perception_r1_jax.judge.answers import Answer, Batching, ChosenAnswers, FreeAnswers, ThoughtAnswers, no_answer
from perception_r1_jax.judge.call import AnyJudge, JudgeCall, Judging, never_stop
from perception_r1_jax.judge.pictures import AnyPrompt, AnyRequest, check_sees, load_any_prompt
from perception_r1_jax.judge.prefix import PROBES, behind, shared_tokens
from perception_r1_jax.judge.prompts import JudgeRequest
from perception_r1_jax.judge.template import MODES, answer_text
from perception_r1_jax.judge.verdicts import BAD_PICTURE, NONE, OK, TOO_LONG, TOO_MANY, Judgement, read_answer
from perception_r1_jax.models import Prefix, count_params, load_config
from perception_r1_jax.processing import Processor, PromptTooLong, Seen, batch_prompts, bucket_size, window_bucket
from perception_r1_jax.records import ImageSource, Problem, Prompt
from perception_r1_jax.sharding import make_mesh
from perception_r1_jax.weights import locate_model, stream_params


class _Ask(NamedTuple):
    """A request ready to run.

    Attributes:
        index: its place in the caller's list.
        count: m.
        prompt: without what all share.
        bucket: the prompt's tokens L and windows W, the answer's bucket, and whether it is run behind the prefix.
    """

    index: int
    count: int
    prompt: Prompt
    bucket: tuple[int, int, int, bool]


class Judge(AnyJudge):
    """A judging LLM.

    Attributes:
        prompt: the templates that requests are written with.
    """

    def __init__(
        self,
        engine: Engine,
        processor: Processor,
        prompt: AnyPrompt,
        *,
        mode: str,
        max_prompt_tokens: int,
        max_new_tokens: int,
        batch_size: int,
        max_thought_tokens: int = 0,
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
        self._fidelity, self._batch_size = fidelity, batch_size
        self._max_prompt_tokens, self._max_new_tokens = max_prompt_tokens, max_new_tokens
        self._see = functools.lru_cache(1)(self._see_pictures)  # a group's requests, one after another, share theirs
        if mode == "free":
            self._answers = FreeAnswers(engine, processor, max_new_tokens)
        elif max_thought_tokens:
            self._answers = ThoughtAnswers(engine, processor, max_thought_tokens)
        else:
            self._answers = ChosenAnswers(engine, processor)

    @functools.cached_property
    def prefix_tokens(self) -> np.ndarray:
        """int32 [P], the tokens that all requests begin with, as far as `prefix.PROBES` show it."""
        unlimited = dataclasses.replace(self._processor, max_prompt_tokens=None)
        requests = [self.prompt.request(problem, problem.question) for problem in PROBES]
        return shared_tokens([unlimited.chat_prompt(self._write(request)) for request in requests])

    def check_room(self) -> None:
        """Raises `UserError` unless requests have room within their limit, and the longest of them in the cache.

        No run is to end at one of them.
        """
        shared = len(self.prefix_tokens)
        longest = self._max_prompt_tokens - shared
        if longest < 1:
            raise UserError(
                f"config.judge.max_prompt_tokens is {self._max_prompt_tokens}, and the instruction that all requests "
                f"begin with has {shared} tokens: every request would be too long. Raise it (--max_prompt_tokens) so "
                "that annotations or pictures and a response have room behind the instruction."
            )
        try:
            self._answers.check_room(self._batch_size, longest, self._max_new_tokens, shared)
        except UserError as error:
            raise UserError(
                f"the judge may get requests of {self._max_prompt_tokens} tokens: {error} The judge's limits are "
                "config.judge.max_prompt_tokens, max_thought_tokens and max_new_tokens."
            ) from error

    @functools.cached_property
    def _prefix(self) -> Prefix:
        return self._engine.prefix(self.prefix_tokens)

    def begin(self, judging: Judging = contextlib.nullcontext, check: Callable[[], None] = never_stop) -> MeshCall:
        """As of `AnyJudge`. Failures are those of `parse_verdicts` and of `answer`."""
        return MeshCall(self, judging, check)

    def answer(self, requests: Sequence[AnyRequest]) -> list[Answer]:
        """One answer per request, in their order.

        A request without annotations, or without a picture for a judge that sees, is not asked ("none"). Failures:
        "too_long" (the prompt, which is never cut), "too_many" (verdicts for max_new_tokens), "bad_picture" (absent,
        damaged, or not as many as the question has markers), "not_finite" (the model's logits), "unfinished" (thoughts
        without an end).
        """
        with self.begin() as call:
            call.add(requests)
            return call.answers()

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

    def take_metrics(self) -> dict[str, float]:
        """None beside those of its judgements."""
        return {}

    @property
    def compilations(self) -> int:
        """Programs compiled so far."""
        return self._engine.compilations

    def _prepare(self, index: int, request: AnyRequest) -> _Ask | Answer:
        """The request's prompt and buckets, or why it cannot be asked."""
        count = request.expected
        if count == 0:
            return no_answer(NONE)
        try:
            prompt = self._processor.chat_prompt(self._write(request), self._see(request.images))
        except PromptTooLong:
            return no_answer(TOO_LONG)
        except DroppedProblem:
            return no_answer(BAD_PICTURE)
        answer = len(self._processor.tokenizer.encode(answer_text([0] * count), add_special_tokens=False)) + 1
        if answer > self._max_new_tokens and self._fidelity != "paper":
            return no_answer(TOO_MANY)
        return self._ask(index, count, prompt)

    def _see_pictures(self, images: tuple[ImageSource, ...]) -> Seen:
        return self._processor.see(Problem("judged", "", images, answer=""))

    def _write(self, request: AnyRequest) -> list[dict[str, Any]]:
        return (self.prompt.raw_messages if self._fidelity == "paper" else self.prompt.messages)(request)

    def _ask(self, index: int, count: int, prompt: Prompt) -> _Ask:
        rest = behind(prompt, self.prefix_tokens)
        own, answer_bucket = self._answers.prepare(prompt if rest is None else rest, count)
        longest = self._max_prompt_tokens - len(prompt.tokens) + len(own.tokens)
        length = bucket_size(len(own.tokens), longest, finer=self._answers.finer)
        return _Ask(index, count, own, (length, window_bucket(prompt), answer_bucket, rest is not None))

    def _answer(self, batch: Sequence[_Ask], check: Callable[[], None]) -> list[Answer]:
        """Answers to one batch of one bucket; rows past the batch's end are filler."""
        length, windows, answer_bucket, behind_prefix = batch[0].bucket
        stack = functools.partial(
            batch_prompts, rows=self._batch_size, length=length, windows=windows, pad_id=self._processor.pad_id
        )
        batching = Batching(stack, self._prefix if behind_prefix else None, check)
        return self._answers.write([ask.prompt for ask in batch], [ask.count for ask in batch], answer_bucket, batching)

    def _read(self, answer: Answer, count: int) -> Judgement:
        if answer.status != OK:
            return Judgement(None, count, 0, answer.status)
        judgement = read_answer(self.decode(answer.tokens), count, self._fidelity)
        return dataclasses.replace(judgement, probabilities=answer.probabilities)


class MeshCall(JudgeCall):
    """Requests to a judge on the mesh, in batches that depend on the requests and their order alone.

    As soon as there are `batch_size` requests of one bucket, they are judged; what is left of the buckets at the end,
    the smallest first. A batch always has the shape of a full one.
    """

    def __init__(self, judge: Judge, judging: Judging, check: Callable[[], None]):
        """Args as of `AnyJudge.begin`."""
        self._judge, self._judging, self._check = judge, judging, check
        self._counts: list[int] = []
        self._answers: list[_Ask | Answer] = []
        self._waiting: dict[tuple[int, int, int, bool], list[_Ask]] = defaultdict(list)
        self._fetch_weights = True
        self._weights = contextlib.ExitStack()  # holds them on the devices, from the first batch to the call's end

    def __exit__(self, *error: object) -> None:
        self._weights.__exit__(*error)

    def add(self, requests: Sequence[AnyRequest]) -> None:
        """As of `JudgeCall`; batches that are full now are judged before it returns."""
        with self._judging():
            for request in requests:
                self._counts.append(request.expected)
                self._answers.append(self._judge._prepare(len(self._answers), request))
                if isinstance(ask := self._answers[-1], _Ask):
                    self._waiting[ask.bucket].append(ask)
                    if len(self._waiting[ask.bucket]) == self._judge._batch_size:
                        self._run(ask.bucket)

    def finish(self) -> list[Judgement]:
        """As of `JudgeCall`."""
        return [self._judge._read(answer, count) for answer, count in zip(self.answers(), self._counts)]

    def answers(self) -> list[Answer]:
        """One answer per request, in their order."""
        with self._judging():
            for bucket in sorted(self._waiting):
                self._run(bucket)
        return self._answers

    def _run(self, bucket: tuple[int, int, int, bool]) -> None:
        self._check()
        if self._fetch_weights:
            self._weights.enter_context(self._judge._engine.on_device())
            self._fetch_weights = False
        batch = self._waiting.pop(bucket)
        for ask, answer in zip(batch, self._judge._answer(batch, self._check)):
            self._answers[ask.index] = answer


def load_judge(
    directory: str | Path,
    mesh: Mesh | None = None,
    *,
    tokenizer: str | Path = "",
    prompt: str | Path = "",
    sees: bool = False,
    mode: str = "constrained",
    max_prompt_tokens: int = 8192,
    max_thought_tokens: int = 0,
    max_new_tokens: int = 512,
    batch_size: int = 16,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    dtype: DTypeLike = jnp.bfloat16,
    weights_memory: float = WEIGHTS_MEMORY,
    cache_memory: float = CACHE_MEMORY,
    weights_int8: bool = False,
    host_memory: bool = False,
    fidelity: str = "default",
) -> Judge:
    """The judge in any directory that holds a model; on a mesh of all devices where none is given.

    Args as in `config.judge`, pixel limits as in `config.model`: None stands for those of the judge's own directory.

    Raises:
        UserError: the judge is to see, and its model cannot; or the devices lack the memory that the weights are to lie
            in, or that for the longest requests; or `max_prompt_tokens` has room for none. Also what reading model,
            tokenizer and prompt raises.
    """
    mesh = make_mesh() if mesh is None else mesh
    if host_memory:
        check_host_memory("judge.host_memory", mesh)
    model_dir = locate_model(directory).model_dir
    config = load_config(model_dir)
    if sees:
        check_sees(config, directory)
    engine = Engine(
        config,
        None,
        mesh,
        dtype=dtype,
        weights_memory=weights_memory,
        cache_memory=cache_memory,
        weights_int8=weights_int8,
    )
    engine.read(functools.partial(stream_params, directory, config), host_memory=host_memory)
    judge = Judge(
        engine,
        Processor.from_directory(
            model_dir,
            tokenizer_dir=tokenizer or None,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
            fidelity=fidelity,
        ),
        load_any_prompt(prompt, sees=sees),
        mode=mode,
        max_prompt_tokens=max_prompt_tokens,
        max_thought_tokens=max_thought_tokens,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        fidelity=fidelity,
    )
    judge.check_room()
    return judge
