"""Plans from end to end: what fits and what does not, for this machine and, where libtpu is installed, for TPUs."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import multiprocessing
import os
import re
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from configs import perception_r1_7b_tpu
from perception_r1_jax.config import resolve
from perception_r1_jax.errors import UserError
from perception_r1_jax.models import packed_segments
from perception_r1_jax.models.attention import attention
from perception_r1_jax.plan import make, topologies
from perception_r1_jax.plan.cost import Cost
from perception_r1_jax.plan.make import make_plan
from perception_r1_jax.plan.measure import ACTIVATIONS, Measured, measure
from perception_r1_jax.plan.programs import CACHE, JUDGE, KINDS, OPTIMIZER, PARAMETERS, Program
from perception_r1_jax.plan.report import as_json, as_text
from perception_r1_jax.plan.roofline import roofline
from perception_r1_jax.plan.topologies import GIB, Target, find_target
from perception_r1_jax.sharding import make_mesh, replicated
from perception_r1_jax.speeds import Speed
from tests.test_plan_run import small_config

ROOT = Path(__file__).resolve().parent.parent
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: pip install -e .[plan]"
)


@pytest.fixture(autouse=True)
def without_compilation_cache():
    """A program for a device that is not there cannot be read back from it."""
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", True)


def on_devices(monkeypatch, **fields):
    """Plans for 4 of this machine's devices, with other fields of the target."""
    target = dataclasses.replace(find_target("local"), devices=jax.devices()[:4], **fields)
    monkeypatch.setattr(make, "find_target", lambda name: target)


def plan(only: str, **fields):
    """A plan of some programs of the small run."""
    return make_plan(small_config(**fields), "local", lambda measured: None, only=only)


def test_a_plan_for_this_machine(monkeypatch):
    on_devices(monkeypatch, speed=Speed(1e12, 1e11, 1e10))
    made = plan("train")
    numbers = as_json(made)
    step, update = numbers["programs"]
    assert made.fits
    assert numbers["fits"]
    assert (numbers["topology"], numbers["devices"]) == ("local", 4)
    assert (step["name"], update["name"]) == ("train/gradient", "train/update")
    assert set(step["bytes"]) == {*KINDS, ACTIVATIONS, "total"}
    assert step["bytes"]["total"] == sum(step["bytes"][kind] for kind in (*KINDS, ACTIVATIONS))
    assert min(step["bytes"][kind] for kind in (PARAMETERS, OPTIMIZER, JUDGE, ACTIVATIONS)) > 0
    assert numbers["bytes_per_device"] == {**step["bytes"], "program": "train/gradient"}
    assert update["bytes"]["total"] < step["bytes"]["total"]
    # Each of 4 devices does a quarter of what is needed, and more: layers are computed again in the backward pass.
    assert step["useful_flops_of_all_devices"] / 4 < step["flops"] < 8 * step["useful_flops_of_all_devices"] / 4
    assert step["collective_bytes"]["all-gather"] > 0
    assert 0 < step["mfu"] < 1
    assert step["compile_seconds"] > 0
    json.dumps(numbers)
    text = as_text(made)
    assert re.search(r"GB that a device sends\n  program .*all-gather.*\n  train/gradient .*\n  train/update ", text)
    assert "fits (of the run only train...): the fullest program is train/gradient" in text
    assert "DOES NOT FIT" not in text


def test_what_does_not_fit_is_named_with_what_would_help(monkeypatch):
    on_devices(monkeypatch)
    (fitting, *_) = plan("rollout/prefill").programs
    on_devices(monkeypatch, memory=fitting.total // 2)
    made = plan("rollout/prefill")
    (program, *_) = made.programs
    assert fitting.fits
    assert not made.fits
    assert program.total > program.memory
    text = as_text(made)
    assert f"{program.name} lacks" in text
    assert "DOES NOT FIT (of the run only rollout/prefill...): the fullest program" in text
    settings = [setting.text for setting in made.advice[program.name]]
    assert any(setting.startswith("config.rollout.cache_memory=") for setting in settings)
    advised = [(one, setting) for one in made.programs for setting in made.advice[one.name]]
    enough = [setting.text for one, setting in advised if setting.frees >= one.total - one.memory > 0]
    assert 0 < len(enough) < len(advised)
    assert re.findall(r"GiB  (.*) \(enough by itself\)", text) == enough
    assert all(setting in text for setting in settings)


def test_the_share_of_the_cache_that_is_advised_makes_room(monkeypatch):
    fields = {"judge__path": "", "rollout__prompts_per_step": 64, "rollout__response_buckets": (512,)}
    on_devices(monkeypatch)
    (fitting,) = plan("rollout/decode 32", **fields).programs
    on_devices(monkeypatch, memory=int(0.6 * fitting.total))
    fields["rollout__weights_memory"] = 0.1
    made = plan("rollout/decode 32", rollout__cache_memory=0.9, **fields)
    (program,) = made.programs
    assert not program.fits
    assert program.bytes[CACHE] > 0.5 * program.memory
    texts = [setting.text for setting in made.advice[program.name]]
    share = next(found[1] for text in texts if (found := re.match(r"config.rollout.cache_memory=([\d.]+)", text)))
    assert plan("rollout/decode 32", rollout__cache_memory=float(share), **fields).programs[0].fits


def test_programs_are_chosen_by_name(monkeypatch):
    on_devices(monkeypatch)
    assert [program.name for program in plan("judge/choose").programs] == ["judge/choose 1", "judge/choose 2"]
    with pytest.raises(UserError, match="no program's name begins with 'nothing'"):
        plan("nothing")


def test_the_roofline_is_the_longest_of_three():
    cost = Cost(flops=8e12, bytes_moved=5e11, collective_bytes={"all-gather": 1e9, "all-reduce": 3e9})
    measured = Measured("x", {}, 0, "", cost, useful_flops=1.2e13, compile_seconds=1.0, largest=())
    target = Target("x", jax.devices()[:4], 0, Speed(flops=1e12, memory=1e11, links=1e9))
    times = roofline(measured, target)
    assert (times.compute, times.memory, times.links) == (8.0, 5.0, 4.0)
    assert (times.seconds, times.bound) == (8.0, "compute")
    assert times.mfu == pytest.approx(1.2e13 / (4 * 1e12 * 8.0))
    assert roofline(measured, dataclasses.replace(target, speed=None)) is None
    hidden = roofline(dataclasses.replace(measured, useful_flops=8e13), target)  # in a kernel
    assert (hidden.compute, hidden.bound, hidden.mfu) == (20.0, "compute", 1.0)


def run_script(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "scripts/plan.py", "--config", "configs/debug.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)


def test_the_script_writes_json_and_exits_with_0_where_all_fits(tmp_path):
    out = tmp_path / "plan.json"
    done = run_script("--topology", "local", "--only", "rollout/move", "--json", str(out))
    assert done.returncode == 0, done.stderr
    assert "fits (of the run only rollout/move...): the fullest program" in done.stdout
    numbers = json.loads(out.read_text())
    assert (numbers["fits"], numbers["only"]) == (True, "rollout/move")
    assert [program["name"] for program in numbers["programs"]] == ["rollout/move prompts", "rollout/move pages"]


def test_the_script_exits_with_2_where_something_does_not_fit():
    """32 billion parameters, their moments and gradients are above 400 GiB."""
    large = "--config.model.path=Qwen2.5-VL-32B-Instruct"
    done = run_script("--topology", "local", "--only", "train", large)
    assert done.returncode == 2, done.stderr
    assert "DOES NOT FIT" in done.stdout


def test_the_script_exits_with_1_and_a_line_where_there_is_nothing_to_plan():
    done = run_script("--topology", "local", "--config.model.path=nowhere")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: config.model.path = 'nowhere' is neither a folder")


def test_a_file_that_could_not_be_written_is_told_before_anything_is_compiled(tmp_path):
    done = run_script("--topology", "local", "--json", str(tmp_path / "none/plan.json"))
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"error: --json {tmp_path / 'none/plan.json'}: its folder does not exist; make it, or name another"
    ]


def test_a_program_that_fails_is_named_and_the_rest_is_not_waited_for(monkeypatch):
    on_devices(monkeypatch)
    monkeypatch.setattr(make.os, "cpu_count", lambda: 1)
    tried = []

    def fail(program, *rest):
        tried.append(program.name)
        raise ValueError("nothing says how often the loop turns")

    monkeypatch.setattr(make, "measure", fail)
    with pytest.raises(ValueError, match="how often") as caught:
        plan("")
    assert tried == ["judge/embed 1"]
    assert caught.value.__notes__ == ["This was judge/embed 1, of the programs of this run."]


def test_a_compiler_that_is_killed_is_told_with_what_to_do():
    with (
        ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool,
        pytest.raises(UserError, match=r"was killed, most likely because .* memory is full.* --only"),
    ):
        make._collect(lambda program: pool.submit(os._exit, 9), [None], 1, lambda measured: None)


def test_a_compiler_makes_the_run_once_and_finds_its_programs_by_name():
    """What the processes for a TPU do, done here."""
    make._asked_run.cache_clear()
    make._start(small_config(), "local")
    found = [make._measure_named(name) for name in ("rollout/move pages", "rollout/move prompts")]
    expected = {program.name: program for program in plan("rollout/move").programs}
    assert make._asked_run.cache_info().misses == 1
    for measured in found:
        assert dataclasses.replace(measured, compile_seconds=0) == dataclasses.replace(
            expected[measured.name], compile_seconds=0
        )


def test_what_is_advised_is_not_what_is_so_already(monkeypatch):
    on_devices(monkeypatch, memory=1)
    fields = {
        "optimizer__host_memory": True, "judge__host_memory": True, "judge__streaming": False,
        "judge__weights_int8": True, "model__remat": "full",
    }  # fmt: skip
    made = plan("train/gradient", **fields)
    texts = [setting.text for setting in made.advice["train/gradient"]]
    config = small_config(**fields)
    for text in texts:
        for field, value in re.findall(r"config\.([a-z0-9_.]+)=([A-Za-z0-9_]+)", text):
            assert str(config[field.split(".")[0]][field.split(".")[1]]) != value, text
    assert not any("moments" in text or "judge" in text for text in texts), "they are not there"


def test_without_libtpu_an_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(topologies.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--topology v5e:2x2 the package libtpu is needed.*pip install -e \.\[plan\]"):
        find_target("v5e:2x2")


@needs_libtpu
@pytest.mark.parametrize(
    ("name", "devices", "gib"),
    [("v5e:4x4", 16, 15.75), ("v5e:8x16", 128, 15.75), ("v6e:4x4", 16, 31.25), ("v5p:2x2x2", 8, 95.74)],
)
def test_topologies_and_the_memory_that_their_compiler_grants(name, devices, gib):
    target = find_target(name)
    assert len(target.devices) == devices
    assert target.memory / GIB == pytest.approx(gib, abs=0.02)
    assert target.speed is not None
    assert target.is_tpu


@needs_libtpu
@pytest.mark.slow
def test_the_published_update_fits_and_a_chip_of_128_sends_no_more_than_one_of_16():
    """At the same work for each, where groups of 16 chips hold the state."""

    def gradient(topology: str, **fields) -> Measured:
        config = perception_r1_7b_tpu.get_config()
        with config.unlocked():
            config.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
        config = resolve(config, paths=False)
        (program,) = make_plan(config, topology, lambda measured: None, only="train/gradient").programs
        return program

    few = gradient("v5e:4x4")
    many = gradient("v5e:8x16", mesh__data=8, rollout__prompts_per_step=1024, grpo__micro_batch_prompts=128)
    assert few.fits
    assert many.fits
    assert many.cost.flops == pytest.approx(few.cost.flops, rel=0.02)
    assert sum(many.cost.collective_bytes.values()) < 1.2 * sum(few.cost.collective_bytes.values())


@needs_libtpu
@pytest.mark.parametrize("name", ["v5e:3x3", "nonsense", "v4:2x2x4"])
def test_topologies_that_are_not_known(name):
    with pytest.raises(UserError, match=name):
        find_target(name)


@needs_libtpu
def test_a_plan_for_a_tpu_that_is_not_there():
    made = make_plan(small_config(), "v5e:2x2", lambda measured: None, only="rollout/prefill")
    (program, *_) = as_json(made)["programs"]
    assert made.fits
    assert as_json(made)["device"] == "TPU v5 lite"
    assert program["flops"] > 0
    assert program["mfu"] > 0
    assert program["bytes"][CACHE] > 0


def simple(mesh, size: int, held: int = 0) -> Program:
    """A program that sorts and multiplies floats [size, 1024], beside so many bytes."""
    place = replicated(mesh)
    x, rest = (
        jax.ShapeDtypeStruct(shape, dtype, sharding=place) for shape, dtype in (((size, 1024), "f4"), ((held,), "i1"))
    )

    def work(x):
        return (jnp.sort(x, axis=0) @ x.T[:, :8])[:8]

    def lower():
        return jax.jit(work, out_shardings=place).lower(x)

    return Program("test/sort", mesh, lower, held={PARAMETERS: (x, rest)}, given={PARAMETERS: x})


def test_what_waits_for_the_next_call_is_counted(monkeypatch):
    on_devices(monkeypatch)
    target = make.find_target("local")
    program = simple(make_mesh(devices=target.devices), 64)
    alone = measure(program, target, 0.0)
    beside = measure(dataclasses.replace(program, waiting=program.given[PARAMETERS]), target, 0.0)
    assert beside.total - alone.total == 64 * 1024 * 4


@needs_libtpu
def test_what_lies_beside_a_program_leaves_it_less():
    """1 GiB of argument and 2 GiB of its own go into 15.75 GiB, but not beside 14."""
    target = find_target("v5e:2x2")
    mesh = make_mesh(devices=target.devices)
    alone, beside = (measure(simple(mesh, 2**18, held), target, 0.0) for held in (0, 14 * GIB))
    assert alone.fits
    assert alone.bytes[PARAMETERS] == GIB
    assert alone.bytes[ACTIVATIONS] >= GIB
    assert not beside.fits
    assert "exceeds available HBM" in beside.refusal
    assert beside.cost.bytes_moved == pytest.approx(alone.cost.bytes_moved)
    assert beside.total == alone.total + 14 * GIB


@needs_libtpu
def test_an_argument_that_is_written_over_is_counted_once():
    target = find_target("v5e:2x2")
    mesh = make_mesh(devices=target.devices)
    place = replicated(mesh)
    x = jax.ShapeDtypeStruct((2**14, 1024), "f4", sharding=place)

    def lower(**donated):
        return jax.jit(lambda sums, x: sums + jnp.sort(x, axis=0), out_shardings=place, **donated).lower(x, x)

    kept, donated = (
        measure(Program("test/add", mesh, functools.partial(lower, **fields), {}, {}), target, 0.0)
        for fields in ({}, {"donate_argnums": 0})
    )
    assert 2 * 2**26 < donated.total <= kept.total


@needs_libtpu
def test_a_program_that_the_compiler_does_not_make_at_all():
    target = find_target("v5e:2x2")
    refused = measure(simple(make_mesh(devices=target.devices), 2**22), target, 0.0)
    assert not refused.fits
    assert refused.cost is None
    assert refused.total > 32 * GIB, "as much as the compiler asked for"
    assert roofline(refused, target) is None


@needs_libtpu
def test_products_on_a_tpu_count_as_on_a_cpu():
    target = find_target("v5e:2x2")
    mesh = make_mesh(devices=target.devices)
    place = replicated(mesh)
    a, b = (jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=place) for shape in ((4, 8, 64, 128), (4, 8, 256, 128)))

    def layers(a, b):
        return jax.lax.fori_loop(
            0, 6, lambda _, a: jnp.einsum("bhts,bhsk->bhtk", jnp.einsum("bhtk,bhsk->bhts", a, b), b), a
        )

    def lower():
        return jax.jit(layers, out_shardings=place).lower(a, b)

    measured = measure(Program("test/layers", mesh, lower, {}, {}), target, 0.0)
    assert measured.cost.flops == 6 * 2 * 2 * 4 * 8 * 64 * 128 * 256


@needs_libtpu
def test_products_behind_a_kernel_count_too():
    target = find_target("v5e:2x2")
    mesh = make_mesh(devices=target.devices)
    place = replicated(mesh)
    x, weights = (jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=place) for shape in ((4, 256, 2, 128), (128, 128)))
    rows = jax.ShapeDtypeStruct((4, 256), jnp.int32, sharding=place)

    def layers(x, weights, rows):
        mask = packed_segments(rows)
        return jax.lax.fori_loop(0, 6, lambda _, x: attention(x, x, x, mask, "splash") @ weights, x)

    def lower():
        with jax.default_matmul_precision("default"):  # the kernel takes no other for bfloat16
            return jax.jit(layers, out_shardings=place).lower(x, weights, rows)

    measured = measure(Program("test/layers", mesh, lower, {}, {}), target, 0.0)
    assert measured.cost.flops == 6 * 2 * 256 * 2 * 128 * 128, "of one of the four rows, which are on four devices"
