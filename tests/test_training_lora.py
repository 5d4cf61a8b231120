"""A whole run that trains adapters, with all that saves memory: resumed, exported, and its reference the base."""

from __future__ import annotations

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perception_r1_jax.errors import UserError
from perception_r1_jax.host_memory import PINNED
from perception_r1_jax.models import ADAPTERS, base_params, load_config, merge_adapters
from perception_r1_jax.sharding import make_mesh
from perception_r1_jax.training import loop, setup
from perception_r1_jax.training.continuing import changes_since
from perception_r1_jax.weights import export_huggingface, load_params
from tests.grpo_fixtures import relative_difference
from tests.training_run import lines, one_device_mesh, prepare, small_config, without_clocks

FIELDS = {
    "steps": 2,
    "lora.modules": ("q", "k", "v", "qkv", "o", "gate", "up", "down"),
    "lora.rank": 2,
    "lora.alpha": 4.0,
    "grpo.kl_coefficient": 0.1,
    "optimizer.learning_rate": 1e-2,
    "optimizer.moments_dtype": "bfloat16",
    "optimizer.host_memory": True,
    "judge.host_memory": True,
    "judge.streaming": False,
}


def one_device(patch):
    """Runs of this file are on one device, and load a model to train from, but none as a reference."""
    patch.setattr(setup, "make_mesh", one_device_mesh)
    patch.setattr(setup, "load_params", None)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An uninterrupted run, as it is at its end."""
    with pytest.MonkeyPatch.context() as patch:
        one_device(patch)
        run = prepare(small_config(**FIELDS), tmp_path_factory.mktemp("run"))
        start = jax.tree.map(np.asarray, run.state.params)
        loop.train(run)
    return run, start


def loaded(directory, run):
    return load_params(directory, load_config(run.workdir / "model"), make_mesh(devices=jax.devices()[:1]), jnp.float32)


def test_adapters_move_and_the_base_stays(finished):
    run, start = finished
    jax.tree.map(np.testing.assert_array_equal, base_params(run.state.params), base_params(start))
    moved = jax.tree.map(lambda new, old: np.linalg.norm(new - old), run.state.params[ADAPTERS], start[ADAPTERS])
    assert min(jax.tree.leaves(moved)) > 0
    assert {x.sharding.memory_kind for x in jax.tree.leaves(run.state.opt_state) if x.ndim > 0} == {PINNED}
    assert run.judge.compilations > 0


def test_the_reference_is_the_base(finished):
    first, second = lines(finished[0].workdir / "metrics.jsonl")
    assert abs(first["train/kl"]) < 1e-10  # adapters begin at zero; two programs differ by rounding, squared here
    assert second["train/kl"] > 1e-3
    for line in (first, second):
        assert line["train/rollout_train_logp_diff"] < 1e-4


def test_a_run_continues_bit_for_bit(finished, tmp_path, monkeypatch):
    one_device(monkeypatch)
    run, _ = finished
    again = tmp_path / "again"
    shutil.copytree(run.workdir, again)
    shutil.rmtree(again / "checkpoints/2")
    continued = prepare(small_config(**FIELDS), again)
    assert continued.step == 1
    loop.train(continued)
    jax.tree.map(np.testing.assert_array_equal, continued.state, run.state)
    ours, theirs = lines(again / "metrics.jsonl"), lines(run.workdir / "metrics.jsonl")
    assert [without_clocks(line) for line in ours] == [without_clocks(line) for line in theirs]


def test_an_export_is_the_merged_model(finished, tmp_path):
    run, _ = finished
    export_huggingface(run.workdir, tmp_path / "hf")
    exported = loaded(tmp_path / "hf", run)
    jax.tree.map(np.testing.assert_array_equal, exported, loaded(run.workdir, run))
    assert relative_difference(exported, merge_adapters(run.state.params)) < 1e-6
    assert relative_difference(exported, base_params(run.state.params)) > 1e-3


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [("lora", "rank", 3), ("lora", "alpha", 5.0), ("lora", "modules", ["q"]), ("model", "dtype", "bfloat16")],
)
def test_a_run_cannot_change_its_adapters_nor_their_base(finished, section, field, value):
    workdir = finished[0].workdir
    record = json.loads((workdir / "run.json").read_text())
    assert changes_since(workdir, record) == {}
    record["config"][section][field] = value
    with pytest.raises(UserError, match=f"config.{section}.{field} was"):
        changes_since(workdir, record)
    record = json.loads((workdir / "run.json").read_text())
    record["hashes"]["policy"] = "another"
    with pytest.raises(UserError, match=r"hashes\.policy was"):
        changes_since(workdir, record)
