"""The configuration: files, overrides on the command line, and the checks before a run."""

from __future__ import annotations

import ast
import inspect
import json
import math
import re
import sys
from pathlib import Path

import pytest
from absl import flags
from ml_collections import ConfigDict, config_flags

from perception_r1_jax.config import (
    FINITE,
    LEAST,
    POSITIVE,
    arithmetic,
    default_config,
    load_instruction,
    resolve,
    validate,
)
from perception_r1_jax.errors import UserError
from perception_r1_jax.sft.config import sft_config
from perception_r1_jax.sharding import make_mesh

REPOSITORY = Path(__file__).resolve().parent.parent
FILES = sorted(path.name for path in (REPOSITORY / "configs").glob("*.py"))
GRPO_FILES = [name for name in FILES if "sft" not in name]  # tests/test_sft_config.py has the others


def load(monkeypatch, name: str, *overrides: str) -> ConfigDict:
    """A config file as a script reads it, by absl and ml_collections, with overrides from the command line."""
    arguments = ["train.py", f"--config={REPOSITORY / 'configs' / name}", *overrides]
    monkeypatch.setattr(sys, "argv", arguments)  # where ml_collections looks for overrides
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    values(arguments)
    return values.config


@pytest.fixture
def config() -> ConfigDict:
    """A config that is valid as it is."""
    config = default_config()
    config.model.path = "random"
    return config


def leaves(config: ConfigDict | None = None) -> dict[str, object]:
    """Dotted name -> value of every field of the config, by default `default_config`."""
    fields = {}
    for name, value in (config or default_config()).items():
        inner = {f"{name}.{key}": leaf for key, leaf in value.items()} if isinstance(value, ConfigDict) else {}
        fields |= inner or {name: value}
    return fields


def numbers(kind: type) -> list[str]:
    """Dotted names of the fields of `default_config` with a value of this type."""
    return [field for field, value in leaves().items() if type(value) is kind]


def set_field(config: ConfigDict, field: str, value) -> None:
    config.update_from_flattened_dict({field: value})


def test_a_failed_judgement_drops_its_sample_unless_the_config_says_otherwise():
    assert default_config().judge.on_failure == "drop_sample"


def test_there_are_config_files():
    assert {"debug.py", "perception_r1_3b.py", "perception_r1_7b.py"} <= set(FILES)


@pytest.mark.parametrize("name", GRPO_FILES)
def test_every_config_file_is_valid_once_its_paths_exist(monkeypatch, tmp_path, name):
    fields = ("model.path", "judge.path", "data.path")
    config = load(monkeypatch, name, *(f"--config.{field}={tmp_path}" for field in fields))
    validate(config)
    assert config.is_locked
    assert list(config.to_dict()) == list(default_config().to_dict())


@pytest.mark.parametrize("name", ["perception_r1_3b.py", "perception_r1_7b.py"])
@pytest.mark.parametrize("missing", ["model.path", "judge.path", "data.path"])
def test_the_published_runs_ask_for_their_model_judge_and_data(monkeypatch, tmp_path, name, missing):
    monkeypatch.chdir(tmp_path)
    config = load(monkeypatch, name)
    for field in {"model.path", "judge.path", "data.path"} - {missing}:
        set_field(config, field, str(tmp_path))
    with pytest.raises(FileNotFoundError, match=rf"config\.{missing} = '.+' does not exist. Give a path that does"):
        validate(config)


def test_the_debug_config_needs_nothing(monkeypatch):
    validate(load(monkeypatch, "debug.py"))


def test_overrides_keep_the_field_s_type(monkeypatch):
    config = load(
        monkeypatch,
        "debug.py",
        "--config.rollout.prompt_buckets=(64, 128)",
        "--config.rollout.response_buckets=48",
        "--config.optimizer.learning_rate=1",
        "--config.model.freeze_vision=true",
        "--config.rollout.stop_strings=('</answer>', 'Q:')",
    )
    assert config.rollout.prompt_buckets == (64, 128)
    assert config.rollout.response_buckets == (48,)
    assert isinstance(config.optimizer.learning_rate, float)
    assert config.model.freeze_vision is True
    assert config.rollout.stop_strings == ("</answer>", "Q:")
    validate(config)


@pytest.mark.parametrize("field", ["foo", "rollout.foo", "rollout.prompts_per_stepp"])
def test_an_unknown_field_is_an_error_on_the_command_line(monkeypatch, field):
    with pytest.raises(AttributeError, match=field.rpartition(".")[2]):
        load(monkeypatch, "debug.py", f"--config.{field}=1")


@pytest.mark.parametrize("field", ["foo", "rollout.foo"])
def test_an_unknown_field_is_an_error_in_a_file(monkeypatch, tmp_path, field):
    file = tmp_path / "mine.py"
    file.write_text(
        "from perception_r1_jax.config import default_config\n\n\n"
        f"def get_config():\n    config = default_config()\n    config.{field} = 1\n    return config\n"
    )
    with pytest.raises(AttributeError, match='Key "foo" does not exist and cannot be added'):
        load(monkeypatch, str(file)).copy_and_resolve_references()


def test_a_value_of_another_type_is_an_error(monkeypatch):
    with pytest.raises(flags.IllegalFlagValueError, match=r"config\.steps=many"):
        load(monkeypatch, "debug.py", "--config.steps=many")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("fidelity", "papre", "'papre': choose one of default, paper"),
        ("model.remat", "all", "'all': choose one of none, full, dots"),
        ("judge.on_failure", "ignore", "'ignore': choose one of drop_sample"),
        ("grpo.aggregation", "mean", "'mean': choose one of sequence_mean"),
        ("grpo.advantages", "gae", "'gae': choose one of grpo, dr_grpo, rloo, reinforce_plus_plus"),
        ("grpo.loss", "ppo", "'ppo': choose one of clipped, gspo, cispo"),
        ("grpo.kl_in", "loss_and_reward", "'loss_and_reward': choose one of loss, reward"),
        ("grpo.kl_schedule", "linear", "'linear': choose one of fixed, adaptive, dynamic"),
        ("grpo.kl_schedule", "adaptive", "'adaptive': give it a weight to adapt, grpo.kl_coefficient above 0"),
        ("grpo.kl_target", 0.0, "0.0: it must be a number above 0"),
        ("reward.overlong_tokens", 4097, "4097: it is above the largest response bucket, 4096"),
        ("grpo.dual_clip", 0.5, "0.5: it must be at least 1, or 0 for no such limit"),
        ("grpo.importance_cap", -1.0, "-1.0: it must be a number of at least 0"),
        ("seed", -1, "-1: it must be a number of at least 0"),
        ("steps", 0, "0: it must be a number of at least 1"),
        ("judge.max_new_tokens", 0, "0: it must be a number of at least 1"),
        ("judge.max_prompt_tokens", 0, "0: it must be a number of at least 1"),
        ("rollout.samples_per_prompt", 1, "1: it must be a number of at least 2"),
        ("rollout.top_k", -1, "-1: it must be a number of at least 0"),
        ("rollout.temperature", 0.0, "0.0: it must be a number above 0"),
        ("rollout.top_p", 1.5, "1.5: it must be above 0 and at most 1"),
        ("rollout.min_p", -0.1, "-0.1: it must be a number of at least 0"),
        ("rollout.min_p", 1.5, "1.5: it must be at most 1"),
        ("rollout.min_new_tokens", -1, "-1: it must be a number of at least 0"),
        ("rollout.min_new_tokens", 4097, "4097: it is above the largest response bucket, 4096"),
        ("rollout.stop_strings", ("END", ""), r"\('END', ''\): give a tuple of texts, none of them empty"),
        ("rollout.stop_strings", (1,), r"\(1,\): give a tuple of texts"),
        ("rollout.stop_strings", ("\ufffd",), r"\('\ufffd',\): give a tuple of texts, .* with U\+FFFD"),
        ("optimizer.b1", 1.0, "1.0: it must be at least 0 and below 1"),
        ("optimizer.b2", -0.1, "-0.1: it must be at least 0 and below 1"),
        ("optimizer.b2", math.nan, "nan: it must be at least 0 and below 1"),
        ("optimizer.eps", 0.0, "0.0: it must be a number above 0"),
        ("optimizer.learning_rate", 0.0, "0.0: it must be a number above 0"),
        ("optimizer.warmup_fraction", 1.1, "1.1: it must be at most 1"),
        ("checkpoint.keep_last", 0, "0: it must be a number of at least 1"),
        ("checkpoint.keep_best", -1, "-1: it must be a number of at least 0"),
        ("model.min_pixels", 2_000_000, "2000000: it is above model.max_pixels, 1806336"),
        ("rollout.prompt_buckets", (512, 256), r"\(512, 256\): list whole numbers, rising"),
        ("judge.flip_probability", 1.2, "1.2: it must be between 0 and 1"),
        ("reward.visual_mode", "soft", "'soft': choose one of hard, probability"),
        ("judge.max_failure_rate", -0.1, "-0.1: it must be between 0 and 1"),
        ("judge.failure_window", 0, "0: it must be a number of at least 1"),
        ("judge.cache_size", -1, "-1: it must be a number of at least 0"),
        ("judge.timeout_seconds", 0.0, "0.0: it must be a number above 0"),
        ("judge.cache_memory", 0.56, r"0.56: judge\.weights_memory = 0.45 leaves less of the memory"),
        ("rollout.weights_memory", 1.0, "1.0: it is a share of the memory, below 1"),
        ("rollout.window_buckets", (16, 16), r"\(16, 16\): list whole numbers, rising"),
        ("rollout.response_buckets", (0.5,), r"\(0.5,\): list whole numbers, rising"),
        ("rollout.response_buckets", (), r"\(\): list whole numbers, rising"),
        ("rollout.response_buckets", (0, 64), r"\(0, 64\): the smallest must be at least 1"),
    ],
)
def test_an_impossible_value_is_named_with_what_to_set(config, field, value, message):
    validate(config)
    set_field(config, field, value)
    with pytest.raises(UserError, match=rf"config\.{field} = {message}"):
        validate(config)


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        ({"mode": "free"}, r"judge\.mode = 'free' gives no probabilities; set it to 'constrained', or this to 'hard'"),
        ({"path": "http://localhost:8000/v1"}, r"an endpoint gives no probabilities; set judge\.path to a model"),
    ],
)
def test_probabilities_are_asked_only_of_a_judge_that_has_them(config, judge, message):
    config.judge.path, config.reward.visual_mode = "random", "probability"
    validate(config)
    config.judge.update(judge)
    with pytest.raises(UserError, match=rf"config\.reward\.visual_mode = 'probability': {message}"):
        validate(config)
    config.judge.path = ""  # nobody to ask
    validate(config)


def test_the_authors_judge_gives_no_probabilities(config):
    config.judge.path, config.reward.visual_mode, config.fidelity = "random", "probability", "paper"
    with pytest.raises(UserError, match=r"config\.reward\.visual_mode = 'probability': judge\.mode = 'free'"):
        resolve(config)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", numbers(float))
def test_no_field_may_be_anything_but_a_finite_number(config, field, value):
    set_field(config, field, value)
    with pytest.raises(UserError, match=rf"config\.{field} = {value}: it must be"):
        validate(config)


def test_every_whole_number_has_a_least_value():
    divisors = {"grpo.micro_batch_prompts", "grpo.micro_batch_samples"}
    bounded = {*LEAST, *POSITIVE, *FINITE, *divisors, "model.max_pixels"}
    assert {field for field in numbers(int) if not field.startswith("mesh.")} <= bounded


def test_batch_sizes_that_do_not_divide_are_told_the_nearest_that_do(config):
    config.rollout.prompts_per_step = 12
    config.grpo.micro_batch_prompts = 5
    with pytest.raises(UserError, match=r"config\.grpo\.micro_batch_prompts is 5.*12.*that do: 4 and 6\."):
        validate(config)
    config.grpo.micro_batch_prompts = 4
    config.grpo.micro_batch_samples = 9
    with pytest.raises(UserError, match=r"config\.grpo\.micro_batch_samples is 9.*8.*that do: 4 and 8\."):
        validate(config)
    config.grpo.micro_batch_samples = 2
    validate(config)
    config.grpo.updates_per_batch = 5
    with pytest.raises(UserError, match=r"config\.grpo\.updates_per_batch is 5.*12.*that do: 4 and 6\."):
        validate(config)
    config.grpo.updates_per_batch = 4
    with pytest.raises(UserError, match=r"config\.grpo\.micro_batch_prompts is 4.* 3.*that do: 1 and 3\."):
        validate(config)


@pytest.mark.parametrize("field", ["rollout.save", "rollout.replay"])
def test_rollouts_of_several_rounds_are_neither_kept_nor_replayed(config, tmp_path, field):
    set_field(config, field, str(tmp_path))
    validate(config)
    config.rollout.max_rounds = 2
    with pytest.raises(UserError, match=rf"config\.{field} = '.*': a file holds one draw of a step"):
        validate(config)


@pytest.mark.parametrize("field", ["model.path", "data.path", "judge.path", "model.tokenizer", "judge.prompt"])
def test_an_absent_path_is_named(config, field):
    set_field(config, field, "no/such/place")
    with pytest.raises(FileNotFoundError, match=rf"config\.{field} = 'no/such/place' does not exist"):
        validate(config)


def test_a_judge_in_the_hosts_memory_does_not_judge_while_responses_are_drawn(config):
    config.judge.host_memory = True
    with pytest.raises(UserError, match=r"config\.judge\.host_memory = True: .* set judge\.streaming to False"):
        validate(config)


def test_a_judge_that_sees_is_no_address(config):
    config.judge.path, config.judge.sees = "http://localhost:8000/v1", True
    with pytest.raises(
        UserError, match=r"config\.judge\.sees = True: an endpoint is asked about annotations; set judge"
    ):
        validate(config)


def test_a_judge_may_be_an_address(config):
    config.judge.path = "http://localhost:8000/v1"
    validate(config)
    config.judge.path = "http://:8000"
    with pytest.raises(UserError, match=r"judge 'http://:8000': give the address of a server, such as http://local"):
        validate(config)


@pytest.mark.parametrize("field", ["model.path", "data.path"])
def test_a_path_must_be_given(config, field):
    set_field(config, field, "")
    with pytest.raises(FileNotFoundError, match=rf"config\.{field} = '' does not exist. Give a path that does, or '"):
        validate(config)


def test_nothing_is_evaluated_on_what_it_trains_on(config, tmp_path):
    config.evaluation.split = "val"
    validate(config)
    config.evaluation.split = config.data.split
    with pytest.raises(UserError, match=r"config\.evaluation\.split = 'train': the run trains on this split"):
        validate(config)
    config.evaluation.split, config.data.path = "val", str(tmp_path / "all.parquet")
    (tmp_path / "all.parquet").touch()
    with pytest.raises(UserError, match=r"config\.evaluation\.split = 'val': a single file has one split"):
        validate(config)


def test_an_instruction_is_text_or_the_name_of_a_file(config, tmp_path):
    for text in ("Think.", "x" * 400):
        config.format_instruction = text
        validate(config)
        assert load_instruction(config) == text
    config.format_instruction = str(tmp_path / "mine.txt")
    with pytest.raises(FileNotFoundError, match=r"config\.format_instruction = .*mine\.txt' does not exist"):
        validate(config)
    (tmp_path / "mine.txt").write_text("Think twice.\n")
    validate(config)
    assert load_instruction(config) == "Think twice."


def test_an_instruction_is_read_from_the_authors_prompts(config, shared_data):
    path = shared_data / "perception_r1" / "prompts.json"
    config.format_instruction = str(path)
    validate(config)
    assert load_instruction(config) == json.loads(path.read_text())["format_instruction"]
    assert load_instruction(config).startswith("You FIRST think")


@pytest.mark.parametrize("content", ["", "[]", "{}", '"a"', "1", '{"format_instruction": 1}', '{"instruction": "a"}'])
def test_a_json_file_without_an_instruction_is_named(config, tmp_path, content):
    (tmp_path / "mine.json").write_text(content)
    config.format_instruction = str(tmp_path / "mine.json")
    with pytest.raises(UserError, match=r"mine\.json'.* with a text under 'format_instruction'"):
        validate(config)


@pytest.mark.parametrize("kind", ["txt", "json"])
def test_an_instruction_of_other_bytes_is_named(config, tmp_path, kind):
    (tmp_path / f"mine.{kind}").write_bytes(b"\xff\xfe\x00")
    config.format_instruction = str(tmp_path / f"mine.{kind}")
    with pytest.raises(UserError, match=rf"mine\.{kind}': it must be text in UTF-8\."):
        validate(config)


def assignments(source: str) -> dict[str, bool]:
    """Dotted name of every `config.x = ...` in a source -> whether its line, or the one above, has a comment."""
    lines, found = source.splitlines(), {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign) and (name := ast.unparse(node.targets[0])).startswith("config."):
            own, above = lines[node.lineno - 1], lines[node.lineno - 2].strip()
            found[name.removeprefix("config.")] = "  # " in own or above.startswith("# ")
    return found


@pytest.mark.parametrize(
    "file",
    [*(f"configs/{name}" for name in FILES), "perception_r1_jax/config.py", "perception_r1_jax/sft/config.py"],
)
def test_every_field_that_is_set_has_a_comment(file):
    commented = assignments((REPOSITORY / file).read_text())
    assert commented
    assert not [field for field, has in commented.items() if not has]


def test_the_published_run_sets_every_field():
    assert assignments((REPOSITORY / "configs" / "perception_r1_7b.py").read_text()).keys() == leaves().keys()


def sources() -> list[str]:
    """All code that may read the config: package and scripts, but of config.py only what is no check."""
    files = [*REPOSITORY.glob("perception_r1_jax/**/*.py"), *REPOSITORY.glob("scripts/*.py")]
    others = [path.read_text() for path in files if path != REPOSITORY / "perception_r1_jax" / "config.py"]
    return [*others, inspect.getsource(load_instruction)]


def is_read(field: str, code: list[str]) -> bool:
    """Whether some code has `config.SECTION.FIELD`, or names the section and has `.FIELD`."""
    section, _, name = field.rpartition(".")
    if section == "mesh":  # passed as a whole
        return name in inspect.signature(make_mesh).parameters and any("**config.mesh" in text for text in code)
    if field.startswith("reward.") and name.endswith("_weight"):
        return any('reward[f"{name}_weight"]' in text for text in code)
    where = section or "config"
    return any(re.search(rf"\b{where}\b", text) and re.search(rf"\.{name}\b", text) for text in code)


def test_every_field_is_read_somewhere():
    code = sources()
    assert not [field for field in leaves() | leaves(sft_config()) if not is_read(field, code)]
    assert not is_read("judge.no_such_field", code)


def test_every_field_that_the_code_reads_exists():
    unknown = []
    for path in [*REPOSITORY.glob("perception_r1_jax/**/*.py"), *REPOSITORY.glob("scripts/*.py")]:
        fields = sft_config() if path.parent.name == "sft" else default_config()
        sections = [name for name, value in fields.items() if isinstance(value, ConfigDict)]
        for section, field in re.findall(rf"\bconfig\.({'|'.join(sections)})\.(\w+)\b", path.read_text()):
            if field not in fields[section]:
                unknown.append(f"{path.name}: config.{section}.{field}")
    assert not unknown


def test_arithmetic_of_a_run(config):
    text = arithmetic(config, problems=1442, parameters=8_292_166_656, judge_parameters=0, mesh={"data": 1, "fsdp": 16})
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines == [
        "problems 1,442, 11 steps an epoch, 275 steps = 25.0 epochs",
        "a step 128 prompts x 8 samples = 1,024 responses, one optimizer update",
        "micro-batches 16 of 64 (8 prompts x 8), by length",
        "tokens prompt <= 4,096, response <= 4,096, step <= 8,388,608",
        "parameters policy 8,292,166,656, judge 0",
        "mesh data 1 x fsdp 16",
        "note 16 devices (data x fsdp) do not divide the 8 rows of a micro-batch: each computes them all. "
        "Set grpo.micro_batch_prompts to a multiple of 16.",
    ]


def test_arithmetic_of_groups_that_may_be_split(config):
    config.grpo.micro_batch_samples = 2
    text = arithmetic(config, problems=1442, parameters=1, judge_parameters=0, mesh={"data": 1, "fsdp": 8})
    assert "at most 64, of 16 (8 prompts x 2) or more where responses are short, by length" in text


@pytest.mark.parametrize(("mesh", "noted"), [({"data": 2, "fsdp": 4}, True), ({"data": 2, "fsdp": 1}, False)])
def test_rows_that_the_devices_do_not_divide_are_noted(config, mesh, noted):
    """The engine shares out prompts and requests, so any number of these will do."""
    config.rollout.prompts_per_step, config.judge.batch_size, config.grpo.micro_batch_prompts = 3, 5, 2
    text = arithmetic(config, problems=8, parameters=1, judge_parameters=1, mesh=mesh)
    assert ("note" in text) == noted


@pytest.mark.parametrize(("rounds", "cap", "noted"), [(1, 0.0, False), (2, 0.0, True), (2, 2.0, False)])
def test_groups_that_are_carried_over_without_being_weighed_are_noted(config, rounds, cap, noted):
    config.rollout.max_rounds, config.grpo.importance_cap = rounds, cap
    text = arithmetic(config, problems=8, parameters=1, judge_parameters=1, mesh={"data": 1, "fsdp": 1})
    assert ("Set grpo.importance_cap, mostly to 2" in text) == noted


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora.rank": 0}, r"lora\.rank = 0: it must be a number of at least 1"),
        ({"lora.alpha": 0.0}, r"lora\.alpha = 0\.0: it must be a number above 0"),
        ({"lora.modules": ("query",)}, r"lora\.modules = \('query',\): list some of q, k, v, qkv, o, gate, up, down"),
        ({"lora.modules": ("qkv",), "model.freeze_vision": True}, r"lora\.modules = .*: qkv is of the vision tower"),
        ({"lora.modules": ("q",), "optimizer.name": "muon"}, r"lora\.modules = .*: muon is for whole matrices"),
    ],
)
def test_impossible_adapters_are_refused(config, changes, message):
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=rf"config\.{message}"):
        validate(config)
