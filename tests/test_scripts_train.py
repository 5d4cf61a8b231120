"""What scripts/train.py says when it cannot start: one line, no traceback, a status that is not 0."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY


def run(*arguments: str) -> subprocess.CompletedProcess:
    """The script as a user starts it."""
    command = [sys.executable, "scripts/train.py", *arguments]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.foo=1"], "error: the config has no field 'foo'"),
        (["--config.steps=many"], "invalid literal for int() with base 10: 'many'"),
        (["--config.model.path=nowhere"], "error: config.model.path = 'nowhere' does not exist. Give a path that does"),
        (["--config.grpo.micro_batch_samples=3"], "which does not divide 4. The nearest values that do: 2 and 4."),
        (["--config.reward.function=nowhere:f"], "nowhere"),
        (["oops"], "unexpected argument 'oops'"),
    ],
)
def test_a_wrong_command_line(arguments, message, tmp_path):
    ended = run("--config", "configs/debug.py", "--workdir", str(tmp_path / "run"), *arguments)
    assert ended.returncode != 0
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "run").exists()


def test_a_missing_config_is_named(tmp_path):
    ended = run("--config", "configs/absent.py", "--workdir", str(tmp_path))
    assert ended.returncode != 0
    assert "configs/absent.py" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("config.stepz = 3", "the config has no field 'stepz'; perception_r1_jax/config.py lists all fields."),
        (
            "config.steps = config.stepz",
            "the config has no field 'stepz'; perception_r1_jax/config.py lists all fields.",
        ),
        ("config.steps = math.tav", "the config file cannot be read: module 'math' has no attribute 'tav'."),
    ],
)
def test_an_error_in_a_config_file_is_one_line(line, message, tmp_path):
    config = tmp_path / "mine.py"
    config.write_text(
        "import math\n\nfrom perception_r1_jax.config import default_config\n\n\n"
        f"def get_config():\n    config = default_config()\n    {line}\n    return config\n"
    )
    ended = run("--config", str(config), "--workdir", str(tmp_path / "run"))
    assert ended.returncode != 0
    assert ended.stderr.strip().endswith(message)
