"""What scripts/sft.py says when it cannot start, and that it runs."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from perception_r1_jax.weights.random_checkpoint import write_random_checkpoint
from tests.conftest import REPOSITORY

TINY = (
    "--config.steps=1",
    "--config.sft.row_tokens=128",
    "--config.sft.rows_per_step=1",
    "--config.sft.micro_batch_rows=1",
    "--config.sft.validate_conversations=0",
)


def run(*arguments: str) -> subprocess.CompletedProcess:
    """The script as a user starts it."""
    command = [sys.executable, "scripts/sft.py", "--config", "configs/mini_sft_judge.py", *arguments]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.foo=1"], "the config has no field 'foo'; perception_r1_jax/sft/config.py lists all fields."),
        (["--config.model.path=nowhere"], "error: config.model.path = 'nowhere' does not exist. Give a path that does"),
        (["--config.sft.micro_batch_rows=5"], "config.sft.micro_batch_rows is 5, which does not divide 8."),
    ],
)
def test_a_wrong_command_line(arguments, message, tmp_path):
    ended = run("--workdir", str(tmp_path / "run"), *arguments)
    assert ended.returncode != 0
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "run").exists()


def test_it_trains_and_says_how_to_take_the_model(tmp_path):
    (tmp_path / "all.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'
    )
    paths = (f"--config.data.path={tmp_path}/all.jsonl", f"--config.model.path={tmp_path}/model")
    write_random_checkpoint(tmp_path / "model", "qwen2")
    ended = run("--workdir", str(tmp_path / "run"), *paths, *TINY)
    assert ended.returncode == 0, ended.stderr
    assert "step 1/1 | loss" in ended.stdout
    assert f"python -m tools.convert_weights.jax_to_hf --checkpoint {tmp_path}/run --out DIR" in ended.stdout
