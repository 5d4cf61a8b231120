"""CPU with 8 fake devices, strict promotion rules, and the way to the real data that some tests read."""

from __future__ import annotations

import os
import tempfile

if "PYTEST_XDIST_WORKER" not in os.environ:  # workers, and scripts that tests start, inherit all this
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if os.environ["JAX_PLATFORMS"] == "cpu":
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
            " --xla_force_host_platform_device_count=8"
            # The programs are tiny: compiling them is what takes the time, twice as much with the newer emitters.
            " --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
        )
    # Many tests compile the same programs in functions of their own; each is compiled once per session. Small ones
    # too: reading one back takes a fifth of compiling it.
    _CACHE = tempfile.TemporaryDirectory(prefix="jax_cache_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"

from pathlib import Path

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture
def compiled_anew():
    """What a test compiles is not left in the cache.

    On a CPU all-to-alls of a program that was read back have lost their place among the other collectives, and devices
    may wait for each other until they are ended.
    """
    name = "jax_persistent_cache_min_compile_time_secs"
    least = getattr(jax.config, name)
    jax.config.update(name, float("inf"))
    yield
    jax.config.update(name, least)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the repository, or the one that PERCEPTION_R1_SHARED names."""
    folder = Path(os.environ.get("PERCEPTION_R1_SHARED", REPOSITORY.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip(f"real data not found at {folder}; set PERCEPTION_R1_SHARED to its parent folder")
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """The working directory of an uninterrupted run of `training_run.small_config` on one device."""
    from tests import training_run  # imports most of the package

    workdir = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_run.setup, "make_mesh", training_run.one_device_mesh)
        training_run.train(training_run.small_config(), workdir)
    return workdir


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory) -> Path:
    """A random judge of one layer."""
    from perception_r1_jax.weights.random_checkpoint import write_random_checkpoint

    small = {"num_hidden_layers": 1, "max_window_layers": 1}
    return write_random_checkpoint(tmp_path_factory.mktemp("judge"), "qwen2", small)
