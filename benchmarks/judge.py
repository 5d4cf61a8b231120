"""The judge beside transformers + torch `generate` on the same random checkpoint, beside vLLM, and its own parts.

    python benchmarks/judge.py [--requests N] [--quick] [--only WORKLOAD] --json OUT

Each request has 6 annotations and a response of 300 tokens, behind an instruction of 1,300 tokens. Ours reads six
digits in a known answer, from text to verdicts; the peers write the 54 tokens that such an answer has. All compute in
float32. Where VLLM_PYTHON names the Python of an environment with vLLM's CPU build, its case is measured too. Where
there is a GPU or TPU, `large` is ours alone on a model of Qwen2.5-7B's shape, in bfloat16 and in 8 bits.

Slow sides answer fewer requests, in batches of the same size, and the rates are compared; how many is printed.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
import numpy as np

from benchmarks import judge_large, measure, shape, vllm_peer, workload
from benchmarks.judge_requests import (
    ANSWER_TOKENS,
    ROWS,
    Setup,
    judge_all,
    make_judge,
    make_requests,
    ours,
)
from benchmarks.measure import Case
from benchmarks.rollout import KEY, MIB, load_peer
from perception_r1_jax.assets import MINI_JUDGE, MINI_JUDGE_PROMPT
from perception_r1_jax.data.geometry_world.conversations import judge_case
from perception_r1_jax.inference import Engine, Generated, Sampling
from perception_r1_jax.inference.choosing import Chosen
from perception_r1_jax.judge.on_mesh import Judge, load_judge
from perception_r1_jax.models import Prefix, embed_prompts, prefill
from perception_r1_jax.records import Prompt
from perception_r1_jax.sharding import make_mesh

REQUESTS, QUICK_REQUESTS = 256, 3
PART = 64
"""Requests that the slow sides answer, where there are more: their batches are all alike, and so is the rate."""


Side = Callable[[Setup], Callable[[], object]]
"""From some requests to a run that answers them."""


class Uncached(Judge):
    """A judge that runs every request whole."""

    prefix_tokens = np.zeros(0, np.int32)


def requests(folder: Path, quick: bool, count: int) -> list[Case]:
    """Beside `generate`, which prefills each prompt whole, or behind a cache made by hand."""
    setup, sides = make_setup(folder, count), {"ours": ours}
    if peer := load_peer(setup.model):
        sides |= {"requests": functools.partial(generate, peer), "shared_cache": functools.partial(behind_cache, peer)}
    return time_sides(setup, sides, {"ours": count}, rounds=1 if quick else 2)


def vllm(folder: Path, quick: bool, count: int) -> list[Case]:
    """Beside vLLM, whose prefix cache is on, and empty before each run."""
    if not measure.has_peer(vllm_peer.VARIABLE in os.environ):
        return []
    setup = make_setup(folder, count)
    length = len(setup.prompts[0].tokens) + ANSWER_TOKENS
    with vllm_peer.VllmPeer(setup.model.directory, setup.model.processor, length) as peer:
        sides = {"ours": ours, "vllm_prefix": lambda part: peer.side(part.prompts, 1, ANSWER_TOKENS)}
        return time_sides(setup, sides, dict.fromkeys(sides, count), rounds=1 if quick else 2)


def parts(folder: Path, quick: bool, count: int) -> list[Case]:
    """What the prefix and the known text save, and how far from the bare prefill of what no request can do without."""
    setup = make_setup(folder, count)
    prefix = setup.engine.prefix(setup.judge.prefix_tokens)
    sides = {
        "ours": ours,
        "uncached": uncached,
        "free_text": functools.partial(free_text, prefix),
        "floor": functools.partial(bare_prefill, prefix),
        "floor_alone": functools.partial(bare_prefill, None),
    }
    speed = time_sides(setup, sides, {}, rounds=1 if quick else 2)
    batch = setup.first(ROWS)
    (free,), (whole,) = (free_text(shared, batch)() for shared in (prefix, None))
    written = free.stats.decoded / len(batch.requests)
    once = sum(leaf.nbytes for leaf in jax.tree.leaves(prefix)) / MIB
    in_each = (whole.stats.prompt_bytes - free.stats.prompt_bytes) / MIB
    return [
        *speed,
        measure.compare("model_calls", "a request", steps_chosen(setup.first(1)), written, less_is_better=True),
        measure.compare("prefix_bytes", "MiB", once, in_each, less_is_better=True),
    ]


def modes(folder: Path, quick: bool, count: int) -> list[Case]:
    """The embedded judge, which writes notes before its verdicts: where both modes say the same of a request.

    The share is of the requests whose free answer is well-formed.
    """
    mesh, written = make_mesh(devices=jax.devices()[:1]), 256
    settings = {"max_prompt_tokens": 160, "max_new_tokens": written, "batch_size": 32}
    load = functools.partial(load_judge, MINI_JUDGE, mesh, prompt=MINI_JUDGE_PROMPT, dtype=np.float32, **settings)
    cases = [judge_case(index, "test") for index in range(count)]
    free, chosen = load(mode="free").judge(cases), load(mode="constrained", max_thought_tokens=written).judge(cases)
    formed = [one.verdicts == other.verdicts for one, other in zip(free, chosen) if not one.failed]
    print(f"  requests whose free answer is well-formed: {len(formed)} of {count}", flush=True)
    return [measure.compare("modes_agree", "share", statistics.mean(formed))]


def time_sides(setup: Setup, sides: Mapping[str, Side], sizes: Mapping[str, int], rounds: int) -> list[Case]:
    """Requests per second of ours beside those of each other side, or alone.

    A side answers as many requests as `sizes` says, else the first `PART`; before it is timed, the first batch.
    """
    count = {name: sizes.get(name, min(PART, len(setup.requests))) for name in sides}
    print("  requests answered:", ", ".join(f"{name} {number}" for name, number in count.items()), flush=True)
    seconds = measure.interleave(
        {name: make(setup.first(count[name])) for name, make in sides.items()},
        rounds,
        warm={name: make(setup.first(ROWS)) for name, make in sides.items()},
    )
    rates = {name: number / statistics.median(seconds[name]) for name, number in count.items()}
    others = [name for name in sides if name != "ours"] or ["requests"]
    return [measure.compare(name, "requests/s", rates["ours"], rates.get(name)) for name in others]


def uncached(setup: Setup) -> Callable[[], object]:
    """The same with every prompt whole."""
    whole = make_judge(Uncached, setup.engine, setup.model, setup.judge.prompt)
    return lambda: judge_all(whole, setup.requests)


class Watched:
    """An engine that keeps what it has chosen."""

    def __init__(self, engine: Engine):
        self._engine, self.chosen = engine, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def choose(self, *args: Any, **named: Any) -> Chosen:
        self.chosen.append(self._engine.choose(*args, **named))
        return self.chosen[-1]


def steps_chosen(setup: Setup) -> int:
    """Decoding steps that the judge takes for one batch."""
    watched = Watched(setup.engine)
    judge_all(make_judge(Judge, watched, setup.model, setup.judge.prompt), setup.requests)
    (chosen,) = watched.chosen
    return int(chosen.steps.max())


def make_setup(folder: Path, count: int) -> Setup:
    """So many requests to the 66 M model."""
    model = shape.load_model(folder, shape.STANDARD)
    return make_requests(model, Engine(model.config, model.params, model.mesh), count)


def generate(peer: Any, setup: Setup) -> Callable[[], object]:
    """The peer's answers to whole prompts."""
    inputs = list(map(peer.inputs, in_batches(setup.prompts)))
    return lambda: [peer.generate(batch, 1, ANSWER_TOKENS) for batch in inputs]


def behind_cache(peer: Any, setup: Setup) -> Callable[[], object]:
    """The peer's answers behind a cache of the instruction, made once by hand and copied for each batch."""
    inputs = list(map(peer.inputs, in_batches(setup.prompts)))
    prefix = peer.prefix(inputs[0], len(setup.judge.prefix_tokens))
    return lambda: [peer.generate_behind(batch, prefix, ANSWER_TOKENS) for batch in inputs]


def free_text(prefix: Prefix | None, setup: Setup) -> Callable[[], list[Generated]]:
    """As many tokens as an answer has, chosen freely behind the cached instruction, or behind whole prompts without a
    prefix; nothing ends them before.
    """
    processor = setup.model.processor
    banned = processor.banned_ids + processor.stop_ids
    greedy = Sampling(ANSWER_TOKENS, processor.stop_ids, processor.pad_id, temperature=0.0, banned_ids=banned)
    prompts = setup.rests if prefix else setup.prompts
    batches = [workload.pack(processor, each) for each in in_batches(prompts)]
    return lambda: [setup.engine.generate(batch, 1, greedy, KEY, prefix=prefix) for batch in batches]


def bare_prefill(prefix: Prefix | None, setup: Setup) -> Callable[[], object]:
    """Running the tokens that are each request's own, without any padding, to the logits of one more token.

    They attend to the instruction, which is there already; without a prefix they stand by themselves.
    """
    model, length = setup.model, len(setup.rests[0].tokens)
    batches = [
        jax.tree.map(jax.numpy.asarray, workload.stack(model.processor, rests, ROWS, length))
        for rests in in_batches(setup.rests)
    ]
    params = setup.engine.reshard(model.params)
    return lambda: [jax.block_until_ready(_prefill(model.config, params, batch, prefix)) for batch in batches]


@functools.partial(jax.jit, static_argnums=0)
def _prefill(config, params, batch, prefix):
    return prefill(config, params, batch, embed_prompts(config, params, batch), 1, prefix)[0]


def in_batches(prompts: Sequence[Prompt]) -> list[Sequence[Prompt]]:
    """`ROWS` at a time."""
    return [prompts[start : start + ROWS] for start in range(0, len(prompts), ROWS)]


WORKLOADS: Mapping[str, Callable[[Path, bool, int], list[Case]]] = {
    "requests": requests,
    "vllm": vllm,
    "parts": parts,
    "modes": modes,
    "large": judge_large.large,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Reads how many requests, and leaves the rest of the command line to `measure.run`."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--requests", type=int)
    options, rest = parser.parse_known_args(argv)

    def workload_of(run: Callable) -> measure.Workload:
        def sized(folder: Path, quick: bool) -> list[Case]:
            return run(folder, quick, options.requests or (QUICK_REQUESTS if quick else REQUESTS))

        return sized

    measure.run({name: workload_of(run) for name, run in WORKLOADS.items()}, __doc__, rest)


if __name__ == "__main__":
    main()
