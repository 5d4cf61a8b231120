"""What a run was: `run.json` at its start, `result.json` at its end."""

from __future__ import annotations

import hashlib
import json
import resource
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from perception_r1_jax.json_files import write_json
from perception_r1_jax.records import Conversation, ImageSource, Problem
from perception_r1_jax.training.metrics import finite
from perception_r1_jax.weights import model_files

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "numpy", "math-verify")
EDGE_BYTES = 1 << 16
RECORD = "run.json"


def make_record(config: ConfigDict, **hashes: str) -> dict[str, Any]:
    """The content of `run.json`: config, command, commit, versions, devices, and hashes of what went in."""
    return {
        "config": json.loads(config.to_json_best_effort()),
        "command": sys.argv,
        "commit": _commit(),
        "versions": {"python": sys.version.split()[0], **{name: version(name) for name in PACKAGES}},
        "devices": [str(device) for device in jax.devices()],
        "hashes": hashes,
    }


def write_record(workdir: Path, record: Mapping[str, Any]) -> None:
    """Writes `run.json`."""
    write_json(workdir / RECORD, record)


def write_result(
    workdir: Path,
    evaluations: Mapping[str, Any],
    *,
    rewards: Mapping[str, float | None],
    seconds: float,
    peak_bytes: int,
) -> dict[str, Any]:
    """Writes `result.json` and returns it; what the run has no data for is null.

    Args:
        workdir: of the run.
        evaluations: fields as `evaluation.compare.result_fields` gives them.
        rewards: the last step's, by name.
        seconds: that the run took.
        peak_bytes: `peak_bytes_of` its metrics.
    """
    result = {
        **evaluations,
        "rewards": {name: finite(value) for name, value in rewards.items()},
        "seconds": round(seconds, 1),
        "peak_rss_bytes": peak_bytes,
    }
    write_json(workdir / "result.json", result)
    return result


def peak_rss_bytes() -> int:
    """The most memory that this process has held."""
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def peak_bytes_of(metrics: Iterable[Mapping[str, Any]]) -> int:
    """The most memory that a process of a run has held: this one, or one before a stop, as the metrics of steps say."""
    return max([peak_rss_bytes(), *(round(line["memory/peak_rss_gib"] * 2**30) for line in metrics)])


def hash_texts(texts: Iterable[str]) -> str:
    """SHA-256 of texts in their order."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()


def hash_problems(problems: Iterable[Problem]) -> str:
    """SHA-256 of ids, questions, answers, annotations, and pictures (of a path: the name alone)."""
    return hash_texts("\n".join(_parts(problem)) for problem in problems)


def _parts(problem: Problem) -> tuple[str, ...]:
    pictures = map(_hash_picture, problem.images)
    return (problem.problem_id, problem.question, problem.answer, *problem.annotations, *pictures)


def hash_conversations(conversations: Iterable[Conversation]) -> str:
    """SHA-256 of ids, turns, and pictures as in `hash_problems`."""
    return hash_texts(
        "\n".join((c.conversation_id, *(f"{m.role}: {m.content}" for m in c.messages), *map(_hash_picture, c.images)))
        for c in conversations
    )


def _hash_picture(picture: ImageSource) -> str:
    return hashlib.sha256(picture).hexdigest() if isinstance(picture, bytes) else picture.name


def hash_model(directory: Path) -> str:
    """SHA-256 of names, sizes, and the first and last 64 kB of a model's config and weights.

    It tells models apart without reading them; what else lies in the directory does not count.
    """
    digest = hashlib.sha256()
    for path in model_files(directory):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\0".encode())
        with path.open("rb") as file:
            digest.update(file.read(EDGE_BYTES))
            file.seek(max(size - EDGE_BYTES, 0))
            digest.update(file.read(EDGE_BYTES))
    return digest.hexdigest()


def _commit() -> str | None:
    """The commit of the source tree that runs, None outside of a git checkout."""
    command = ["git", "-C", str(Path(__file__).resolve().parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
