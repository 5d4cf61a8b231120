"""Backends of attention: one result, on masks that are segments.

On a CPU splash is interpreted and cudnn only lowered; `make test-gpu` compares cudnn on a GPU.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perception_r1_jax.errors import UserError
from perception_r1_jax.models import Segments, check_backend, packed_segments, splash
from perception_r1_jax.models.attention import attention
from perception_r1_jax.models.group_attention import group_attention
from perception_r1_jax.sharding import make_mesh
from tests.grpo_fixtures import make_batch, relative_difference
from tests.test_grpo_step import Trainer, reference

B, HEADS, KV_HEADS, H = 2, 4, 2, 16


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    monkeypatch.setattr(splash, "INTERPRET", True)


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def inputs(queries, keys, size=H):
    return draw(B, queries, HEADS, size), draw(B, keys, KV_HEADS, size, seed=1), draw(B, keys, KV_HEADS, size, seed=2)


def needs_gpu(test):
    """`make test-gpu` runs it."""
    there = jax.default_backend() == "gpu"
    return pytest.mark.gpu(pytest.mark.skipif(not there, reason="needs a GPU: make test-gpu")(test))


def segments(keys, seed=3):
    """Of random lengths, in their order, and padding."""
    ids = np.sort(np.random.default_rng(seed).integers(0, 3, (B, keys)), axis=1)
    ids[0, keys - 7 :] = -1
    return ids.astype(np.int32)


def after(keys, queries):
    ids = segments(keys)
    return Segments(ids[:, keys - queries :], ids, causal=True)


MASKS = {
    "packed_segments": packed_segments(segments(150)),
    "pictures": Segments(segments(256), segments(256), causal=False),
    "responses": after(300, 70),
}


def by_pairs(mask):
    """The mask from its definition, pair by pair."""
    queries, keys = np.asarray(mask.queries), np.asarray(mask.keys)
    first = keys.shape[1] - queries.shape[1]
    return np.array(
        [
            [[q == k and not (mask.causal and s > first + t) for s, k in enumerate(row)] for t, q in enumerate(asked)]
            for asked, row in zip(queries, keys)
        ]
    )


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_segments_are_the_mask_of_all_pairs(mask, monkeypatch):
    pairs = by_pairs(mask)
    np.testing.assert_array_equal(mask.mask(), pairs)
    q, k, v = inputs(*pairs.shape[1:])
    whole = attention(q, k, v, jnp.asarray(pairs))
    np.testing.assert_allclose(attention(q, k, v, mask), whole, atol=1e-6)
    monkeypatch.setattr("perception_r1_jax.models.attention.QUERY_BLOCK", 64)
    np.testing.assert_allclose(attention(q, k, v, mask), whole, atol=1e-6)


@pytest.mark.parametrize("name", ["packed_segments", "responses"])
@pytest.mark.parametrize("queries", [16, 40])
def test_causal_rows_in_spans_are_the_mask_of_all_pairs(name, queries, monkeypatch):
    """Four spans or fewer, the last one shorter, forwards and backwards; with keys in front of the first query, too."""
    monkeypatch.setattr("perception_r1_jax.models.attention.SPAN_QUERIES", queries)
    mask = MASKS[name]
    q, k, v = inputs(mask.queries.shape[1], mask.keys.shape[1])
    seen = jnp.ones(mask.queries.shape, bool)
    got, expected = (
        forward_and_gradients(functools.partial(attention, mask=one), q, k, v, seen)
        for one in (mask, jnp.asarray(by_pairs(mask)))
    )
    for a, b in zip(got, expected):
        assert relative_difference(a, b) < 1e-5


def test_no_span_meets_the_keys_behind_it(monkeypatch):
    """Of 150 x 150 scores four spans of 38 make 38 x 38, 38 x 76, 38 x 114 and 36 x 150."""
    monkeypatch.setattr("perception_r1_jax.models.attention.SPAN_QUERIES", 16)
    mask = MASKS["packed_segments"]
    made = list(shapes(jax.make_jaxpr(functools.partial(attention, mask=mask))(*inputs(150, 150)).jaxpr))
    assert {shape[-2:] for shape in made if len(shape) == 5} >= {(38, 38), (38, 76), (38, 114), (36, 150)}
    assert not any(shape[-2:] in ((38, 150), (150, 150)) for shape in made)


def shapes(jaxpr):
    """Of all arrays that a program makes, those of its inner programs included."""
    for equation in jaxpr.eqns:
        yield from (x.aval.shape for x in equation.outvars)
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from shapes(inner)


def test_no_array_of_all_pairs_is_made(monkeypatch):
    monkeypatch.setattr("perception_r1_jax.models.attention.QUERY_BLOCK", 64)
    mask, seen = MASKS["pictures"], jnp.ones((B, 256), bool)
    attend = functools.partial(attention, mask=mask)
    made = list(shapes(jax.make_jaxpr(functools.partial(forward_and_gradients, attend))(*inputs(256, 256), seen).jaxpr))
    assert any(shape[-2:] == (64, 256) for shape in made)
    assert not any(shape[-2:] == (256, 256) for shape in made)


def forward_and_gradients(attend, q, k, v, seen):
    """The output at the queries that are no padding, and the gradients of a weighted sum of it."""
    seen = seen.astype(jnp.float32)[..., None, None]
    weights = draw(*q.shape, seed=4) * seen

    def loss(*x):
        out = attend(*x)
        return jnp.sum(weights * out.astype(jnp.float32)), out * seen.astype(out.dtype)

    (_, out), grads = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(q, k, v)
    return out, *grads


def assert_is_xla(backend, mask, dtype, tolerance, size=H):
    q, k, v = (x.astype(dtype) for x in inputs(mask.queries.shape[1], mask.keys.shape[1], size))
    seen = jnp.asarray(mask.queries >= 0)
    got, expected = (
        jax.jit(functools.partial(forward_and_gradients, functools.partial(attention, mask=mask, backend=one)))(
            q, k, v, seen
        )
        for one in (backend, "xla")
    )
    for a, b in zip(got, expected):
        assert a.dtype == dtype
        assert relative_difference(a.astype(jnp.float32), b.astype(jnp.float32)) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 0.02)])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_splash_is_xla(mask, dtype, tolerance):
    assert_is_xla("splash", mask, dtype, tolerance)


@needs_gpu
@pytest.mark.parametrize("size", [80, 128])  # of the published vision tower's heads, of the decoders'
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_cudnn_is_xla(mask, size):
    assert_is_xla("cudnn", mask, jnp.bfloat16, 0.02, size)


def assert_group_is_xla(backend, lengths, dtype, tolerance):
    n, g, length, c = 2, 3, 16, 12
    in_prompt = jnp.arange(length)[None] < jnp.array(lengths)[:, None]
    in_response = jnp.arange(c)[None, None] < jnp.array([[12, 4, 1], [7, 0, 12]])[..., None]
    seen = jnp.concatenate([in_prompt, in_response.reshape(n, g * c)], axis=1)
    q, k, v = (x.astype(dtype) for x in inputs(length + g * c, length + g * c))
    options = {"in_prompt": in_prompt, "in_response": in_response}
    got, expected = (
        forward_and_gradients(functools.partial(group_attention, **options, backend=one), q, k, v, seen)
        for one in (backend, "xla")
    )
    for a, b in zip(got, expected):
        assert relative_difference(a.astype(jnp.float32), b.astype(jnp.float32)) < tolerance


@pytest.mark.parametrize("lengths", [(5, 9), (16, 1)])
def test_a_group_by_splash_is_the_group_by_xla(lengths):
    assert_group_is_xla("splash", lengths, jnp.float32, 1e-5)


@needs_gpu
@pytest.mark.parametrize("lengths", [(5, 9), (16, 1)])
def test_a_group_by_cudnn_is_the_group_by_xla(lengths):
    assert_group_is_xla("cudnn", lengths, jnp.bfloat16, 0.02)


@pytest.mark.usefixtures("compiled_anew")
@pytest.mark.parametrize("shape", [(2, 2, 2)])
def test_a_step_by_splash_is_the_step_by_xla_on_eight_devices(shape):
    got, metrics = Trainer(make_mesh(*shape), model__attention="splash", model__remat="full").gradient(make_batch())
    expected, measured = reference()
    assert relative_difference(got, expected) < 2e-5
    assert metrics["loss"] == pytest.approx(measured["loss"], rel=1e-5)


def test_a_backend_that_the_devices_lack_is_refused():
    for backend, platform in (("splash", "gpu"), ("splash", "cpu"), ("cudnn", "tpu"), ("cudnn", "cpu")):
        with pytest.raises(UserError, match=f"attention = '{backend}': not there on {platform} devices; set it to xla"):
            check_backend(backend, platform)
    for backend, platform in (("xla", "cpu"), ("splash", "tpu"), ("cudnn", "gpu")):
        check_backend(backend, platform)


def test_cudnn_lowers_for_gpus(monkeypatch):
    """Forward and backward pass; JAX asks for the cuDNN that is installed while it traces, and here there is none."""
    cudnn = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda _: True)
    q, k, v = (x.astype(jnp.bfloat16) for x in inputs(256, 256))
    seen = jnp.ones((B, 256), bool)
    attend = functools.partial(attention, mask=MASKS["pictures"], backend="cudnn")
    traced = jax.jit(functools.partial(forward_and_gradients, attend)).trace(q, k, v, seen)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "__cudnn$fmhaScaleBiasSoftmax(" in text
    assert "__cudnn$fmhaScaleBiasSoftmaxBackward(" in text


def test_splash_lowers_for_tpus(monkeypatch):
    monkeypatch.setattr(splash, "INTERPRET", False)
    q, k, v = (x.astype(jnp.bfloat16) for x in inputs(70, 300))
    attend = functools.partial(attention, mask=MASKS["responses"], backend="splash")
    traced = jax.jit(functools.partial(forward_and_gradients, attend)).trace(q, k, v, jnp.ones((B, 70), bool))
    assert traced.lower(lowering_platforms=("tpu",)).as_text().count("tpu_custom_call") >= 3
