"""At a real vocabulary the compiled update never holds the logits of all tokens."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import optax

from perception_r1_jax.grpo.step import TrainStep
from perception_r1_jax.plan.hlo import parse
from perception_r1_jax.sharding import abstract_batch
from perception_r1_jax.training.state import abstract_state, trained_params
from tests import tiny
from tests.grpo_fixtures import make_batch, one_device_mesh, run_config

VOCABULARY = 152_064
TOKENS, CHUNK = 64, 4
BLOCK = VOCABULARY * CHUNK // (4 * TOKENS)
"""Words at a time: as many logits as `CHUNK` positions have."""


def compiled_gradient():
    """The program for two rows of a group of 4 responses of 64 tokens, logits of 4 positions at a time."""
    model, mesh, optimizer = dataclasses.replace(tiny.CONFIG, vocab_size=VOCABULARY), one_device_mesh(), optax.sgd(1.0)
    config = run_config(rollout__response_buckets=(TOKENS,), grpo__log_prob_chunk=CHUNK)
    step, state = TrainStep(model, config, mesh, optimizer), abstract_state(model, optimizer, mesh)
    batch = jax.tree.map(lambda x: x[:2], make_batch(extra_response=TOKENS - 6))
    batch, weights = abstract_batch(mesh, (batch, np.zeros(batch.mask.shape, np.float32)))
    grads = trained_params(state.params, freeze_vision=False)
    return step.gradient.lower(state.params, state.step, state.kl_scale, grads, batch, weights).compile()


def test_no_array_has_a_place_for_every_token_and_every_word():
    compiled = compiled_gradient()
    shapes = [
        shape
        for computation in parse(compiled.as_text()).computations.values()
        for instruction in computation.instructions.values()
        for shape in instruction.shapes
    ]

    def most(words, matrices):
        """The most numbers that an array has for each of so many words, of those that are matrices or are not."""
        of_words = [shape.dims for shape in shapes if words in shape.dims]
        sizes = [int(np.prod(dims)) for dims in of_words if (tiny.CONFIG.hidden_size in dims) == matrices]
        return max(sizes, default=0) // words

    assert most(VOCABULARY, matrices=True) == tiny.CONFIG.hidden_size
    assert most(VOCABULARY, matrices=False) <= 1  # which words are banned
    assert most(BLOCK, matrices=False) == 2 * 4 * TOKENS  # the logits of all positions of two rows for a block of words
    all_logits = 2 * 4 * TOKENS * VOCABULARY * 4
    assert compiled.memory_analysis().temp_size_in_bytes < all_logits / 2
