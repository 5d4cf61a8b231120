"""The two commands, as a user runs them."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from perception_r1_jax.weights import convert_huggingface
from perception_r1_jax.weights.random_checkpoint import write_random_checkpoint
from perception_r1_jax.weights.safetensors_io import stored_tensors
from tools.convert_weights import jax_to_hf

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
    assert run.stderr.startswith(f"error: {tmp_path} holds no model: neither model.safetensors")
    assert run.stderr.count("\n") == 1


@pytest.mark.parametrize("out", ["hf", "hf/config.json", "hf/config.json/below"])
def test_a_directory_that_cannot_be_written_to_is_one_line(tmp_path, out):
    source = write_random_checkpoint(tmp_path / "hf", "qwen2")
    run = _run("-m", "tools.convert_weights.hf_to_jax", "--hf", source, "--out", tmp_path / out)
    assert run.returncode == 1
    assert run.stderr.startswith("error: ")
    assert str(tmp_path / out) in run.stderr
    assert run.stderr.count("\n") == 1


def test_a_damaged_checkpoint_is_one_line(tmp_path):
    """The storage layer's own threads print nothing either."""
    convert_huggingface(write_random_checkpoint(tmp_path / "hf", "qwen2"), tmp_path / "jax")
    for file in (tmp_path / "jax" / "params" / "params" / "d").iterdir():
        file.unlink()
    run = _run("-m", "tools.convert_weights.jax_to_hf", "--checkpoint", tmp_path / "jax", "--out", tmp_path / "back")
    assert run.returncode == 1
    assert run.stderr.startswith(f"error: {tmp_path / 'jax' / 'params'} cannot be read")
    assert run.stderr.count("\n") == 1


@pytest.mark.parametrize("size", ["0", "-1", "nan", "inf", "five"])
def test_an_impossible_shard_size_is_refused(capsys, monkeypatch, tmp_path, size):
    command = ["jax_to_hf", "--checkpoint", str(tmp_path), "--out", str(tmp_path / "back"), f"--max_shard_gb={size}"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit, match="2"):
        jax_to_hf.main()
    assert "argument --max_shard_gb" in capsys.readouterr().err


def test_a_random_checkpoint_is_made(tmp_path):
    run = _run("scripts/make_random_checkpoint.py", "--family", "qwen2_5_vl", "--out", tmp_path / "vl")
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "vl" / "model.safetensors.index.json").is_file()


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--tokenizer", "absent"], 1, "error: absent has no tokenizer_config.json: give the directory of the"),
        (["--config_overrides", "broken.json"], 2, "--config_overrides: broken.json is no JSON (Expecting"),
        (["--config_overrides", "odd.json"], 1, "error: config: num_attention_heads 4 is no multiple of"),
        (["--out", "taken"], 1, "error: taken is taken: choose a new or empty directory to write to."),
    ],
)
def test_a_random_checkpoint_that_cannot_be_made_is_explained(options, status, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("broken.json").write_text("{")
    Path("odd.json").write_text('{"num_key_value_heads": 3}')
    Path("taken").mkdir()
    Path("taken/config.json").write_text("{}")
    monkeypatch.setattr(sys, "argv", ["make_random_checkpoint", "--family", "qwen2", "--out", "out", *options])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(REPOSITORY / "scripts/make_random_checkpoint.py"), run_name="__main__")
    assert message in (capsys.readouterr().err if status == 2 else stop.value.code)
    assert not Path("out").exists()
    assert Path("taken/config.json").read_text() == "{}"


MEASURE = """
import re, sys
from pathlib import Path
from perception_r1_jax.weights import convert_huggingface

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

for source, out in zip(sys.argv[1::2], sys.argv[2::2]):
    before = peak()
    convert_huggingface(source, out)
print(peak() - before)
"""
"""Growth of the process's memory by the last of several conversions; the first brings the libraries in."""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc")
@pytest.mark.parametrize(
    ("hidden", "layers"), [(384, 24), pytest.param(512, 64, marks=pytest.mark.slow)], ids=["quick", "slow"]
)
def test_the_host_never_holds_the_model_twice(tmp_path, hidden, layers):
    """The model once, and beside it two parameters at most: with these shapes a sixth of the model each."""
    first = write_random_checkpoint(tmp_path / "first", "qwen2")
    shapes = {"hidden_size": hidden, "intermediate_size": hidden, "num_hidden_layers": layers}
    source = write_random_checkpoint(tmp_path / "hf", "qwen2", shapes)
    run = _run("-c", MEASURE, first, tmp_path / "first_jax", source, tmp_path / "jax")
    assert run.returncode == 0, run.stderr
    model = sum(file.stat().st_size for file in source.glob("*.safetensors"))
    assert 0.9 < int(run.stdout) / model < 1.7
