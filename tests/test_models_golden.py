"""Parity with recorded outputs of transformers, so that it is tested where torch is absent."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perception_r1_jax.inference import Engine, Sampling
from perception_r1_jax.models import compute_logits, embed_prompts, forward, load_config
from perception_r1_jax.processing import Processor
from perception_r1_jax.sharding import make_mesh
from perception_r1_jax.weights import load_params
from tests import parity
from tests.fixtures.make_golden import GOLDEN, NEW_TOKENS, kept, weights_hash
from tests.naive import prompt_mask


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN)


@pytest.fixture(scope="module")
def model(tmp_path_factory, golden):
    directory = parity.write_checkpoint(tmp_path_factory.mktemp("vl"))
    assert weights_hash(directory) == str(golden["weights"]), (
        "The random checkpoint is not the recorded one any more. If that was meant, "
        "run `python -m tests.fixtures.make_golden` and commit its file."
    )
    config, mesh = load_config(directory), make_mesh(devices=jax.devices()[:1])
    return config, load_params(directory, config, mesh, jnp.float32), mesh, Processor.from_directory(directory)


def test_prompts(model, golden):
    for prompt in parity.prompts(model[-1]):
        name = prompt.problem.problem_id
        np.testing.assert_array_equal(prompt.tokens, golden[f"{name}/tokens"])
        np.testing.assert_array_equal(prompt.positions, golden[f"{name}/positions"])


def test_logits(model, golden):
    config, params, _, processor = model
    prompts = parity.prompts(processor)
    batch = parity.batch(processor, prompts)

    @jax.jit
    def all_logits(params, batch):
        embedded = embed_prompts(config, params, batch)
        return compute_logits(config, params, forward(config, params, embedded, batch.positions, prompt_mask(batch)))

    logits = np.asarray(all_logits(params, batch))
    for row, prompt in enumerate(prompts):
        ours = kept(logits[row, : len(prompt.tokens)])
        assert parity.relative_error(ours, golden[f"{prompt.problem.problem_id}/logits"]) < 1e-4


def test_greedy_tokens(model, golden):
    config, params, mesh, processor = model
    prompts = parity.prompts(processor)
    sampling = Sampling(
        NEW_TOKENS, processor.stop_ids, processor.pad_id, temperature=0.0, banned_ids=processor.banned_ids
    )
    out = Engine(config, params, mesh).generate(parity.batch(processor, prompts), 1, sampling, jax.random.key(0))
    for row, prompt in enumerate(prompts):
        ours = out.tokens[row, 0][out.mask[row, 0]]
        np.testing.assert_array_equal(ours, golden[f"{prompt.problem.problem_id}/greedy"])
