"""Runs of the ablation that never were: their config file, working directories and records."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from perception_r1_jax.claim.plan import PlannedRun, plan_runs
from perception_r1_jax.claim.record import Record, record_run
from perception_r1_jax.claim.variants import VARIANTS
from perception_r1_jax.evaluation.compare import result_fields
from perception_r1_jax.evaluation.files import Evaluated, items_file, write_evaluated
from perception_r1_jax.evaluation.items import Item
from perception_r1_jax.evaluation.summary import summarise
from perception_r1_jax.json_files import write_json

STEPS = 20
FACT = "The length of AB is 7."
CONFIG = """
from perception_r1_jax.config import default_config


def get_config():
    config = default_config()
    config.steps = {steps}
    config.data.path = {data!r}
    config.model.path = config.judge.path = "random"
    config.reward.visual_weight = {weight}
    config.evaluation.split, config.evaluation.checker = "test", {checker!r}
    return config
"""

CHECKER = __name__
PROBLEMS = 60
FAMILIES = ("circles", "triangles", "triangles")
"""Of three problems."""


@dataclasses.dataclass(frozen=True)
class Told:
    """What the checker says of a response: a response to a test problem is this very text, in JSON."""

    perceived: bool
    right: int
    wrong: int
    states: Sequence[str]
    looks_first: bool
    wrong_kinds: Sequence[str]


def perceive(row, response: str) -> Told:
    """The checker: what the response says of itself."""
    return Told(**json.loads(response))


traits = perceive


def reflected(annotation: str, response: str) -> bool:
    """What an ideal judge says."""
    return annotation in response


def probe(row) -> tuple[str, str]:
    """Asked by an evaluation alone."""
    raise NotImplementedError


probe_right = probe


def write_config(folder: Path, *, weight: float = 0.5, checker: str = CHECKER, **answers: str) -> Path:
    """A config file, and the problems that it names."""
    write_data(folder, **answers)
    path = folder / "small.py"
    path.write_text(CONFIG.format(steps=STEPS, data=str(folder / "data"), weight=weight, checker=checker))
    return path


def write_data(folder: Path, train: str = "7", test: str = "7") -> None:
    """Two problems to learn from, and those of the evaluation, with these answers; their ids are always the same."""
    row = {"problem": "What is AB?", "images": None, "visual_key_info": f"<info1>{FACT}</info1>"}
    (folder / "data").mkdir(exist_ok=True)
    for split, count, answer in (("train", 2, train), ("test", PROBLEMS, test)):
        families = (FAMILIES[number % len(FAMILIES)] for number in range(count))
        rows = [{**row, "answer": answer, "family": family} for family in families]
        pq.write_table(pa.Table.from_pylist(rows), folder / "data" / f"{split}.parquet")


def plan(folder: Path, variants=tuple(VARIANTS), seeds=None, **config) -> list[PlannedRun]:
    """The runs of a config written there."""
    return plan_runs(write_config(folder, **config), variants, seeds, folder / "runs", folder / "out")


def make_items(rng: np.random.Generator, rate: float) -> list[Item]:
    """The problems of an evaluation, each measure right with this probability."""
    items = []
    for number in range(PROBLEMS):
        states = rng.choice(["right", "misread", "absent"], 2, p=[rate, (1 - rate) / 2, (1 - rate) / 2]).tolist()
        right = states.count("right")
        verdicts = {name: float(rng.random() < rate) for name in ("accuracy", "perception", "probe")}
        kinds = [("length", "parallel")[number % 2]] * (2 - right)
        told = Told(bool(verdicts["perception"]), right, 2 - right, states, number % 4 == 0, kinds)
        facts = {"facts_right": right, "facts_wrong": 2 - right, "fact_states": states}
        items.append(Item(f"test/{number}", json.dumps(dataclasses.asdict(told)), **verdicts, **facts))
    return items


def evaluate(items: list[Item]) -> Evaluated:
    """As an evaluation leaves them."""
    return Evaluated(items, summarise(items, 30.0))


def write_workdir(run: PlannedRun, rate: float = 0.7) -> None:
    """What a training leaves, as far as a record reads it; the judge errs in the second half."""
    nested = json.loads(json.dumps(_nest(run.config)))
    hashes = {**run.hashes, "policy": "p", "judge": "j" if run.config["judge.path"] else "", "prompts": "q"}
    versions = {"python": "3.11.7", "jax": "0.10.2"}
    run.workdir.mkdir(parents=True, exist_ok=True)
    record = {"config": nested, "commit": "0123456789abcdef", "versions": versions, "hashes": hashes}
    write_json(run.workdir / "run.json", record)
    before = evaluate(make_items(np.random.default_rng(99), 0.5))
    after = evaluate(make_items(np.random.default_rng(run.seed), rate))
    for step, evaluated in ((0, before), (STEPS, after)):
        write_evaluated(items_file(run.workdir, "test", step), evaluated)
    result = {**result_fields(before, after), "rewards": {}, "seconds": 500.0 + run.seed, "peak_rss_bytes": 2e9}
    rng = np.random.default_rng(run.seed)
    samples = [
        _sample(step, rng, judged=bool(run.config["judge.path"])) for step in range(1, STEPS + 1) for _ in "12345678"
    ]
    _write_lines(run.workdir / "samples.jsonl", samples)
    metrics = [{"step": step, "reward/accuracy": step / STEPS, "reward/visual": None} for step in range(1, STEPS + 1)]
    _write_lines(run.workdir / "metrics.jsonl", metrics)
    write_json(run.workdir / "result.json", result)  # last, as a training does


def _sample(step: int, rng: np.random.Generator, *, judged: bool) -> dict:
    seen = rng.random() < 0.5
    verdict = float(seen if step <= STEPS / 2 else rng.random() < 0.5)
    return {
        "step": step,
        "problem_id": "train/0",
        "sample": 0,
        "response": FACT if seen else "It is 7.",
        "verdicts": [verdict] if judged else None,
        "judge_status": "ok" if judged else "none",
    }


def _nest(config) -> dict:
    nested: dict = {}
    for name, value in config.items():
        *section, field = name.split(".")
        (nested.setdefault(section[0], {}) if section else nested)[field] = value
    return nested


def _write_lines(path: Path, lines: list[dict]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def recorded(run: PlannedRun, rate: float = 0.7) -> Record:
    """The record of a run whose measures come out like this."""
    write_workdir(run, rate)
    return record_run(run)
