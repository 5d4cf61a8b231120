"""Checkpoints come back bit for bit, on another mesh, and only complete ones count."""

from __future__ import annotations

import itertools
import shutil

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perception_r1_jax.errors import UserError
from perception_r1_jax.host_memory import to_device
from perception_r1_jax.sharding import make_mesh
from perception_r1_jax.training.checkpoints import Checkpoints
from perception_r1_jax.training.optimizer import OPTIMIZERS as OPTIMIZER_NAMES
from perception_r1_jax.training.optimizer import make_optimizer
from perception_r1_jax.training.state import TrainState, abstract_state, state_shardings
from tests import tiny
from tests.grpo_fixtures import run_config

KINDS = [*itertools.product(OPTIMIZER_NAMES, ["float32"]), ("adamw", "bfloat16")]
OPTIMIZERS = [
    make_optimizer(run_config(optimizer__name=name, optimizer__moments_dtype=dtype).optimizer, 10)
    for name, dtype in KINDS
]
OPTIMIZER = OPTIMIZERS[0]


def random_state(mesh, step: int, optimizer=OPTIMIZER, **placing) -> tuple[TrainState, TrainState]:
    """A state with random numbers everywhere, and what it should lie like."""
    abstract = abstract_state(tiny.CONFIG, optimizer, mesh, **placing)
    rng = np.random.default_rng(step)
    state = jax.tree.map(lambda x: np.asarray(rng.normal(size=x.shape) * 100).astype(x.dtype), abstract)
    state = TrainState(state.params, state.opt_state, np.int32(step), np.int32(3), np.float32(0.7))
    return jax.device_put(state, state_shardings(abstract)), abstract


def make_data():
    return iter(grain.MapDataset.range(100).shuffle(seed=1).to_iter_dataset())


def host(tree):
    return jax.tree.map(np.array, tree)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=["-".join(kind) for kind in KINDS])
def test_state_and_data_position_come_back_on_another_mesh(tmp_path, optimizer):
    state, _ = random_state(make_mesh(1, 4, 2), 7, optimizer)
    expected, data = host(state), make_data()
    taken = [next(data) for _ in range(5)]
    with Checkpoints(tmp_path / "ckpt", keep_last=1) as checkpoints:
        checkpoints.save(7, state, data)
    following = [next(data) for _ in range(5)]

    abstract = abstract_state(tiny.CONFIG, optimizer, make_mesh(2, 2, 2))
    resumed = make_data()
    with Checkpoints(tmp_path / "ckpt", keep_last=1) as checkpoints:
        restored = checkpoints.restore(7, abstract, resumed)
    jax.tree.map(np.testing.assert_array_equal, host(restored), expected)
    placed = jax.tree.map(lambda x, a: x.sharding.is_equivalent_to(a.sharding, x.ndim), restored, abstract)
    assert all(jax.tree.leaves(placed))
    assert [next(resumed) for _ in range(5)] == following != taken


@pytest.mark.parametrize("host_memory", [False, True])
def test_donating_the_state_does_not_touch_a_save_under_way(host_memory, tmp_path):
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    state, abstract = random_state(mesh, 1, host_memory=host_memory)
    expected = host(state)
    overwrite = jax.jit(
        lambda s: jax.tree.map(lambda x: x + jnp.ones((), x.dtype), to_device(s)),
        donate_argnums=0,
        out_shardings=state_shardings(abstract),
    )
    with Checkpoints(tmp_path, keep_last=1) as checkpoints:
        checkpoints.save(1, state, make_data())
        for _ in range(3):
            state = overwrite(state)
        jax.block_until_ready(state)
        jax.tree.map(np.testing.assert_array_equal, host(checkpoints.restore(1, abstract, make_data())), expected)


def small_state(step: int) -> TrainState:
    return TrainState(
        {"w": jnp.full(4, float(step))}, {"m": jnp.zeros(4)}, jnp.int32(step), jnp.int32(0), jnp.float32(1)
    )


def test_newest_and_best_stay(tmp_path):
    scores = {1: 0.9, 2: 0.1, 3: 0.5, 4: float("nan"), 5: 0.3, 6: 0.2}
    with Checkpoints(tmp_path, keep_last=2, keep_best=1) as checkpoints:
        for step, score in scores.items():
            checkpoints.save(step, small_state(step), make_data(), metric=score)
        checkpoints.wait()
        assert checkpoints.steps == [1, 5, 6]
    with Checkpoints(tmp_path, keep_last=2, keep_best=1) as checkpoints:
        checkpoints.save(7, small_state(7), make_data(), metric=0.95)
        checkpoints.save(7, small_state(7), make_data(), metric=0.0)
        checkpoints.save(8, small_state(8), make_data())
        checkpoints.wait()
        assert checkpoints.steps == [7, 8]


def test_an_unfinished_save_is_no_checkpoint(tmp_path):
    with Checkpoints(tmp_path, keep_last=5) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, small_state(step), make_data())
            checkpoints.wait()
    (tmp_path / "2").rename(tmp_path / "2.orbax-checkpoint-tmp")  # what a killed process leaves behind
    with Checkpoints(tmp_path, keep_last=5) as checkpoints:
        assert checkpoints.steps == [1]
        restored = checkpoints.restore(checkpoints.latest_step(), small_state(0), make_data())
    assert int(restored.step) == 1


def test_they_are_one_process_s_at_a_time(tmp_path):
    with Checkpoints(tmp_path / "checkpoints", keep_last=1):
        under_way = tmp_path / "checkpoints/3.orbax-checkpoint-tmp/params"
        under_way.mkdir(parents=True)
        with pytest.raises(UserError, match=f"another process is training in {tmp_path}. Wait .* another workdir"):
            Checkpoints(tmp_path / "checkpoints", keep_last=1)
        assert under_way.exists(), "what the first is writing is not taken for what a killed one left"
    with Checkpoints(tmp_path / "checkpoints", keep_last=1) as checkpoints:
        checkpoints.save(4, small_state(4), make_data())
    assert not under_way.exists()


class FullDisk:
    """A data iterator whose position cannot be written, which the background finds out."""

    async def save(self, directory):
        async def write():
            raise ValueError("no space left on device")

        return write()

    async def load(self, directory):
        raise NotImplementedError


def test_a_save_that_failed_costs_its_checkpoint_alone(tmp_path, caplog):
    with Checkpoints(tmp_path, keep_last=1) as checkpoints:
        for step, data in {1: make_data(), 2: FullDisk(), 3: make_data()}.items():
            checkpoints.save(step, small_state(step), data)
        assert f"written to {tmp_path}: no space left on device. The run goes on and saves step 3." in caplog.text
        assert int(checkpoints.restore(3, small_state(0), make_data()).step) == 3
        added = tmp_path / "2.orbax-checkpoint-tmp/params"  # by a writer of the failed one that had not noticed
        added.mkdir(parents=True, exist_ok=True)
    assert [path.name for path in tmp_path.iterdir()] == ["3"], "nothing of the failed one, which would take space"


def test_a_last_save_that_failed_is_an_error(tmp_path, caplog):
    with Checkpoints(tmp_path, keep_last=1) as checkpoints:
        checkpoints.save(1, small_state(1), make_data())
        checkpoints.save(2, small_state(2), FullDisk())
        with pytest.raises(UserError, match=f"written to {tmp_path}: no space left on device. Free space; the same"):
            checkpoints.wait()
        assert checkpoints.latest_step() == 1
        checkpoints.save(2, small_state(2), FullDisk())
        with pytest.raises(UserError, match="no space left"):
            checkpoints.close()

    def crash():
        with Checkpoints(tmp_path, keep_last=1) as checkpoints:
            checkpoints.save(2, small_state(2), FullDisk())
            raise RuntimeError("why it ended")

    with pytest.raises(RuntimeError, match="why it ended"):
        crash()
    assert "no space left" in caplog.messages[-1]


def test_what_is_not_there_is_an_error_that_says_what_is(tmp_path):
    with Checkpoints(tmp_path, keep_last=1) as checkpoints:
        assert checkpoints.latest_step() is None
        checkpoints.save(4, small_state(4), make_data())
        with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 3; it has steps \[4\]"):
            checkpoints.restore(3, small_state(0), make_data())


@pytest.mark.parametrize("file", ["params/_METADATA", "optimizer/manifest.ocdbt", "data/process_0-of-1.json"])
def test_a_damaged_checkpoint_is_an_error_and_can_be_removed(tmp_path, file):
    with Checkpoints(tmp_path, keep_last=2) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, small_state(step), make_data())
    (tmp_path / "2" / file).unlink()
    with Checkpoints(tmp_path, keep_last=2) as checkpoints:
        with pytest.raises(UserError, match=f"{tmp_path / '2'} cannot be read (?s:.)*can be removed") as caught:
            checkpoints.restore(2, small_state(0), make_data())
        assert len(str(caught.value)) < 800
    shutil.rmtree(tmp_path / "2")
    with Checkpoints(tmp_path, keep_last=2) as checkpoints:
        assert int(checkpoints.restore(checkpoints.latest_step(), small_state(0), make_data()).step) == 1


def test_another_model_is_an_error(tmp_path):
    with Checkpoints(tmp_path, keep_last=1) as checkpoints:
        checkpoints.save(1, small_state(1), make_data())
        for params in ({"w": jnp.zeros(5)}, {"w": jnp.zeros(4), "extra": jnp.zeros(3)}, {}):
            other = TrainState(params, {"m": jnp.zeros(4)}, jnp.int32(0), jnp.int32(0), jnp.float32(1))
            with pytest.raises(ValueError, match=r"cannot be read into this run's state: (?s:.)*Resume with"):
                checkpoints.restore(1, other, make_data())
