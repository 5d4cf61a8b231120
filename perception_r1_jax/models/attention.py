"""Attention: one door for whole sequences, one for a decoding step over cached parts."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from perception_r1_jax.records import AnyArray


def attention(
    q: Float[Array, "B T heads H"],
    k: Float[Array, "B T kv_heads H"],
    v: Float[Array, "B T kv_heads H"],
    mask: Bool[AnyArray, " B #T T"],
) -> Float[Array, "B T heads H"]:
    """Grouped-query attention with a boolean mask (true = may attend); softmax in float32.

    A query without any key gets the mean of the values, a finite number that nobody reads.
    """
    with jax.numpy_dtype_promotion("standard"):  # jax's own code widens bfloat16 by promotion
        return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None])


def shared_prefix_attention(
    q: Float[Array, "N G heads H"],
    prompt_kv: tuple[Float[Array, "N L kv_heads H"], Float[Array, "N L kv_heads H"]],
    response_kv: tuple[Float[Array, "N G C kv_heads H"], Float[Array, "N G C kv_heads H"]],
    prompt_mask: Bool[Array, "N L"],
    response_mask: Bool[Array, "N G C"],
) -> Float[Array, "N G heads H"]:
    """One decoding step of G samples that share their prompt's keys and values.

    Attends to the prompt and to each sample's own response apart, then merges the two parts by their
    log-sum-exp in float32, so the prompt's cache is read once per group and never copied per sample.
    """
    kv_heads = prompt_kv[0].shape[-2]
    n, g, heads, head_dim = q.shape
    q = q.reshape(n, g, kv_heads, heads // kv_heads, head_dim)
    prompt = _attend_part(q, *prompt_kv, prompt_mask[:, None, None, None, :], "ngkrh,nskh->ngkrs", "ngkrs,nskh->ngkrh")
    response = _attend_part(
        q, *response_kv, response_mask[:, :, None, None, :], "ngkrh,ngskh->ngkrs", "ngkrs,ngskh->ngkrh"
    )
    return _merge(prompt, response).reshape(n, g, heads, head_dim).astype(q.dtype)


def _attend_part(q, k, v, mask, score, weigh):
    """The part's output (normalised within the part) and log-sum-exp, both float32."""
    scores = jnp.einsum(score, q, k, preferred_element_type=jnp.float32) * (q.shape[-1] ** -0.5)
    scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    lse = jax.nn.logsumexp(scores, axis=-1)
    weights = jnp.exp(scores - lse[..., None]).astype(v.dtype)
    return jnp.einsum(weigh, weights, v, preferred_element_type=jnp.float32), lse


def _merge(*parts):
    total = jax.nn.logsumexp(jnp.stack([lse for _, lse in parts]), axis=0)
    return sum(out * jnp.exp(lse - total)[..., None] for out, lse in parts)
