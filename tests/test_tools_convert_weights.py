"""The two commands, as a user runs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from perception_r1_jax.weights.random_checkpoint import write_random_checkpoint
from perception_r1_jax.weights.safetensors_io import stored_tensors

REPOSITORY = Path(__file__).resolve().parent.parent


def _run(*arguments):
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)


def test_there_and_back(tmp_path):
    source = write_random_checkpoint(tmp_path / "hf", "qwen2", dtype="bfloat16")
    there = _run("-m", "tools.convert_weights.hf_to_jax", "--hf", source, "--out", tmp_path / "jax")
    assert there.returncode == 0, there.stderr
    back = _run(
        "-m", "tools.convert_weights.jax_to_hf", "--checkpoint", tmp_path / "jax", "--out", tmp_path / "back",
        "--max_shard_gb", "0.0002",
    )  # fmt: skip
    assert back.returncode == 0, back.stderr
    after = {tensor.name: tensor for tensor in stored_tensors(tmp_path / "back")}
    for tensor in stored_tensors(source):
        assert after[tensor.name].dtype == tensor.dtype
        np.testing.assert_array_equal(after[tensor.name].read(), tensor.read())


def test_an_error_is_one_line_and_no_traceback(tmp_path):
    run = _run("-m", "tools.convert_weights.jax_to_hf", "--checkpoint", tmp_path, "--out", tmp_path / "back")
    assert run.returncode == 1
    assert run.stderr.startswith(f"error: {tmp_path} holds no model. Understood are")
    assert "Traceback" not in run.stderr


def test_a_random_checkpoint_is_made(tmp_path):
    run = _run("scripts/make_random_checkpoint.py", "--family", "qwen2_5_vl", "--out", tmp_path / "vl")
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "vl" / "model.safetensors.index.json").is_file()


MEASURE = """
import resource, sys
from perception_r1_jax.weights import convert_huggingface
import jax
jax.devices()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
convert_huggingface(sys.argv[1], sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_the_host_never_holds_the_model_twice(tmp_path):
    shapes = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 48, "num_attention_heads": 8}
    source = write_random_checkpoint(tmp_path / "hf", "qwen2", shapes)
    run = _run("-c", MEASURE, source, tmp_path / "jax")
    assert run.returncode == 0, run.stderr
    model = sum(file.stat().st_size for file in source.glob("*.safetensors"))
    largest = 48 * 512 * 1024 * 4
    slack = 64 * 2**20  # threads and buffers of the storage layer
    assert int(run.stdout) * 1024 < model + 2 * largest + slack < 1.7 * model
