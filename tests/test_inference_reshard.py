"""The mesh that serves: the least tensor parallelism under which the weights fit."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from perception_r1_jax.errors import UserError
from perception_r1_jax.inference import reshard
from perception_r1_jax.inference.reshard import Serving, serving_mesh
from perception_r1_jax.models import VisionConfig, count_params
from perception_r1_jax.sharding import make_mesh
from tests import tiny

GIB = 2**30
SEVEN_B = dataclasses.replace(
    tiny.CONFIG,
    vocab_size=152064,
    hidden_size=3584,
    intermediate_size=18944,
    num_layers=28,
    num_heads=28,
    num_kv_heads=4,
    head_dim=128,
    mrope_section=(16, 24, 24),
    vision=VisionConfig(
        depth=32,
        hidden_size=1280,
        intermediate_size=3420,
        num_heads=16,
        out_hidden_size=3584,
        full_attention_layers=(7, 15, 23, 31),
    ),
)


SEVEN_B_SERVING = Serving(SEVEN_B, jnp.dtype(jnp.bfloat16))


def test_a_container_has_no_more_memory_than_it_may_take(monkeypatch, tmp_path):
    new, old = tmp_path / "memory.max", tmp_path / "limit_in_bytes"
    monkeypatch.setattr(reshard, "CONTAINER_LIMITS", (str(new), str(old)))
    whole = reshard.host_memory()
    assert whole > GIB
    new.write_text("max\n")
    old.write_text(f"{2**63 - 4096}\n")  # how version 1 says that there is none
    assert reshard.host_memory() == whole
    new.write_text(f"{GIB}\n")
    assert reshard.host_memory() == GIB
    assert reshard.device_memory(jax.devices()[0]) == GIB // jax.local_device_count()


@pytest.mark.parametrize(("memory", "tensor"), [(80, 1), (40, 1), (32, 2), (16, 4)])
def test_seven_billion_parameters_are_split_only_as_far_as_needed(memory, tensor):
    assert count_params(SEVEN_B) == 8_292_166_656
    mesh = serving_mesh(make_mesh(), SEVEN_B_SERVING, 0.45 * memory * GIB)
    assert mesh.shape == {"data": 8 // tensor, "fsdp": 1, "tensor": tensor}


def test_key_heads_bound_the_split():
    with pytest.raises(
        UserError, match=r"take 15.45 GiB in bfloat16, .* may hold 3.60 GiB .* 8 devices and 4 key heads"
    ):
        serving_mesh(make_mesh(), SEVEN_B_SERVING, 0.45 * 8 * GIB)


def test_a_single_device_holds_all_or_says_what_is_missing():
    mesh = make_mesh(devices=jax.devices()[:1])
    assert serving_mesh(mesh, Serving(tiny.CONFIG, jnp.dtype(jnp.float32)), 1e9).shape["tensor"] == 1
    with pytest.raises(
        UserError,
        match=r"Use more or larger devices, bfloat16 .* 8-bit weights \(config.judge.weights_int8, or --weights_int8\)"
        r", or a larger config.rollout.weights_memory, of a judge config.judge.weights_memory, or --weights_memory",
    ):
        serving_mesh(mesh, Serving(tiny.CONFIG, jnp.dtype(jnp.float32)), 1000.0)
