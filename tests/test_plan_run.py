"""A plan compiles what a run compiles: the same functions, with arguments of the same shapes on the same devices."""

from __future__ import annotations

import dataclasses
import math
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import perception_r1_7b
from perception_r1_jax.config import default_config, resolve
from perception_r1_jax.errors import UserError
from perception_r1_jax.grpo.micro_batches import cut_batch
from perception_r1_jax.inference import Engine, Sampling
from perception_r1_jax.inference.choices import Between
from perception_r1_jax.models import abstract_params, count_params, flops, load_config, token_bytes
from perception_r1_jax.models.published import PUBLISHED
from perception_r1_jax.plan import resident, shapes
from perception_r1_jax.plan.advice import advise
from perception_r1_jax.plan.choosing import ChoiceCalls, choosing_programs
from perception_r1_jax.plan.cost import Cost
from perception_r1_jax.plan.measure import ACTIVATIONS, Measured
from perception_r1_jax.plan.models import model_shapes
from perception_r1_jax.plan.programs import (
    CACHE,
    JUDGE,
    KINDS,
    OPTIMIZER,
    PARAMETERS,
    bytes_by_kind,
    device_bytes,
    shard_bytes,
)
from perception_r1_jax.plan.resident import check_room, together
from perception_r1_jax.plan.run import drawing_calls, held_while_drawing, plan_run, run_programs, stored_params
from perception_r1_jax.plan.serving import Calls, serving_programs
from perception_r1_jax.plan.topologies import Target
from perception_r1_jax.records import Rollout, Scores
from perception_r1_jax.sharding import make_mesh
from perception_r1_jax.training.groups import Groups
from perception_r1_jax.training.train_batches import make_train_batches
from tests import tiny

SAMPLING = Sampling(max_new_tokens=40, stop_ids=(tiny.STOP_ID,), pad_id=tiny.PAD_ID)
PROGRAMS = ("embed", "prefill", "decode", "move", "prefix", "choose")
MEMORY = {"memory": 4 * count_params(tiny.CONFIG), "weights_memory": 0.6, "cache_memory": 10.0}


class Recorder:
    """Stands in for a program and keeps what it is called with, or lowered with."""

    def __init__(self, program, kept: list):
        self._program, self._kept = program, kept

    def __call__(self, *args, **kwargs):
        self._keep(args, kwargs)
        return self._program(*args, **kwargs)

    def lower(self, *args, **kwargs):
        self._keep(args, kwargs)
        return self._program.lower(*args, **kwargs)

    def _keep(self, args, kwargs):
        def describe(x):
            places = x.sharding.devices_indices_map(x.shape)
            return x.shape, x.dtype, tuple((device.id, str(index)) for device, index in places.items())

        leaves, structure = jax.tree.flatten(args)
        self._kept.append((structure, tuple(map(describe, leaves)), tuple(sorted(kwargs.items(), key=lambda x: x[0]))))


def recorded(engine: Engine) -> list:
    """What the engine's programs will be called with from now on."""
    kept = []
    for name in PROGRAMS:
        setattr(engine.programs, name, Recorder(getattr(engine.programs, name), kept))
    return kept


@pytest.mark.parametrize("prefix", [0, 9])
def test_an_engine_is_planned_with_what_it_is_called_with(prefix):
    mesh = make_mesh(tensor=2)
    prompts = tiny.prompt_batch([20, 24, 18, 24] * 2, [1, 1, 0, 1] * 2)
    ran = Engine(tiny.CONFIG, tiny.params(), mesh, slots=2, **MEMORY)
    run = recorded(ran)
    shared = ran.prefix(np.arange(prefix)) if prefix else None
    ran.generate(prompts, 2, SAMPLING, jax.random.key(0), prefix=shared)
    planned = Engine(tiny.CONFIG, None, mesh, slots=2, **MEMORY)
    plan = recorded(planned)
    calls = Calls(
        name="rollout",
        engine=planned,
        stored=stored_params(tiny.CONFIG, mesh, jnp.float32),
        kind=PARAMETERS,
        prompts=jax.eval_shape(lambda: jax.tree.map(jnp.asarray, prompts)),
        samples=2,
        sampling=SAMPLING,
        beside={},
        beside_load={},
        prefix_tokens=prefix,
    )
    for program in serving_programs(calls):
        with jax.set_mesh(program.mesh):
            program.lower()
    assert ran.mesh.shape["tensor"] == 2
    assert len(plan) == len(set(plan)) >= 5
    assert set(plan) == set(run)


@pytest.mark.parametrize("prefix", [0, 9])
def test_choices_are_planned_with_what_they_are_called_with(prefix):
    mesh = make_mesh(tensor=2)
    prompts = tiny.prompt_batch([20, 24, 18, 24] * 8, [1, 1, 0, 1] * 8)
    ran = Engine(tiny.CONFIG, tiny.params(), mesh, **MEMORY)
    run = recorded(ran)
    shared = ran.prefix(np.arange(prefix)) if prefix else None
    texts = [[5, 6], [7]]
    ran.choose(prompts, texts, np.full(32, 3), (3, 4), prefix=shared)
    planned = Engine(tiny.CONFIG, None, mesh, **MEMORY)
    plan = recorded(planned)
    shapes_of = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, (prompts, Between.of(texts))))
    programs = [*choosing_programs(ChoiceCalls("judge", planned, JUDGE, *shapes_of, (3, 4), prefix, beside={}))]
    for program in programs:
        with jax.set_mesh(program.mesh):
            program.lower()
    assert len(plan) == len(set(plan)) == 4 + bool(prefix)
    assert set(plan) == set(run)
    names = ["prefix"] * bool(prefix) + ["embed 1", "choose 1", "embed 8", "choose 8"]
    assert [program.name.split("/")[1].replace("vision", "embed") for program in programs] == names
    held = bytes_by_kind(programs[-1].held)[CACHE]
    assert held == prefix * token_bytes(tiny.CONFIG, np.float32) // 2  # once on a device, of one of its two key heads


def shape_of(tree):
    """Shapes and dtypes of numpy or abstract arrays, None where there is none."""
    return jax.tree.map(lambda x: (x.shape, np.dtype(x.dtype)), tree)


@pytest.mark.parametrize("updates", [1, 2])
def test_a_micro_batch_has_the_shapes_that_the_loop_makes(updates):
    config = small_config(grpo__updates_per_batch=updates, grpo__micro_batch_prompts=2)
    prompts = tiny.prompt_batch([20] * 4, [1] * 4, length=32, windows=3)
    shape = (4, 2, 16)
    rollout = Rollout(np.zeros(shape, np.int32), np.ones(shape, bool), np.zeros(shape, np.float32), [], [])
    total, valid = np.zeros(shape[:2], np.float32), np.ones(shape[:2], bool)
    scores = Scores(total, {}, valid, [], [], [], {})

    def add_log_probs(_, batch):
        return dataclasses.replace(batch, old_logps=batch.rollout_logps if updates > 1 else None)

    run = types.SimpleNamespace(
        config=config,
        mesh=make_mesh(),
        add_log_probs=add_log_probs,
        state=types.SimpleNamespace(params=None),
        train_step=types.SimpleNamespace(looked_at=lambda batch: batch),
    )
    batches, _ = make_train_batches(run, Groups([], rollout, scores, prompts))
    cut = [(batch, one) for batch in batches for one in cut_batch(batch.prompts, batch.mask, config)]
    assert len(cut) == shapes.micro_batches(config) == 2
    for batch, one in cut:
        assert shape_of(one.take(batch)) == shape_of(shapes.micro_batch(config, tiny.CONFIG))
        assert shape_of(one.take_responses(batch.rollout_logps)) == shape_of(shapes.micro_batch_weights(config))


def small_config(**fields):
    """A run of the tiny size; `fields` by dotted name with `__` for the dot."""
    config = default_config()
    values = {
        "model.path": "random",
        "model.dtype": "float32",
        "judge.path": "random",
        "judge.max_prompt_tokens": 64,
        "judge.max_new_tokens": 32,
        "judge.batch_size": 8,
        "rollout.prompts_per_step": 4,
        "rollout.samples_per_prompt": 2,
        "rollout.prompt_buckets": (32,),
        "rollout.window_buckets": (3,),
        "rollout.response_buckets": (16,),
        "grpo.micro_batch_prompts": 4,
        "grpo.micro_batch_samples": 2,
        **{name.replace("__", "."): value for name, value in fields.items()},
    }
    with config.unlocked():
        config.update_from_flattened_dict(values)
    return resolve(config, paths=False)


def plan_of(memory: float = 2**30, **fields):
    """The planned run of a small config on 4 devices of so many bytes."""
    return plan_run(small_config(**fields), Target("local", jax.devices()[:4], int(memory), None))


def test_what_lies_in_the_hosts_memory_or_is_not_there_is_not_counted():
    fields = {
        "optimizer__host_memory": True,
        "judge__host_memory": True,
        "judge__streaming": False,
        "grpo__kl_coefficient": 0.1,
    }
    run = plan_of(lora__modules=("q", "up"), lora__rank=2, **fields)
    programs, problems = run_programs(run)
    held = {program.name: bytes_by_kind(program.held) for program in programs}
    assert problems == []
    assert run.reference is None, "the base is"
    master, judge = device_bytes(run.state.params), 4 * count_params(run.judge)
    assert held["train/log_probs"] == held["train/update"]
    assert held["train/gradient"] == {PARAMETERS: master, OPTIMIZER: 8, CACHE: 0, JUDGE: 0}  # two counts of updates
    assert held["rollout/decode 2"][JUDGE] == 0
    assert (held["judge/choose 1"][JUDGE], held["judge/choose 1"][OPTIMIZER]) == (judge, 8)


def test_what_lies_beside_a_program_is_counted_with_it():
    run = plan_of(grpo__kl_coefficient=0.1, grpo__updates_per_batch=2, grpo__micro_batch_prompts=2)
    programs, problems = run_programs(run)
    held = {program.name: bytes_by_kind(program.held) for program in programs}
    given = {program.name: bytes_by_kind(program.given) for program in programs}
    state, reference = run.state, device_bytes(run.reference)
    master, moments = device_bytes(state.params), device_bytes(state.opt_state)
    assert problems == []
    assert [name for name in held if name.startswith("train")] == [
        "train/log_probs",
        "train/old_log_probs",
        "train/gradient",
        "train/update",
    ]
    judge = held["train/update"][JUDGE]
    assert judge == 4 * count_params(run.judge)  # whole on each of the devices that serve
    for name in ("train/gradient", "train/update"):
        assert held[name] == {PARAMETERS: master + reference, OPTIMIZER: moments, CACHE: 0, JUDGE: judge}
    assert given["train/gradient"] == {PARAMETERS: master, OPTIMIZER: 0, CACHE: 0, JUDGE: 0}
    assert given["train/update"] == {PARAMETERS: master, OPTIMIZER: moments, CACHE: 0, JUDGE: 0}
    assert given["train/log_probs"] == {PARAMETERS: reference, OPTIMIZER: 0, CACHE: 0, JUDGE: 0}
    served = 4 * count_params(run.policy)
    decoding = held["rollout/decode 2"]
    assert decoding[PARAMETERS] == master + reference + served
    assert (decoding[OPTIMIZER], decoding[JUDGE]) == (moments, judge)
    assert decoding[CACHE] == given["rollout/decode 2"][CACHE] > 0
    assert held["judge/choose 1"][PARAMETERS] == master + reference + served, "it judges while responses are drawn"
    assert held["judge/choose 1"][CACHE] == given["judge/choose 1"][CACHE] + decoding[CACHE]
    assert held["rollout/load"][PARAMETERS] == master + reference + served
    assert "judge/load" not in held, "a judge is read one parameter after another"


def test_a_judge_that_waits_for_the_rollout_has_its_room():
    """But for the weights, where the step may draw again."""

    def held(**fields):
        run = plan_of(**fields)
        programs, _ = run_programs(run)
        judging = next(bytes_by_kind(program.held) for program in programs if program.name == "judge/choose 1")
        return judging, [*together(run).values()][-1]

    (beside, _), (apart, parts) = held(judge__streaming=True), held(judge__streaming=False)
    run = plan_of()
    rollout = bytes_by_kind(held_while_drawing(run))
    assert rollout[PARAMETERS] == 4 * count_params(run.policy)
    assert rollout[CACHE] > 0
    assert {kind: beside[kind] - apart[kind] for kind in beside} == rollout
    drawing_again, its_parts = held(judge__streaming=False, rollout__max_rounds=2)
    assert {kind: drawing_again[kind] - apart[kind] for kind in apart} == {
        **dict.fromkeys(rollout, 0),
        PARAMETERS: rollout[PARAMETERS],
    }
    assert sum(its_parts.values()) - sum(parts.values()) == rollout[PARAMETERS]


def test_what_lies_together_is_what_the_programs_hold():
    run = plan_of(judge__max_prompt_tokens=4096, grpo__kl_coefficient=0.1)
    (parts,) = together(run).values()
    programs, _ = run_programs(run)
    judging = [program for program in programs if program.name.startswith("judge/choose")][-1]
    held = sum(bytes_by_kind(judging.held).values())
    with jax.set_mesh(judging.mesh):
        own = judging.lower().compile().memory_analysis().temp_size_in_bytes
    prefix = device_bytes(judging.given[CACHE])
    assert sum(parts.values()) - parts["the judge's cache"] == held - prefix
    assert prefix < parts["the judge's cache"] < prefix + own


def test_models_that_have_no_room_together_are_told_before_the_run_starts(monkeypatch):
    """The published run on 4 devices of 80 GB, where each engine's shares would hold."""
    monkeypatch.setattr(resident, "device_memory", lambda device: 80 * 10**9)
    policy, judge = PUBLISHED["Qwen2.5-VL-7B-Instruct"], PUBLISHED["Qwen2.5-32B-Instruct"]
    mesh, config = make_mesh(devices=jax.devices()[:4]), resolve(perception_r1_7b.get_config(), paths=False)
    with pytest.raises(UserError) as told:
        check_room(config, policy, judge, mesh)
    first, *parts = str(told.value).splitlines()
    sizes = {
        name: float(size) for size, name in (re.match(r" +([\d.]+) GiB  (.+?): ", part).groups() for part in parts)
    }
    assert "while responses are drawn and judged" in first
    assert sum(sizes.values()) == pytest.approx(float(re.search(r"judged ([\d.]+) GiB", first)[1]), abs=0.05)
    assert "which has 74.51 GiB" in first
    assert sizes["the policy's parameters"] == pytest.approx(count_params(policy) / 2**30, rel=1e-2)
    assert sizes["the judge's weights"] == pytest.approx(2 * count_params(judge) / 2 / 2**30, rel=1e-2), "over 2"
    for section, field in re.findall(r"config\.(\w+)\.(\w+)", str(told.value)):
        assert field in config[section]
    config.judge.weights_int8, config.judge.weights_memory, config.optimizer.host_memory = True, 0.3, True
    check_room(config, policy, judge, mesh)


@pytest.mark.parametrize(
    ("fields", "needed"),
    [
        ({"rollout__prompt_buckets": (32, 256)}, "16 tokens to a prompt of 256 needs room in the cache for 286"),
        (
            {"evaluation__split": "test", "evaluation__max_new_tokens": 256},
            "256 tokens to a prompt of 32 needs room in the cache for 320",
        ),
    ],
)
def test_a_cache_without_room_for_the_longest_is_told_before_the_run_starts(monkeypatch, fields, needed):
    monkeypatch.setattr(resident, "device_memory", lambda device: 2**30)
    config, mesh = small_config(), make_mesh(devices=jax.devices()[:4])
    policy = plan_of().policy
    config.rollout.cache_memory = 100.5 * token_bytes(policy, np.float32) / 2**30
    check_room(config, policy, None, mesh)
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
    with pytest.raises(UserError, match=rf"{needed} tokens; there is room for 100\."):
        check_room(config, policy, None, mesh)


def test_programs_are_given_what_they_read():
    """The compiled program's arguments are at least what the plan says it is given: nothing of that is left out."""
    programs, _ = run_programs(plan_of())
    for program in programs:
        if program.name.split("/")[1].split()[0] in PROGRAMS:
            with jax.set_mesh(program.mesh):
                stats = program.lower().compile().memory_analysis()
            given = sum(bytes_by_kind(program.given).values())
            assert given <= stats.argument_size_in_bytes <= given + 2**20, program.name


def test_a_judge_is_planned_behind_its_instruction():
    fields = {"judge__max_prompt_tokens": 4096, "judge__weights_int8": True}
    run = plan_of(**fields)
    programs, problems = run_programs(run)
    assert problems == []
    judging = {program.name: program for program in programs if program.name.startswith("judge/")}
    assert list(judging) == ["judge/prefix", "judge/embed 1", "judge/choose 1", "judge/embed 2", "judge/choose 2"]
    tokens = shapes.judge_prefix_tokens(run.config)
    prefix = tokens * token_bytes(run.judge, np.float32)
    assert 600 < tokens < 1000
    assert bytes_by_kind(judging["judge/choose 2"].given)[CACHE] == prefix
    train = next(program for program in programs if program.name == "train/update")
    assert bytes_by_kind(train.held)[JUDGE] == device_bytes(judging["judge/choose 2"].held[JUDGE]) + prefix
    thinking, _ = run_programs(plan_of(**fields, judge__max_thought_tokens=32))
    names = [program.name for program in thinking if program.name.startswith("judge/")]
    assert [name for name in names if "thoughts" not in name] == list(judging)
    written = {name.split("/")[2].split()[0] for name in names if name.startswith("judge/thoughts/")}
    assert {"prefill", "decode"} < written
    free, _ = run_programs(plan_of(**fields, judge__mode="free"))
    names = [program.name for program in free if program.name.startswith("judge/")]
    assert names[0] == "judge/prefix"
    assert {name.split("/")[1].split()[0] for name in names} == {"prefix", "embed", "prefill", "decode", "move"}


def test_a_run_without_judge_or_reference_has_no_programs_of_theirs():
    programs, _ = run_programs(plan_of(judge__path=""))
    assert {program.name.split("/")[0] for program in programs} == {"rollout", "train"}


def test_a_judge_that_sees_is_planned_with_its_vision_tower():
    run = plan_of(judge__sees=True)
    programs, problems = run_programs(run)
    by_name = {program.name: program for program in programs}
    assert problems == []
    assert run.judge.vision is not None
    assert bytes_by_kind(by_name["train/update"].held)[JUDGE] == 4 * count_params(run.judge)
    vision = by_name["judge/vision 2"]
    tower = 4 * count_params(run.judge) - 4 * count_params(dataclasses.replace(run.judge, vision=None))
    assert bytes_by_kind(vision.given)[JUDGE] >= tower > 0
    assert vision.useful_flops == flops.vision_flops(run.judge.vision, 4, 8), "3 windows in a bucket of 4, 8 requests"


def test_a_judge_that_is_to_see_and_cannot_is_an_error():
    with pytest.raises(
        UserError, match=r"config.judge.path = 'Qwen2.5-7B-Instruct' is a qwen2 model, which reads texts"
    ):
        plan_of(judge__sees=True, judge__path="Qwen2.5-7B-Instruct")


def test_an_evaluation_is_planned_where_there_is_one():
    programs, _ = run_programs(plan_of(evaluation__split="test", evaluation__batch_size=4))
    names = [program.name for program in programs]
    assert "evaluation/decode 1" in names
    assert "evaluation/load" not in names
    assert not any(name.startswith("probe/") for name in names)


def test_a_checker_s_probes_are_planned_with_their_own_limit():
    fields = {"evaluation__split": "test", "evaluation__checker": "some", "evaluation__probe_max_new_tokens": 8}
    calls = {one.name: one for one in drawing_calls(plan_of(**fields))}
    assert list(calls) == ["rollout", "evaluation", "probe"]
    assert calls["probe"].sampling.max_new_tokens == 8
    assert calls["probe"].prompts.tokens.shape == calls["evaluation"].prompts.tokens.shape


def test_weights_above_their_share_are_a_problem_and_are_planned_all_the_same():
    whole = 4 * count_params(plan_of().policy)
    run = plan_of(memory=whole)
    assert [problem.split(":")[0] for problem in run.problems] == ["the policy"]
    assert "weights take" in run.problems[0]
    assert run.rollouts.mesh.shape["tensor"] == 2, "as many ways as there are key heads"


def test_a_cache_without_room_is_a_problem():
    programs, problems = run_programs(plan_of(rollout__cache_memory=1e-9))
    assert [problem.split(":")[0] for problem in problems] == ["rollout"]
    assert "train/update" in [program.name for program in programs]


def test_published_models_need_not_be_there(shared_data):
    for name in ("Qwen2.5-VL-3B-Instruct", "Qwen2.5-VL-7B-Instruct", "Qwen2.5-32B-Instruct"):
        assert PUBLISHED[name] == load_config(shared_data / "qwen_configs" / name)
        assert model_shapes("model.path", f"models/{name}", "", "qwen2_5_vl") == PUBLISHED[name]


@pytest.mark.parametrize(
    ("name", "billions"),
    [("Qwen2.5-VL-3B-Instruct", 3.75), ("Qwen2.5-VL-7B-Instruct", 8.29), ("Qwen2.5-VL-72B-Instruct", 73.41)],
)
def test_published_sizes(name, billions):
    assert count_params(PUBLISHED[name]) == pytest.approx(billions * 1e9, rel=2e-3)


def test_a_model_that_is_not_there_is_an_error():
    with pytest.raises(UserError, match=r"config.model.path = 'mine' is neither .* Qwen2.5-VL-7B-Instruct"):
        plan_of(model__path="mine")


def test_useful_operations_of_text_are_those_of_weights_and_attention():
    """Two for each weight of the layers and each token, and two products of q with k and weights with v."""
    model = tiny.CONFIG
    layers = abstract_params(model)["decoder"]["layers"]
    weights = sum(
        math.prod(x.shape) for path, x in jax.tree_util.tree_leaves_with_path(layers) if path[-1].key == "kernel"
    )
    assert flops.layers_flops(model, 10, 0) == 2 * weights * 10
    heads = model.num_heads * model.head_dim
    assert flops.layers_flops(model, 0, 7) == model.num_layers * 4 * heads * 7
    head = abstract_params(model)["decoder"]["head"]["kernel"].shape
    assert flops.head_flops(model, 3) == 2 * math.prod(head) * 3


def test_useful_operations_of_pictures():
    vision = tiny.CONFIG.vision
    kernels = jax.tree_util.tree_leaves_with_path(abstract_params(tiny.CONFIG)["vision"])
    in_layers, merger, embed = 0, 0, 0
    for path, x in kernels:
        if path[-1].key == "kernel":
            size = math.prod(x.shape)
            in_layers += size if path[0].key == "layers" else 0
            merger += size if path[0].key == "merger" else 0
            embed += size if path[0].key == "patch_embed" else 0
    patches = 3 * 64
    keys = [3 * 64 if layer in vision.full_attention_layers else 64 for layer in range(vision.depth)]
    expected = patches * (2 * (in_layers + embed + merger / 4) + 4 * vision.hidden_size * sum(keys))
    assert flops.vision_flops(vision, 3, 1) == expected
    assert flops.vision_flops(vision, 3, 5) == 5 * expected


def settings_of(run, name):
    """The settings advised where a program does not fit beside all that stays, with the bytes that each would free."""
    kinds = dict.fromkeys((*KINDS, ACTIVATIONS), 2**20) | {OPTIMIZER: device_bytes(run.state.opt_state)}
    measured = Measured(name, kinds, 2**20, "", Cost(1.0, 1.0, {}), 1.0, 1.0, ())
    return {setting.text: setting.frees for setting in advise(run, measured)}


def advice_of(run, name="train/update"):
    """The same without the bytes."""
    return list(settings_of(run, name))


def test_moments_that_come_from_the_host_for_an_update_can_be_smaller():
    run = plan_of(optimizer__host_memory=True)
    halved = "config.optimizer.moments_dtype=bfloat16"
    moments = 2 * device_bytes(run.state.params)
    assert settings_of(run, "train/update")[halved] == pytest.approx(moments / 2, rel=0.01)
    assert not any("config.optimizer." in text for text in advice_of(run, "train/gradient"))
    assert "config.optimizer.host_memory=True" not in advice_of(run, "train/update")
    assert "config.optimizer.host_memory=True" in advice_of(plan_of(), "train/update")


@pytest.mark.parametrize("fields", [{}, {"optimizer__host_memory": True}, {"optimizer__moments_dtype": "bfloat16"}])
@pytest.mark.parametrize("name", ["train/gradient", "train/update"])
def test_what_a_frozen_vision_tower_frees(name, fields):
    """Its gradient, and its moments where they are on the device by then."""
    run, frozen = plan_of(**fields), plan_of(model__freeze_vision=True, **fields)
    moments = shard_bytes(run.state.opt_state) - shard_bytes(frozen.state.opt_state)
    if name == "train/gradient" and "optimizer__host_memory" in fields:
        moments = 0
    gradient = device_bytes(run.state.params["vision"])
    assert settings_of(run, name)["config.model.freeze_vision=True"] == pytest.approx(gradient + moments, rel=0.01)


def test_advice_names_only_what_the_config_and_the_devices_can_do():
    """Adapters are not trained by muon, and weights are split no further than devices and key heads allow."""
    assert any("muon" in text for text in advice_of(plan_of()))
    assert not any("muon" in text for text in advice_of(plan_of(lora__modules=("q",))))
    splits = "config.judge.weights_memory="
    whole = plan_of()
    assert whole.judging.mesh.shape["tensor"] == 1
    assert any(text.startswith(splits) and "split over 2 devices" in text for text in advice_of(whole))
    alone = plan_run(small_config(), Target("local", jax.devices()[:1], 2**30, None))
    assert not any(text.startswith(splits) for text in advice_of(alone))
