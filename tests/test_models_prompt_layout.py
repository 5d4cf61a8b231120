"""Training with pictures on a mesh: what a device works out for its rows stays with it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from perception_r1_jax.models import abstract_params, embed_prompts, logical_axes
from perception_r1_jax.records import MERGE_UNIT, WINDOW_TOKENS
from perception_r1_jax.sharding import abstract_batch, make_mesh, tree_shardings
from tests import tiny
from tests.collectives import collectives


def test_only_parameters_and_embeddings_travel_where_pictures_join_their_prompts():
    """Parameters are split over `fsdp` and gathered, and a lookup goes from its hidden size to its rows."""
    rows, mesh = 16, make_mesh(fsdp=8)
    batch = tiny.prompt_batch([24] * rows, [1] * rows)
    shapes = abstract_params(tiny.CONFIG)
    layout = tree_shardings(mesh, logical_axes(tiny.CONFIG), shapes)
    params = jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, layout)

    def loss(params, batch):
        return jnp.sum(embed_prompts(tiny.CONFIG, params, batch) ** 2)

    with jax.set_mesh(mesh):
        compiled = jax.jit(jax.grad(loss)).lower(params, abstract_batch(mesh, batch)).compile()
    found = collectives(compiled.as_text())
    numbers = {kind: max(int(np.prod(shape)) for shape in sizes) for kind, sizes in found.items()}
    largest = max(x.size for x in jax.tree.leaves(params["vision"]))
    units, width = batch.image_ids.shape[1] * WINDOW_TOKENS, MERGE_UNIT * tiny.CONFIG.vision.hidden_size
    assert rows * units * width > largest, "the merger's states of all rows would be seen below"
    assert numbers["all-gather"] <= largest
    assert numbers["all-reduce"] <= largest
    assert numbers["all-to-all"] <= batch.tokens.size * tiny.CONFIG.hidden_size // 8
