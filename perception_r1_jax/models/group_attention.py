"""Attention of a row that holds a prompt once and a group of responses to it.

The row is the prompt in its bucket L, then G responses, each in its bucket C. A response sees the prompt and itself;
with a prompt of 3 tokens and responses a and b of 2:

         p0 p1 p2 a0 a1 b0 b1
    p0    1
    p1    1  1
    p2    1  1  1
    a0    1  1  1  1
    a1    1  1  1  1  1
    b0    1  1  1        1
    b1    1  1  1        1  1

No score is made of a response with another: the scores with the prompt and those within a response are two products,
and one softmax goes over both.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from perception_r1_jax.models.attention import LEAST, QUERY_BLOCK, Segments, attention, packed_segments
from perception_r1_jax.models.softmax_blocks import attend_in_blocks
from perception_r1_jax.records import AnyArray


def group_attention(
    q: Float[Array, "N T heads H"],
    k: Float[Array, "N T kv_heads H"],
    v: Float[Array, "N T kv_heads H"],
    in_prompt: Bool[AnyArray, "N L"],
    in_response: Bool[AnyArray, "N G C"],
    backend: str = "xla",
) -> Float[Array, "N T heads H"]:
    """Grouped-query attention of rows of T = L + G C tokens; softmax in float32.

    By XLA the backward pass makes the scores again, and as many tokens of each response have them at a time, at least
    one, as are `QUERY_BLOCK` queries of a row. The other backends know no keys that several rows share: each response
    is a row that begins with its prompt's keys.

    Args:
        q: queries of the row's tokens.
        k: their keys.
        v: their values.
        in_prompt: which tokens of L are the prompt's, not padding.
        in_response: which tokens of C are each response's.
        backend: as of `attention`.
    """
    length, (n, g, c) = in_prompt.shape[1], in_response.shape
    prompt, own = (jnp.where(x, 0, -1) for x in (in_prompt, in_response))
    of_prompt = attention(q[:, :length], k[:, :length], v[:, :length], packed_segments(prompt), backend)
    if backend != "xla":
        segments = Segments(own.reshape(n * g, c), _after_prompt(prompt, own), causal=True)
        queries = q[:, length:].reshape(n * g, c, *q.shape[2:])
        keys, values = (_after_prompt(x[:, :length], x[:, length:].reshape(n, g, c, *x.shape[2:])) for x in (k, v))
        of_responses = attention(queries, keys, values, segments, backend)
        return jnp.concatenate([of_prompt, of_responses.reshape(n, g * c, *q.shape[2:])], axis=1)

    def responses(x):  # [N, C, G, ...]
        return jnp.swapaxes(x[:, length:].reshape(n, g, c, *x.shape[2:]), 1, 2)

    index = jnp.broadcast_to(jnp.arange(c)[None], (n, c))
    keys = tuple((x[:, :length], responses(x)) for x in (k, v))
    blocks = -(-c // max(QUERY_BLOCK // g, 1))
    size = -(-c // blocks)
    of_responses = attend_in_blocks(_attend, size, responses(q), index, keys, (in_prompt, in_response))
    return jnp.concatenate([of_prompt, jnp.swapaxes(of_responses, 1, 2).reshape(n, g * c, *q.shape[2:])], axis=1)


def _after_prompt(prompt: Shaped[Array, "N L *D"], own: Shaped[Array, "N G C *D"]) -> Shaped[Array, "NG LC *D"]:
    """A row for each response, its prompt in front."""
    n, g, *_ = own.shape
    prompts = jnp.broadcast_to(prompt[:, None], (n, g, *prompt.shape[1:]))
    return jnp.concatenate([prompts, own], axis=2).reshape(n * g, -1, *own.shape[3:])


def _attend(q, index, keys, seen, top):
    """`softmax_blocks.Attend` for the tokens at `index` of every response, q [N, b, G, heads, H].

    All queries that meet the same keys stand in one run.
    """
    (prompt_k, own_k), (prompt_v, own_v) = keys
    in_prompt, in_response = seen
    n, b, g, heads, size = q.shape
    kv_heads = prompt_k.shape[2]
    by_head = (n, b, g, kv_heads, heads // kv_heads)
    grouped = jnp.transpose(q.reshape(*by_head, size), (0, 3, 2, 4, 1, 5))  # [N, kv, G, r, b, H]
    shape = grouped.shape[:-1]
    with_prompt, with_own = (n, kv_heads, -1), (n, kv_heads, g, -1)

    def scores(equation, runs, keys):
        products = jnp.einsum(equation, grouped.reshape(*runs, size), keys, preferred_element_type=jnp.float32)
        return products.reshape(*shape, -1) * (size**-0.5)

    before = jnp.arange(own_k.shape[1])[None, None] <= index[..., None]
    mine = before[:, None] & in_response[:, :, None]  # [N, G, b, C]
    to_prompt = jnp.where(in_prompt[:, None, None, None, None], scores("nkqh,nskh->nkqs", with_prompt, prompt_k), LEAST)
    to_own = jnp.where(mine[:, None, :, None], scores("nkgqh,nsgkh->nkgqs", with_own, own_k), LEAST)
    if top is None:
        top = jnp.maximum(to_prompt.max(-1), to_own.max(-1))
    else:
        top = jnp.transpose(top.reshape(by_head), (0, 3, 2, 4, 1))
    to_prompt, to_own = (jnp.exp(scores - top[..., None]) for scores in (to_prompt, to_own))

    def weigh(equation, weights, runs, values):
        weights = weights.astype(values.dtype).reshape(*runs, weights.shape[-1])
        return jnp.einsum(equation, weights, values, preferred_element_type=jnp.float32).reshape(*shape, size)

    sums = weigh("nkqs,nskh->nkqh", to_prompt, with_prompt, prompt_v)
    sums += weigh("nkgqs,nsgkh->nkgqh", to_own, with_own, own_v)
    return tuple(_by_token(x) for x in (sums, to_prompt.sum(-1) + to_own.sum(-1), top))


def _by_token(x):
    """[N, kv_heads, G, heads / kv_heads, b, ...] -> [N, b, G, heads, ...]."""
    x = jnp.moveaxis(jnp.moveaxis(x, 4, 1), 2, 3)
    return x.reshape(*x.shape[:3], -1, *x.shape[5:])
