"""What comes with the package is found where the package is installed, far from the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

SHOW = """
from perception_r1_jax import assets
from perception_r1_jax.judge.prompts import load_prompt
from perception_r1_jax.models import load_config
from perception_r1_jax.weights import locate_model
for model in (assets.MINI_POLICY, assets.MINI_JUDGE):
    print(model, load_config(locate_model(model).model_dir).vocab_size)
print(load_prompt(assets.MINI_JUDGE_PROMPT).system)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The wheel of a copy of the source, unpacked as pip unpacks it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("perception_r1_jax", "tools"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "README.md"):
        shutil.copy(ROOT / name, source / name)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "."]
    subprocess.run([*build, "--wheel-dir", folder], cwd=source, check=True)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "installed")
    return folder / "installed"


def test_the_embedded_models_are_in_the_wheel(installed, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(installed), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", SHOW], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    policy, judge, prompt = done.stdout.splitlines()
    assert policy.startswith(str(installed))
    assert judge.startswith(str(installed))
    assert prompt


def test_the_embedded_models_take_little_room(installed):
    files = (file for file in (installed / "perception_r1_jax/assets/mini").rglob("*") if file.is_file())
    assert 1_000_000 < sum(file.stat().st_size for file in files) <= 12_000_000
