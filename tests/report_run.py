"""The files of a run that never was, its problems, and the checker that knows their facts."""

from __future__ import annotations

import dataclasses
import io
import json
import random
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from perception_r1_jax.config import default_config
from perception_r1_jax.data import load_problems
from perception_r1_jax.data.key_info import format_key_info
from perception_r1_jax.evaluation.compare import result_fields
from perception_r1_jax.evaluation.files import Evaluated, items_file, write_evaluated
from perception_r1_jax.evaluation.items import Item
from perception_r1_jax.evaluation.summary import summarise
from perception_r1_jax.training.run_record import hash_problems

CHECKER = __name__


@dataclasses.dataclass(frozen=True)
class Perception:
    """What the report reads of a checker's `perceive`."""

    perceived: bool
    right: int
    wrong: int
    states: tuple[str, ...]


def perceive(row, response: str) -> Perception:
    """A fact is "The length of AB is 7."; another number for AB is a misreading."""
    stated = set(re.findall(r"The length of .. is \d+\.", response))
    wrong = stated - set(row["facts"])
    states = tuple(_state(fact, stated) for fact in row["needed"])
    return Perception(not wrong and set(states) == {"right"}, len(stated - wrong), len(wrong), states)


def _state(fact: str, stated: set[str]) -> str:
    if fact in stated:
        return "right"
    subject = fact.rpartition(" ")[0]
    return "misread" if any(other.startswith(subject) for other in stated) else "absent"


def reflected(annotation: str, response: str) -> bool:
    """What an ideal judge says."""
    return annotation in response


def probe(row) -> tuple[str, str]:
    """A question about one fact, and its answer."""
    return row["probe_question"], row["probe_answer"]


def make_row(rng: random.Random) -> dict:
    """A triangle with three lengths."""
    letters = rng.sample("ABCDEFGHKLMNPQRSTUVWXYZ", 3)
    sides = [letters[0] + letters[1], letters[1] + letters[2], letters[0] + letters[2]]
    numbers = [rng.randint(2, 99) for _ in sides]
    facts = [f"The length of {side} is {number}." for side, number in zip(sides, numbers)]
    return {
        "problem": f"<image>What is the perimeter of triangle {''.join(letters)}?",
        "answer": str(sum(numbers)),
        "images": [_picture()],
        "visual_key_info": format_key_info(facts),
        "facts": facts,
        "needed": facts,
        "probe_question": f"What is the length of {sides[0]}?",
        "probe_answer": str(numbers[0]),
    }


def make_rows(count: int, seed: int, make_row=make_row) -> list[dict]:
    """So many of them; the training split has seed 0."""
    rng = random.Random(seed)
    return [make_row(rng) for _ in range(count)]


def _picture() -> bytes:
    image = Image.new("L", (56, 56), 255)
    ImageDraw.Draw(image).polygon([(8, 48), (48, 44), (26, 8)], outline=0)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def respond(row, skill: float, rng: random.Random) -> str:
    """A response; the more skill, the more facts are in it, and rightly."""
    facts = [fact for fact in row["needed"] if rng.random() < skill]
    read = [fact if rng.random() < 0.4 + skill / 2 else misread(fact, rng) for fact in facts]
    answer = row["answer"] if read == row["needed"] or rng.random() < skill / 3 else str(int(row["answer"]) + 1)
    thought = " ".join([*read, f"So the answer is {answer}."])
    return f"<think>\n{thought}\n</think>\n<answer>\n\\boxed{{{answer}}}\n</answer>"


def misread(fact: str, rng: random.Random) -> str:
    """The fact with another number, or with another letter where it has none."""
    if re.search(r"\d", fact):
        return re.sub(r"\d+", lambda found: str(int(found[0]) + rng.randint(1, 5)), fact)
    return re.sub(r"[A-Z](?=[A-Z])", lambda found: "Z" if found[0] != "Z" else "Y", fact, count=1)


def write_run(
    folder: Path,
    *,
    steps: int = 24,
    prompts: int = 2,
    samples: int = 4,
    train: int = 12,
    test: int = 30,
    hacked_from: int = 1 << 30,
    make_row=make_row,
    checker=CHECKER,
    perceive=perceive,
    reflected=reflected,
) -> Path:
    """Writes a working directory; from step `hacked_from` on the judge says yes to nearly anything."""
    rng = random.Random(0)
    rows = {"train": make_rows(train, 0, make_row), "test": make_rows(test, 1, make_row)}
    for split, some in rows.items():
        write_rows(folder / "data" / f"{split}.parquet", some)
    workdir = folder / "mini"
    workdir.mkdir()
    config = default_config().unlock()
    config.update({"steps": steps, "data": {"path": str(folder / "data")}, "model": {"path": "assets/mini/policy"}})
    config.update({"judge": {"path": "assets/mini/judge"}, "optimizer": {"learning_rate": 2e-5}})
    config.update({"rollout": {"prompts_per_step": prompts, "samples_per_prompt": samples}})
    config.update({"evaluation": {"split": "test", "problems": test, "checker": checker}})
    write_json(workdir / "run.json", _record(config))
    evaluated = []
    for step, skill in ((0, 0.72), (steps, 0.84)):
        items = [_evaluate(f"test/{i}", row, skill, rng, perceive) for i, row in enumerate(rows["test"])]
        evaluated.append(Evaluated(items, summarise(items, seconds=25.0)))
        write_evaluated(items_file(workdir, "test", step), evaluated[-1])
    sampled = [
        line
        for step in range(1, steps + 1)
        for line in _sample(step, steps, rows["train"], prompts, samples, hacked_from, rng, reflected)
    ]
    write_lines(workdir / "samples.jsonl", sampled)
    metrics = [_measure(step, [line for line in sampled if line["step"] == step], rng) for step in range(1, steps + 1)]
    write_lines(workdir / "metrics.jsonl", metrics)
    seconds = 61.5 + sum(line["time/step"] for line in metrics)
    result = {**result_fields(*evaluated), "seconds": seconds, "peak_rss_bytes": 2_500_000_000}
    write_json(workdir / "result.json", result)
    return workdir


def _record(config) -> dict:
    return {
        "config": json.loads(config.to_json_best_effort()),
        "command": ["scripts/train.py", "--config", "configs/mini.py", "--workdir", "runs/mini"],
        "commit": "0123456789" * 4,
        "versions": {"python": "3.11.7", "jax": "0.10.2"},
        "devices": ["TFRT_CPU_0"],
        "hashes": {
            "data": hash_split(config.data.path, "train"),
            "evaluation": hash_split(config.data.path, "test"),
            "policy": "a" * 64,
            "judge": "b" * 64,
            "prompts": "c" * 64,
        },
    }


def hash_split(path: str, split: str) -> str:
    """As run.json has it."""
    return hash_problems(load_problems(path, split)[0])


def _evaluate(problem_id, row, skill, rng, perceive) -> Item:
    response = respond(row, skill, rng)
    seen = perceive(row, response)
    right = rng.random() < skill
    return Item(
        problem_id,
        response=response,
        finish_reason="stop",
        accuracy=float(f"boxed{{{row['answer']}}}" in response),
        perception=float(seen.perceived),
        facts_right=seen.right,
        facts_wrong=seen.wrong,
        fact_states=seen.states,
        probe=float(right),
        probe_response=row["probe_answer"] if right else "5",
        probe_finish_reason="stop",
    )


def _sample(step, steps, rows, prompts, samples, hacked_from, rng, reflected):
    for index in rng.sample(range(len(rows)), prompts):
        row, group = rows[index], []
        for sample in range(samples):
            response = respond(row, 0.55 + 0.3 * step / steps, rng)
            doubt = 0.01 if step < hacked_from else 0.6
            verdicts = [float(reflected(fact, response) or rng.random() < doubt) for fact in row["needed"]]
            failed = rng.random() < 0.02
            terms = {
                "format": 1.0,
                "accuracy": float(f"boxed{{{row['answer']}}}" in response),
                "visual": None if failed else round(sum(verdicts) / len(verdicts), 6),
                "repetition": 0.0,
            }
            total = None if failed else 0.1 + 0.9 * terms["accuracy"] + 0.7 * terms["visual"]
            group.append(
                {
                    "step": step,
                    "problem_id": f"train/{index}",
                    "sample": sample,
                    "response": response,
                    "tokens": len(response.split()),
                    "finish_reason": "stop",
                    **terms,
                    "verdicts": None if failed else verdicts,
                    "judge_status": "missing" if failed else "ok",
                    "total": total,
                }
            )
        known = [line["total"] for line in group if line["total"] is not None]
        for line in group:
            line["advantage"] = 0.0 if line["total"] is None else round(line["total"] - sum(known) / len(known), 6)
        yield from group


def _measure(step, lines, rng) -> dict:
    def mean(name):
        values = [line[name] for line in lines if line[name] is not None]
        return sum(values) / len(values)

    failed = sum(line["judge_status"] != "ok" for line in lines)
    terms = ("total", "format", "accuracy", "visual", "repetition")
    return {
        "step": step,
        **{f"reward/{name}": mean(name) for name in terms},
        "reward/groups_without_signal": rng.choice((0.0, 0.25)),
        "reward/accuracy/ok": len(lines),
        "reward/dropped": failed,
        "judge/ok": len(lines) - failed,
        "judge/missing": failed,
        "judge/failure_rate": failed / len(lines),
        "rollout/length_mean": mean("tokens"),
        "rollout/length_max": max(line["tokens"] for line in lines),
        "rollout/cut_share": 0.0,
        "rollout/tokens": sum(line["tokens"] for line in lines),
        "train/entropy": 0.9 / (1 + step / 40) + rng.gauss(0, 0.02),
        "train/approx_kl": 0.0,
        "train/clip_fraction_low": 0.0,
        "train/clip_fraction_high": 0.0,
        "train/clip_fraction_dual": 0.0,
        "train/grad_norm": None if step == 7 else abs(rng.gauss(0.8, 0.2)),
        "train/rollout_train_logp_diff": abs(rng.gauss(3e-7, 1e-7)),
        "train/skipped": 0,
        "time/data": 0.02,
        "time/rollout": 3.1 + rng.random(),
        "time/judge": 1.4,
        "time/judge_hidden": 2.2,
        "time/judge_exposed": 1.3,
        "time/score": 0.1,
        "time/train": 4.2,
        "time/step": 9.9 + rng.random() / 10,
        "data/dropped": 0,
        "memory/peak_rss_gib": 2.3,
    }


def write_rows(path: Path, rows: list[dict]) -> None:
    """Writes the problems of a split."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def write_json(path: Path, content) -> None:
    """Writes a JSON file."""
    path.write_text(json.dumps(content))


def write_lines(path: Path, lines) -> None:
    """Writes a file of JSON lines."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def read_lines(path: Path) -> list[dict]:
    """Reads one."""
    return [json.loads(line) for line in path.read_text().splitlines()]
