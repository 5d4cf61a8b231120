"""The configuration of supervised training: what is refused before any device work, and the configs at hand."""

from __future__ import annotations

import importlib

import pytest

from perception_r1_jax.errors import UserError
from perception_r1_jax.sft.config import arithmetic, resolve, sft_config


@pytest.fixture
def config():
    made = sft_config()
    made.model.path, made.data.path = "random", "geometry_world:policy"
    return made


def test_the_default_is_complete_and_locked(config):
    resolved = resolve(config)
    assert resolved == config
    assert resolved is not config
    with pytest.raises(AttributeError):
        config.sft.row_token = 3


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("sft.row_tokens", 1, "1: it must be a number of at least 2"),
        ("sft.row_windows", -1, "-1: it must be a number of at least 0"),
        ("sft.waiting", 0, "0: it must be a number of at least 1"),
        ("sft.validate_every", 0, "0: it must be a number of at least 1"),
        ("sft.log_every", 0, "0: it must be a number of at least 1"),
        ("data.prefetch", -1, "-1: it must be a number of at least 0"),
        ("steps", 0, "0: it must be a number of at least 1"),
        ("optimizer.schedule", "linear", "'linear': choose one of constant, cosine"),
        ("optimizer.learning_rate", 0.0, "0.0: it must be a number above 0"),
        ("optimizer.b2", 1.0, "1.0: it must be at least 0 and below 1"),
        ("model.dtype", "int8", "'int8': choose one of float32, bfloat16"),
        ("checkpoint.keep_last", 0, "0: it must be a number of at least 1"),
    ],
)
def test_impossible_values_are_refused(config, field, value, message):
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=f"config.{field} = {message}"):
        resolve(config)


def test_micro_batches_must_divide(config):
    config.sft.micro_batch_rows = 5
    with pytest.raises(UserError, match=r"config\.sft\.micro_batch_rows is 5, which does not divide 32.* 2 and 4"):
        resolve(config)


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("model.path", "or 'random'"),
        ("data.path", "or 'geometry_world:policy', or 'geometry_world:judge'"),
        ("model.tokenizer", "or ''"),
    ],
)
def test_a_path_must_exist(config, field, words):
    config.update_from_flattened_dict({field: "nowhere"})
    with pytest.raises(FileNotFoundError, match=f"config.{field} = 'nowhere' does not exist.*{words}"):
        resolve(config)


def test_nothing_is_validated_on_what_it_trains_on(config, tmp_path):
    config.data.validation_split = "train"
    with pytest.raises(UserError, match=r"config\.data\.validation_split = 'train': .* validate on what it trains on"):
        resolve(config)
    config.data.validation_split, config.data.path = "val", str(tmp_path / "all.jsonl")
    (tmp_path / "all.jsonl").touch()
    with pytest.raises(UserError, match=r"Give a folder with another split, or set config\.sft\.validate_conversat"):
        resolve(config)
    config.sft.validate_conversations = 0
    resolve(config)


@pytest.mark.parametrize("name", ["reading", "binding", "policy", "judge"])
def test_the_configs_at_hand_are_valid(name):
    config = importlib.import_module(f"configs.mini_sft_{name}").get_config()
    config.model.path = "random"
    resolve(config)


def test_the_arithmetic_of_a_run(config):
    text = arithmetic(config, parameters=1234, mesh={"data": 2, "fsdp": 1})
    assert "32 rows x 4,096 tokens = 131,072 tokens, one optimizer update" in text
    assert "4 of 8 rows" in text
    assert "1,234" in text
    assert "data 2 x fsdp 1" in text
