"""Parameters from every kind of model directory, and what is said about directories that hold none."""

from __future__ import annotations

import json
import math
import re
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp
from safetensors.numpy import save_file

from perception_r1_jax.models import abstract_params, load_config, logical_axes
from perception_r1_jax.sharding import make_mesh, tree_shardings
from perception_r1_jax.weights import (
    CheckpointError,
    convert_huggingface,
    export_huggingface,
    load_params,
    locate_model,
)
from perception_r1_jax.weights.names import flatten, hf_tensors, nested_name
from perception_r1_jax.weights.random_checkpoint import write_random_checkpoint
from perception_r1_jax.weights.safetensors_io import stored_tensors

SHAPES = {"num_hidden_layers": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_random_checkpoint(tmp_path_factory.mktemp("load") / "hf", config_overrides=SHAPES)


@pytest.fixture(scope="module")
def config(folder):
    return load_config(folder)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(data=2, fsdp=2, tensor=2)


@pytest.fixture(scope="module")
def params(folder, config, mesh):
    return load_params(folder, config, mesh)


@pytest.fixture(scope="module")
def run(tmp_path_factory, folder, params):
    """The working directory of a training run with checkpoints of steps 2 and 10."""
    workdir = tmp_path_factory.mktemp("run")
    shutil.copytree(folder, workdir / "model", ignore=shutil.ignore_patterns("*.safetensors*"))
    with ocp.training.Checkpointer(workdir / "checkpoints") as checkpointer:
        for step, factor in ((2, 2), (10, 1)):
            scaled = jax.tree.map(lambda leaf: jax.device_put(factor * np.asarray(leaf), leaf.sharding), params)  # noqa: B023
            checkpointer.save_checkpointables(step, {"params": scaled, "optimizer": {"count": np.array(step)}})
    return workdir


def assert_same(tree, expected, factor=1):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), factor * np.asarray(y)), tree, expected)


def edit_tensors(folder, out, edit):
    """Copies a Hugging Face directory with its tensors, as one file, changed by `edit(dict)`."""
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns("*.safetensors*"))
    tensors = {tensor.name: tensor.read() for tensor in stored_tensors(folder)}
    edit(tensors)
    save_file(tensors, out / "model.safetensors")
    return out


def test_parameters_hold_the_files_values(folder, config, params):
    stored = {tensor.name: tensor.read() for tensor in stored_tensors(folder)}
    leaves = flatten(params)
    for name, tensor in hf_tensors(config).items():
        parameter = np.asarray(leaves[tensor.row.path])
        ours = tensor.to_stored(parameter if tensor.layer is None else parameter[tensor.layer])
        np.testing.assert_array_equal(ours, stored[name], err_msg=name)


def test_parameters_are_laid_out_by_the_rules(config, mesh, params):
    shardings = tree_shardings(mesh, logical_axes(config), abstract_params(config))
    same = jax.tree.map(lambda leaf, sharding: leaf.sharding.is_equivalent_to(sharding, leaf.ndim), params, shardings)
    assert all(jax.tree.leaves(same)), same
    gate = params["decoder"]["layers"]["mlp"]["gate"]["kernel"]
    assert gate.addressable_shards[0].data.size == gate.size // 4  # over fsdp and tensor


@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 8, 1), (1, 1, 8)])
def test_the_mesh_does_not_change_the_values(folder, config, params, sizes):
    mesh = make_mesh(*sizes, devices=jax.devices()[: math.prod(sizes)])
    assert_same(load_params(folder, config, mesh), params)


def test_the_dtype_is_kept_or_cast(folder, config, mesh, params, tmp_path):
    def halve(tensors):
        tensors.update({name: tensor.astype("bfloat16") for name, tensor in tensors.items()})

    half = edit_tensors(folder, tmp_path / "half", halve)
    kept, cast = load_params(half, config, mesh), load_params(folder, config, mesh, ml_dtypes.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {np.dtype("bfloat16")}
    assert_same(kept, jax.tree.map(lambda leaf: leaf.astype("bfloat16"), params))
    assert_same(cast, kept)
    assert {leaf.dtype for leaf in jax.tree.leaves(load_params(half, config, mesh, "float32"))} == {np.dtype("float32")}


def test_layers_of_unlike_dtype_are_kept_exactly(folder, config, mesh, tmp_path):
    name = "model.layers.{}.mlp.up_proj.weight"
    dtypes = {name.format(0): "bfloat16", name.format(1): "float16"}

    def mix(tensors):
        tensors.update({name: tensors[name].astype(dtype) for name, dtype in dtypes.items()})

    mixed = edit_tensors(folder, tmp_path / "mixed", mix)
    kernel = load_params(mixed, config, mesh)["decoder"]["layers"]["mlp"]["up"]["kernel"]
    stored = {tensor.name: tensor.read() for tensor in stored_tensors(mixed)}
    assert kernel.dtype == np.float32
    for layer, name in enumerate(dtypes):
        np.testing.assert_array_equal(np.asarray(kernel[layer]), stored[name].T.astype(np.float32))


def test_both_layouts_of_names_are_read(folder, config, mesh, params, tmp_path):
    nested = write_random_checkpoint(tmp_path / "nested", config_overrides=SHAPES, nested=True)
    assert_same(load_params(nested, load_config(nested), mesh), params)


def test_a_converted_checkpoint_restores_on_another_mesh(folder, config, params, tmp_path):
    convert_huggingface(folder, tmp_path / "converted")
    assert locate_model(tmp_path / "converted").kind == "orbax"
    restored = load_params(tmp_path / "converted", config, make_mesh(1, 2, 4))
    assert_same(restored, params)
    embedding = restored["decoder"]["embed"]["embedding"]
    assert embedding.addressable_shards[0].data.size == embedding.size // 8
    half = load_params(tmp_path / "converted", config, make_mesh(1, 2, 4), "bfloat16")
    assert_same(half, jax.tree.map(lambda leaf: leaf.astype("bfloat16"), params))


def test_a_training_run_gives_its_latest_step(run, config, mesh, params):
    assert locate_model(run).weights.name == "10"
    assert locate_model(run).model_dir == run / "model"
    assert_same(load_params(run, config, mesh), params)


def test_a_step_of_a_training_run_can_be_named(run, config, mesh, params):
    assert_same(load_params(run / "checkpoints" / "2", config, mesh), params, factor=2)


def test_an_unfinished_step_is_passed_over(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "11.orbax-checkpoint-tmp" / "params").mkdir(parents=True)
    assert locate_model(tmp_path / "run").weights.name == "10"


def test_all_that_is_wrong_is_named_at_once(folder, config, mesh, tmp_path):
    def damage(tensors):
        tensors.pop("model.layers.1.mlp.up_proj.weight")
        tensors.pop("visual.merger.mlp.2.bias")
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(8, np.float32)
        tensors["model.norm.weight"] = np.zeros(65, np.float32)
        tensors[nested_name("visual.merger.ln_q.weight")] = tensors["visual.merger.ln_q.weight"]

    with pytest.raises(CheckpointError) as caught:
        load_params(edit_tensors(folder, tmp_path / "damaged", damage), config, mesh)
    for part in (
        "2 missing: model.layers.1.mlp.up_proj.weight, visual.merger.mlp.2.bias",
        "1 unknown: model.layers.0.self_attn.rotary_emb.inv_freq",
        "1 there more than once: visual.merger.ln_q.weight",
        "1 of another shape: model.norm.weight [65] instead of [64]",
    ):
        assert part in str(caught.value)


def test_a_tensor_in_two_shards_is_named(folder, config, mesh, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    save_file({"model.norm.weight": np.zeros(64, np.float32)}, copy / "extra.safetensors")
    index = json.loads((copy / "model.safetensors.index.json").read_text())
    index["weight_map"]["extra"] = "extra.safetensors"
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"1 there more than once: model\.norm\.weight"):
        load_params(copy, config, mesh)


def test_long_lists_are_shortened(folder, config, mesh, tmp_path):
    with pytest.raises(CheckpointError, match=r"8\d missing: .*, and 7\d more"):
        load_params(edit_tensors(folder, tmp_path / "empty", lambda tensors: tensors.clear()), config, mesh)


@pytest.mark.parametrize("same", [True, False])
def test_a_tied_head_may_be_stored_if_it_is_the_embedding(mesh, tmp_path, same):
    folder = write_random_checkpoint(tmp_path / "tied", "qwen2", SHAPES | {"tie_word_embeddings": True})
    config = load_config(folder)

    def add_head(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + (0 if same else 1)

    stored = edit_tensors(folder, tmp_path / "stored", add_head)
    if same:
        assert_same(load_params(stored, config, mesh), load_params(folder, config, mesh))
    else:
        with pytest.raises(CheckpointError, match=r"lm_head\.weight differs from model\.embed_tokens\.weight"):
            load_params(stored, config, mesh)


def test_a_checkpoint_of_another_shape_is_refused(run, config, mesh):
    other = load_config(json.loads((run / "model" / "config.json").read_text()) | {"intermediate_size": 128})
    with pytest.raises(CheckpointError, match=r"3 of another shape: decoder/layers/mlp/down/kernel \[2, 160, 64\]"):
        load_params(run, other, mesh)


def _delete(path):
    path.unlink()


def _halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture(scope="module")
def converted(tmp_path_factory, folder):
    out = tmp_path_factory.mktemp("converted") / "model"
    convert_huggingface(folder, out)
    return out


INDEX, CHUNKS = "params/d/*", "params/ocdbt.process_0/d/*"


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("_CHECKPOINT_METADATA", _delete),
        ("params/_METADATA", _delete),
        ("params/_METADATA", _halve),
        (INDEX, _delete),
        (INDEX, _halve),
        (CHUNKS, _delete),
        (CHUNKS, _halve),
    ],
)
def test_a_damaged_checkpoint_is_one_sentence(converted, config, mesh, tmp_path, file, damage):
    copy = shutil.copytree(converted, tmp_path / "copy")
    damage(max((copy / "params").glob(file), key=lambda path: path.stat().st_size))
    with pytest.raises(
        CheckpointError, match=f"^{copy / 'params'} cannot be read: .*Convert the model again"
    ) as caught:
        load_params(copy, config, mesh)
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="cannot be read"):
        export_huggingface(copy, tmp_path / "back")


@pytest.mark.parametrize("file", ["params/_METADATA", INDEX, CHUNKS])
def test_a_damaged_step_of_a_training_run_is_one_sentence(run, config, mesh, tmp_path, file):
    copy = shutil.copytree(run, tmp_path / "run")
    step = copy / "checkpoints" / "10"
    _delete(max(step.glob(file), key=lambda path: path.stat().st_size))
    with pytest.raises(CheckpointError, match=f"^{step} cannot be read: .* choose another step of the training run"):
        load_params(copy, config, mesh)
    load_params(copy / "checkpoints" / "2", config, mesh)


def test_memory_that_runs_out_is_not_called_damage(converted, config, mesh, monkeypatch):
    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr(ocp, "load", full)
    with pytest.raises(MemoryError):
        load_params(converted, config, mesh)


def _nothing(folder):
    folder.mkdir()


def _weights_without_config(folder):
    folder.mkdir()
    save_file({"x": np.zeros(1, np.float32)}, folder / "model.safetensors")


def _config_without_weights(folder):
    folder.mkdir()
    (folder / "config.json").write_text("{}")


def _run_without_checkpoint(folder):
    (folder / "checkpoints").mkdir(parents=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "is not a directory. Give one that holds a model"),
        (_nothing, "holds no model: neither model.safetensors or model.safetensors.index.json (Hugging Face), nor"),
        (_config_without_weights, "holds no model: neither"),
        (_weights_without_config, "config.json is missing: copy it from where the weights come from"),
        (_run_without_checkpoint, "holds no finished checkpoint yet"),
    ],
)
def test_a_directory_without_model_is_explained(tmp_path, make, message):
    make(tmp_path / "model")
    with pytest.raises(CheckpointError, match=re.escape(message)):
        locate_model(tmp_path / "model")
