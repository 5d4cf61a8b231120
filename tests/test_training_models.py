"""Models of a run: random ones made once, and the folder that makes a run's checkpoints usable alone."""

from __future__ import annotations

import json
import shutil

import pytest

from perception_r1_jax.assets import SMALL_TOKENIZER
from perception_r1_jax.errors import UserError
from perception_r1_jax.models import load_config
from perception_r1_jax.processing import Processor
from perception_r1_jax.training.models import keep_side_files, prepare_model
from perception_r1_jax.training.run_record import hash_model
from perception_r1_jax.weights import CheckpointError, locate_model


def random_model(folder, seed=1, begun=False):
    return prepare_model("model.path", "random", "", "qwen2_5_vl", folder, seed, begun=begun)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("random")


@pytest.fixture(scope="module")
def model(folder):
    return random_model(folder / "policy")


def test_a_given_model_is_left_where_it_is(model, tmp_path):
    assert prepare_model("model.path", str(model), "", "qwen2_5_vl", tmp_path / "made", 0, begun=False) == model
    assert not (tmp_path / "made").exists()


def test_a_model_that_cannot_be_used_is_named_with_its_field(model, tmp_path):
    with pytest.raises(UserError, match=rf"config\.judge\.path = '{tmp_path}': .* holds no model"):
        prepare_model("judge.path", str(tmp_path), "", "qwen2", tmp_path / "made", 0, begun=False)
    other = shutil.copytree(model, tmp_path / "other")
    (other / "config.json").write_text('{"model_type": "gemma"}')
    with pytest.raises(UserError, match=r"config\.model\.path = .*model_type 'gemma' is not supported"):
        prepare_model("model.path", str(other), "", "qwen2_5_vl", tmp_path / "made", 0, begun=False)


def test_a_random_model_is_made_and_converted(folder, model):
    assert locate_model(model).kind == "orbax"
    assert locate_model(folder / "policy" / "hf").kind == "huggingface"
    assert load_config(model).model_type == "qwen2_5_vl"
    assert Processor.from_directory(model).pictures is not None


def test_a_random_model_is_made_once(folder, model):
    before = {path: path.stat().st_mtime_ns for path in (folder / "policy").rglob("*")}
    assert random_model(folder / "policy") == model
    assert {path: path.stat().st_mtime_ns for path in (folder / "policy").rglob("*")} == before


def test_a_random_model_is_made_anew_for_another_seed_until_there_is_a_checkpoint(folder, model, tmp_path):
    made = shutil.copytree(folder / "policy", tmp_path / "policy")
    of_seed_1 = hash_model(made / "hf")
    random_model(made, seed=2, begun=True)
    assert hash_model(made / "hf") == of_seed_1
    random_model(made, seed=2)
    assert hash_model(made / "hf") != of_seed_1
    before = hash_model(made / "converted")
    random_model(made, seed=2)
    assert hash_model(made / "converted") == before


def test_a_conversion_that_was_cut_off_is_done_again(folder, model, tmp_path):
    """Only a finished conversion has `params/`."""
    cut = tmp_path / "cut"
    shutil.copytree(folder / "policy" / "hf", cut / "hf")
    (cut / "converted").mkdir()
    (cut / "hf" / "stale").write_text("of the first attempt")
    again = random_model(cut)
    assert locate_model(again).kind == "orbax"
    assert not (cut / "hf" / "stale").exists()


def test_a_run_keeps_what_its_checkpoints_need(model, tmp_path):
    keep_side_files(model, "", tmp_path / "model")
    assert load_config(tmp_path / "model") == load_config(model)
    kept, own = Processor.from_directory(tmp_path / "model"), Processor.from_directory(model)
    assert (kept.stop_ids, kept.banned_ids, kept.pad_id) == (own.stop_ids, own.banned_ids, own.pad_id)
    assert not list((tmp_path / "model").glob("*.safetensors"))


def test_a_tokenizer_of_its_own_replaces_the_model_s_and_nothing_else(model, tmp_path):
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(SMALL_TOKENIZER / name, tokenizer / name)
    settings = json.loads((tokenizer / "tokenizer_config.json").read_text())
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": "mine"}))
    (tokenizer / "preprocessor_config.json").write_text("{}")
    out = tmp_path / "model"
    keep_side_files(model, str(tokenizer), out)
    assert json.loads((out / "tokenizer_config.json").read_text())["chat_template"] == "mine"
    for name in ("preprocessor_config.json", "generation_config.json", "config.json"):
        assert (out / name).read_bytes() == (model / name).read_bytes()


@pytest.mark.parametrize("change", ["another template", "one file more", "one file less"])
def test_files_of_a_run_stay_where_another_model_is_given(model, tmp_path, change):
    keep_side_files(model, "", tmp_path / "model")
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    other = shutil.copytree(model, tmp_path / "other")
    name = "vocab.json" if change == "one file more" else "chat_template.json"
    (other / name).write_text("{}") if change != "one file less" else (other / name).unlink()
    with pytest.raises(UserError, match=rf"model/{name} is not .*other/{name}: .* or choose another workdir"):
        keep_side_files(other, "", tmp_path / "model")
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before
    keep_side_files(model, "", tmp_path / "model")


def test_a_copy_that_was_cut_off_is_done_again(model, tmp_path):
    keep_side_files(model, "", tmp_path / "model")
    (tmp_path / "model/config.json").unlink()
    (tmp_path / "model/tokenizer.json").write_text("cut")
    keep_side_files(model, "", tmp_path / "model")
    assert (tmp_path / "model/tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()


def test_a_run_that_goes_on_from_itself_keeps_its_files(model, tmp_path):
    run = tmp_path / "run"
    keep_side_files(model, "", run / "model")
    shutil.copytree(model / "params", run / "checkpoints" / "5" / "params")
    before = {path.name: path.read_bytes() for path in (run / "model").iterdir()}
    keep_side_files(run / "checkpoints" / "5", "", run / "model")
    assert {path.name: path.read_bytes() for path in (run / "model").iterdir()} == before


def test_a_folder_without_a_model_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="holds no model"):
        keep_side_files(tmp_path, "", tmp_path / "model")
    assert not (tmp_path / "model").exists()
