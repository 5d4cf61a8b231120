"""Requests to the benchmarks' judges: 6 annotations and 300 tokens of response, behind 1,300 of instruction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks import shape
from perception_r1_jax.inference import Engine
from perception_r1_jax.judge.on_mesh import Judge
from perception_r1_jax.judge.prefix import behind
from perception_r1_jax.judge.prompts import JudgePrompt, JudgeRequest, load_prompt
from perception_r1_jax.processing import Processor
from perception_r1_jax.records import Prompt

ANNOTATIONS, ANNOTATION_TOKENS, RESPONSE_TOKENS, PREFIX_TOKENS = 6, 12, 300, 1300
ANSWER_TOKENS = 9 * ANNOTATIONS
ROWS = 16
"""Requests that are run at a time, by ours and by transformers: more take longer a request on this machine."""


class Setup(NamedTuple):
    """A judge of the benchmarks' model, N requests to it, and their whole prompts, all of one length."""

    model: shape.Model
    engine: Engine
    judge: Judge
    requests: list[JudgeRequest]
    prompts: list[Prompt]

    @property
    def rests(self) -> list[Prompt]:
        """The prompts without what all share."""
        return [behind(prompt, self.judge.prefix_tokens) for prompt in self.prompts]

    def first(self, count: int) -> Setup:
        """The first so many requests."""
        return self._replace(requests=self.requests[:count], prompts=self.prompts[:count])


def make_requests(model: shape.Model, engine: Engine, count: int) -> Setup:
    """So many requests that differ from the first word of their own on, to the model that the engine runs."""
    rng, words = np.random.default_rng(0), one_token_words(model.processor)

    def text(tokens: int) -> str:
        return "".join(rng.choice(words, tokens))

    prompt = load_prompt()
    missing = PREFIX_TOKENS - len(make_judge(Judge, engine, model, prompt).prefix_tokens)
    judge = make_judge(Judge, engine, model, JudgePrompt(prompt.system + text(missing), prompt.user))
    asked = [
        JudgeRequest(tuple(text(ANNOTATION_TOKENS) for _ in range(ANNOTATIONS)), text(RESPONSE_TOKENS))
        for _ in range(count)
    ]
    prompts = [model.processor.chat_prompt(judge.prompt.messages(request)) for request in asked]
    sizes = {len(prompt.tokens) for prompt in prompts}
    if len(judge.prefix_tokens) != PREFIX_TOKENS or len(sizes) != 1:
        raise RuntimeError(f"a prefix of {len(judge.prefix_tokens)} tokens, prompts of {sizes}; they were to be alike.")
    return Setup(model, engine, judge, asked, prompts)


def make_judge(kind: type[Judge], engine: Engine, model: shape.Model, prompt: JudgePrompt) -> Judge:
    """A constrained judge."""
    limits = {"max_prompt_tokens": 4096, "max_new_tokens": 128}
    return kind(engine, model.processor, prompt, mode="constrained", batch_size=ROWS, **limits)


def one_token_words(processor: Processor) -> list[str]:
    """Words with a space before them that are a token each, so that a text has as many tokens as words."""
    tokenizer = processor.tokenizer
    texts = [tokenizer.decode([token]) for token in range(min(tokenizer.added_tokens_decoder))]
    words = [text for text in texts if text.startswith(" ") and text[1:].isalpha() and text.isascii()]
    return [word for word in words if len(tokenizer.encode(word, add_special_tokens=False)) == 1]


def judge_all(judge: Judge, asked: Sequence[JudgeRequest]) -> None:
    """Judges all requests, each of which must have its verdicts."""
    read = [judgement.parsed for judgement in judge.judge(asked)]
    if read != [ANNOTATIONS] * len(asked):
        raise RuntimeError(f"verdicts read: {read}, not {ANNOTATIONS} of each request.")


def ours(setup: Setup) -> Callable[[], object]:
    """From texts to verdicts."""
    return lambda: judge_all(setup.judge, setup.requests)
