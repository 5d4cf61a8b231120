"""Attention by JAX's splash kernel for TPUs, which skips blocks that a mask excludes and holds no scores."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jaxtyping import Array, Float, Int

from perception_r1_jax.records import AnyArray
from perception_r1_jax.sharding import partition_spec

LANES = 128
"""Sequences are filled up to a multiple of this, the least block of the kernel."""

BLOCKS = (512, 256, 128)
"""Sizes of blocks; the largest that divides a length is taken."""

FILLER = -1
"""The segment of what fills a sequence up, as of padding."""

INTERPRET = False
"""True runs the kernel on any device, slowly; for tests."""


def splash_attention(
    q: Float[Array, "B T heads H"],
    k: Float[Array, "B S kv_heads H"],
    v: Float[Array, "B S kv_heads H"],
    query_segments: Int[AnyArray, "B T"],
    key_segments: Int[AnyArray, "B S"],
    *,
    causal: bool,
) -> Float[Array, "B T heads H"]:
    """Grouped-query attention within segments, as `attention.Segments` says.

    Rows and key heads stay on the devices where the rule table has them; each runs the kernel on its own.
    """
    offset, length = k.shape[1] - q.shape[1], q.shape[1]
    q, query_segments = _filled(q, query_segments, _rounded(length))
    # A query that fills up stands at such a key, too: no row of scores may be without any.
    keys = _rounded(q.shape[1] + offset)
    (k, _), (v, key_segments) = _filled(k, key_segments, keys), _filled(v, key_segments, keys)
    run = _on_each_device(functools.partial(_attend, causal=causal, offset=offset), k.shape)
    return run(q, k, v, query_segments, key_segments)[:, :length]


def _on_each_device(function, shape):
    """The function over the mesh that is set, where there is one: a kernel is not split by the compiler."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return function
    heads = partition_spec(mesh, ("batch", None, "kv_heads", None), shape)
    rows = jax.sharding.PartitionSpec(heads[0], None)
    specs = {"in_specs": (heads, heads, heads, rows, rows), "out_specs": heads}
    return jax.shard_map(function, mesh=mesh, check_vma=False, **specs)


def _attend(q, k, v, query_segments, key_segments, *, causal, offset):
    shape = (q.shape[1], k.shape[1])
    mask = masks.CausalMask(shape, offset) if causal else masks.FullMask(shape)
    attend = kernel.make_splash_mha(
        masks.MultiHeadMask([mask] * q.shape[2]),
        block_sizes=_block_sizes(*shape),
        head_shards=1,
        q_seq_shards=1,
        interpret=INTERPRET,
    )
    scaled = (q.astype(jnp.float32) * q.shape[-1] ** -0.5).astype(q.dtype)
    rows = (jnp.swapaxes(x, 1, 2) for x in (scaled, k, v))
    return jnp.swapaxes(jax.vmap(attend)(*rows, kernel.SegmentIds(query_segments, key_segments)), 1, 2)


def _block_sizes(queries, keys):
    q, kv = (next(size for size in BLOCKS if length % size == 0) for length in (queries, keys))
    return kernel.BlockSizes(block_q=q, block_kv=kv, block_q_dkv=q, block_kv_dkv=kv, block_q_dq=q, block_kv_dq=kv)


def _rounded(length):
    return -(-length // LANES) * LANES


def _filled(x, segments, length):
    """The sequence and its segments filled up to a length."""
    extra = length - x.shape[1]
    x = jnp.pad(x, [(0, 0), (0, extra), (0, 0), (0, 0)])
    return x, jnp.pad(jnp.asarray(segments), [(0, 0), (0, extra)], constant_values=FILLER)
