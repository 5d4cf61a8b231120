"""A whole step of GRPO beside TRL's GRPOTrainer: rollout, cheap rewards and update.

    TRL_PYTHON=ENV/bin/python python benchmarks/grpo_step.py [--quick] [--only WORKLOAD] --json OUT

Both sides read the same random checkpoint and the same picture files, in float32 and on all cores, and take step after
step of a run with AdamW, no KL term and one update for each batch of responses. A step prepares the prompts from the
files, draws 8 responses to each of 2 prompts at temperature 1, all of exactly 64 tokens (what would end one is not
drawn before), scores them (form, answer, repetition, and their length in characters, so that rewards differ), and
updates all parameters with the clipped loss. It is an error where the sides did not see the same tokens of prompts, or
made responses of another length.

Ours does so by the training loop's own verbs, without a judge: answers are compared by math-verify in two workers;
picture and prompt are computed once for a group, in rollout and update. TRL generates with transformers and compares
answers as strings; it computes picture and prompt for each response. Both sides compute layers again in the backward
pass; in "tuned" TRL does not and has half as many responses at a time, and malloc keeps what is freed on both sides.
TRL_PYTHON names the Python of an environment that has it; without it only ours is timed. Each side has a process of its
own, and memory is its peak.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
from ml_collections import ConfigDict

from benchmarks import measure, shape, workload
from benchmarks.made import Made
from benchmarks.measure import Case
from benchmarks.side import Side
from benchmarks.train_work import Work
from benchmarks.trl_peer import VARIABLE, TrlPeer
from perception_r1_jax.config import default_config
from perception_r1_jax.processing import Processor
from perception_r1_jax.records import IMAGE_MARKER, Prompt
from perception_r1_jax.rewards.accuracy import AccuracyPool
from perception_r1_jax.training.loop import draw_groups
from perception_r1_jax.training.setup import prepare
from perception_r1_jax.training.stopping import StopRequest
from perception_r1_jax.training.timing import Clock
from perception_r1_jax.training.train_batches import make_train_batches, take_updates

PROBLEMS = "train.jsonl"
ANSWER = "3"
LARGE_SIDE, SMALL_SIDE = 900, 300
"""Pixels of a picture's sides: some 1,000 and 120 tokens."""


def defaults(folder: Path, quick: bool) -> list[Case]:
    """Beside the peer as it is: responses per second, and the memory of each side."""
    return beside_peer(folder, quick, "step", "peak_memory", tuned=False)


def tuned(folder: Path, quick: bool) -> list[Case]:
    """The same beside the peer with the settings that are best for it here."""
    return beside_peer(folder, quick, "tuned", "memory_tuned", tuned=True)


def small(folder: Path, quick: bool) -> list[Case]:
    """Both with pictures of a ninth as many patches, in which less is shared."""
    found = [
        beside_peer(folder, quick, f"small{name}", f"memory_small{name}", tuned=bool(name), side=SMALL_SIDE)
        for name in ("", "_tuned")
    ]
    return [case for cases in found for case in cases]


def beside_peer(
    folder: Path, quick: bool, speed: str, memory: str, *, tuned: bool, side: int = LARGE_SIDE
) -> list[Case]:
    """The cases of these names, of ours alone where there is no peer."""
    work = Work(2, 8, 8, 90) if quick else Work(2, 8, 64, side)
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        config = prepare_run(folder, scratch, work)
        found = {"ours": stack.enter_context(Side(our_side, config, scratch / "run", keep_freed_memory=tuned))}
        if measure.has_peer(VARIABLE in os.environ):
            found["peer"] = stack.enter_context(peer_side(config, tuned=tuned))
        case = time_sides(speed, found, work, rounds=1 if quick else 3)
        peaks = [side.peak() for side in found.values()]
    return [case, measure.compare(memory, "MiB", *peaks, less_is_better=True)]


def time_sides(name: str, found: Mapping[str, Callable[[], Made]], work: Work, rounds: int) -> Case:
    """The case of ours, and beside it of the other side if there is one."""
    made = {}

    def take(side: str) -> None:
        made[side] = found[side]()

    ours, *peer = measure.interleave({side: functools.partial(take, side) for side in found}, rounds).values()
    check(made, work)
    return measure.throughput(name, "responses/s", work.prompts * work.samples, ours, *peer)


def check(made: Mapping[str, Made], work: Work) -> None:
    """Raises RuntimeError unless the sides did the same work."""
    for side, one in made.items():
        if one.prompts != made["ours"].prompts:
            sizes = [[len(prompt) for prompt in each.prompts] for each in (one, made["ours"])]
            raise RuntimeError(
                f"{side} saw other prompts than ours, of {sizes[0]} tokens, where ours are of {sizes[1]}."
            )
        if one.lengths != [work.new_tokens] * work.prompts * work.samples:
            raise RuntimeError(f"{side} made responses of {one.lengths} tokens, not {work.new_tokens}.")
        if len(set(one.rewards)) == 1:
            raise RuntimeError(f"{side} gave all responses the reward {one.rewards[0]}: its gradient is zero.")


def our_side(config: ConfigDict, workdir: Path) -> Callable[[], Made]:
    """Steps by this project."""
    run = prepare(config, workdir)
    pool = AccuracyPool(config.reward.workers, config.reward.deadline_seconds, config.fidelity)
    stop, key, number = StopRequest(run.console), jax.random.key(config.seed), 0

    def take() -> Made:
        nonlocal number
        number += 1
        groups = draw_groups(run, number, jax.random.fold_in(key, number), pool, Clock(), stop, draw=0)
        batches, _ = make_train_batches(run, groups)
        take_updates(run, batches)
        prompts = [prompt.tokens.tolist() for prompt in groups.prompts]
        return Made.of(prompts, groups.rollout.mask.sum(-1).ravel().tolist(), groups.scores.total.ravel().tolist())

    return take


def peer_side(config: ConfigDict, *, tuned: bool) -> TrlPeer:
    """Steps by TRL."""
    data = Path(config.data.path)
    rows = map(json.loads, (data / PROBLEMS).read_text().splitlines())
    problems = [
        {"question": row["problem_text"], "image": str(data / row["image"]), "answer": row["answer_latex"]}
        for row in rows
    ]
    return TrlPeer(config, Processor.from_directory(config.model.path), problems, tuned=tuned)


def prepare_run(folder: Path, scratch: Path, work: Work) -> ConfigDict:
    """Writes the problems with their pictures; the config of the run that both sides take steps of."""
    directory = shape.write_checkpoint(folder, shape.STANDARD)
    processor = Processor.from_directory(directory)
    prompts = workload.picture_prompts(processor, work.prompts, work.side)
    rows = [write_problem(scratch, number, prompt) for number, prompt in enumerate(prompts)]
    (scratch / PROBLEMS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    bucket = workload.pack(processor, prompts)
    return make_config(directory, scratch, work, bucket.tokens.shape[1], bucket.image_ids.shape[1])


def write_problem(folder: Path, number: int, prompt: Prompt) -> dict[str, Any]:
    """Writes the picture; the problem's row."""
    (folder / f"{number}.png").write_bytes(prompt.problem.images[0])
    return {
        "id": number,
        "problem_text": prompt.problem.question.removeprefix(IMAGE_MARKER),
        "answer_latex": ANSWER,
        "image": f"{number}.png",
        "diagram_logic_form": [],
    }


def make_config(model: Path, data: Path, work: Work, length: int, windows: int) -> ConfigDict:
    """The run's."""
    config = default_config()
    config.steps = 1000
    config.format_instruction = ""
    config.data.path, config.data.shuffle = str(data), False
    config.model.path, config.model.dtype = str(model), "float32"
    config.rollout.prompts_per_step, config.rollout.samples_per_prompt = work.prompts, work.samples
    config.rollout.prompt_buckets, config.rollout.window_buckets = (length,), (windows,)
    config.rollout.response_buckets, config.rollout.min_new_tokens = (work.new_tokens,), work.new_tokens
    config.reward.function = "benchmarks.grpo_step:characters"
    config.grpo.micro_batch_prompts = 1
    return config


def characters(row: Mapping[str, Any], response: str) -> float:
    """A reward in which random responses differ."""
    return len(response) / 100


WORKLOADS: Mapping[str, measure.Workload] = {"defaults": defaults, "tuned": tuned, "small": small}

if __name__ == "__main__":
    measure.run(WORKLOADS, __doc__)
