"""A decoding step's attention: whatever lies where in the pools, each slot attends to its own prompt and response."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perception_r1_jax.models import Tables
from perception_r1_jax.models.cached_attention import cached_attention

SHARDS, SLOTS, PROMPTS, SAMPLES, PAGES = 2, 5, 6, 3, 12
LENGTH, SPAN, STEP = 7, 4, 2  # of a prompt, of a page, and the place of the token that is fed
HEADS, KV_HEADS, H = 6, 2, 4
CELLS = [[(4, 0), (4, 2), (1, 1), (0, 0), None], [(5, 2), (2, 1), (2, 0), (2, 2), (3, 1)]]
"""For each slot its prompt and its number in the group; None is empty."""
OWNERS = [[1, 5, 0, 1, 5, 2, 5, 5, 1, 0, 5, 5], [4, 4, 4, 5, 0, 5, 5, 5, 5, 5, 5, 2]]
LENGTHS = [[7, 3, 0, 0, 1, 0], [0, 0, 5, 6, 0, 2]]


def draw(*shape, seed):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def caches() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    shapes = {
        "prompt": (SHARDS, PROMPTS, KV_HEADS, LENGTH, H),
        "pages": (SHARDS, PAGES, KV_HEADS, SPAN, H),
        "recent": (SHARDS, SLOTS, KV_HEADS, SPAN, H),
    }
    return {
        name: (draw(*shape, seed=2 * i + 1), draw(*shape, seed=2 * i + 2))
        for i, (name, shape) in enumerate(shapes.items())
    }


def tables(
    prompt_block: int = PROMPTS, page_block: int = PAGES, prompt_blocks: int = 99, page_blocks: int = 99
) -> Tables:
    cells, slots = np.zeros((SHARDS, SLOTS), np.int32), np.zeros((SHARDS, PROMPTS, SAMPLES), np.int32)
    for shard, row in enumerate(CELLS):
        for slot, cell in enumerate(row):
            if cell:
                cells[shard, slot], slots[shard][cell] = cell[0] * SAMPLES + cell[1], slot
    return Tables(
        np.array(LENGTHS, np.int32),
        cells,
        slots,
        np.array(OWNERS, np.int32),
        np.int32(min(prompt_blocks, PROMPTS // prompt_block)),
        np.int32(min(page_blocks, PAGES // page_block)),
        prompt_block,
        page_block,
    )


def expected(q, prompt, pages, recent, shard: int, slot: int) -> np.ndarray:
    """softmax(q k / sqrt(H)) v in float64 over all that the slot may see, one head at a time."""
    place, _ = CELLS[shard][slot]
    out = np.zeros((HEADS, H))
    for head in range(HEADS):
        kv = head // (HEADS // KV_HEADS)
        own = [i for i, owner in enumerate(OWNERS[shard]) if owner == slot]
        k, v = (
            np.concatenate(
                [
                    prompt[i][shard, place, kv, : LENGTHS[shard][place]],
                    *(pages[i][shard, page, kv] for page in own),
                    recent[i][shard, slot, kv, : STEP + 1],
                ]
            ).astype(np.float64)
            for i in (0, 1)
        )
        scores = k @ q[shard, slot, head].astype(np.float64) / np.sqrt(H)
        weights = np.exp(scores - scores.max())
        out[head] = weights / weights.sum() @ v
    return out


def joined(recent):
    return tuple(x.reshape(-1, *x.shape[2:]) for x in recent)


def attend(q, tables, prompt, pages, recent):
    return np.asarray(jax.jit(cached_attention)(q, prompt, pages, joined(recent), jnp.int32(STEP), tables))


@pytest.mark.parametrize(("prompt_block", "page_block"), [(6, 12), (2, 12), (6, 3), (3, 4), (1, 1)])
@pytest.mark.parametrize("scale", [1.0, 60.0])  # scores of some units, and of hundreds: no part may overflow
def test_each_slot_attends_to_its_prompt_its_pages_and_what_it_fed_since(prompt_block, page_block, scale):
    q = scale * draw(SHARDS, SLOTS, HEADS, H, seed=0)
    out = attend(q, tables(prompt_block, page_block), **caches())
    assert np.isfinite(out).all()
    for shard, row in enumerate(CELLS):
        for slot, cell in enumerate(row):
            if cell:
                np.testing.assert_allclose(out[shard, slot], expected(q, **caches(), shard=shard, slot=slot), atol=3e-6)


def test_blocks_that_are_not_in_use_are_not_read():
    """Whatever stands there: the count of blocks bounds what a step reads."""
    q, all_caches = draw(SHARDS, SLOTS, HEADS, H, seed=0), caches()
    owners = np.array(OWNERS, np.int32)
    owners[:, 6:] = 0
    short = dataclasses.replace(tables(6, 3, page_blocks=2), owners=owners)
    clean = attend(q, short, **all_caches)
    for x in all_caches["pages"]:
        x[:, 6:] += 1
    np.testing.assert_array_equal(attend(q, short, **all_caches), clean)
    assert (attend(q, dataclasses.replace(short, page_blocks=np.int32(3)), **all_caches) != clean).any()


def test_the_order_of_pages_and_prompts_does_not_matter():
    q, all_caches, table = draw(SHARDS, SLOTS, HEADS, H, seed=0), caches(), tables(2, 4)
    plain = attend(q, table, **all_caches)
    order, inverse = np.array([3, 0, 5, 1, 4, 2]), np.argsort([3, 0, 5, 1, 4, 2])
    pages = np.random.default_rng(0).permutation(PAGES)
    moved = dataclasses.replace(
        table,
        lengths=table.lengths[:, order],
        slots=table.slots[:, order],
        cells=(inverse[table.cells // SAMPLES] * SAMPLES + table.cells % SAMPLES).astype(np.int32),
        owners=table.owners[:, pages],
    )
    out = attend(
        q,
        moved,
        tuple(x[:, order] for x in all_caches["prompt"]),
        tuple(x[:, pages] for x in all_caches["pages"]),
        all_caches["recent"],
    )
    np.testing.assert_allclose(out[1], plain[1], atol=1e-6)
    np.testing.assert_allclose(out[0, :4], plain[0, :4], atol=1e-6)


def test_bfloat16_stays_bfloat16():
    q, all_caches = draw(SHARDS, SLOTS, HEADS, H, seed=0), caches()
    narrow = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), all_caches)
    narrow["recent"] = joined(narrow["recent"])
    parts = (narrow[name] for name in all_caches)
    out = jax.jit(cached_attention)(jnp.asarray(q, jnp.bfloat16), *parts, jnp.int32(STEP), tables(2, 4))
    assert out.dtype == jnp.bfloat16
    exact = attend(q, tables(2, 4), **all_caches)
    np.testing.assert_allclose(np.asarray(out, np.float32)[1], exact[1], atol=0.05)
