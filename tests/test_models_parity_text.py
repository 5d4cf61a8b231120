"""The text-only families against transformers: live where torch is there, and by recorded outputs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from perception_r1_jax.inference import Engine, Sampling
from perception_r1_jax.models import compute_logits, embed_prompts, forward, load_config
from perception_r1_jax.models.attention import attention
from perception_r1_jax.models.qwen2_5_vl import _model
from perception_r1_jax.processing import Processor
from perception_r1_jax.sharding import make_mesh
from perception_r1_jax.weights import load_params
from tests import parity
from tests.fixtures.make_golden import GOLDEN, KEPT_TEXT_LOGITS, NEW_TOKENS, kept, weights_hash
from tests.naive import prompt_mask


class Setup:
    """One checkpoint, our parameters and logits, the prompts and what is recorded of them."""

    def __init__(self, folder, name):
        self.directory = parity.write_text_checkpoint(folder, name)
        self.processor = Processor.from_directory(self.directory)
        self.config = load_config(self.directory)
        self.mesh = make_mesh(devices=jax.devices()[:1])
        self.params = load_params(self.directory, self.config, self.mesh, jnp.float32)
        self.prompts = parity.text_prompts(self.processor)
        self.batch = parity.text_batch(self.processor, self.prompts)
        self.golden = {key.removeprefix(f"{name}/"): x for key, x in np.load(GOLDEN).items() if key.startswith(name)}
        self.logits = np.asarray(jax.jit(self._logits)(self.params))

    def _logits(self, params):
        embedded, mask = embed_prompts(self.config, params, self.batch), prompt_mask(self.batch)
        return compute_logits(self.config, params, forward(self.config, params, embedded, self.batch.positions, mask))


@pytest.fixture(scope="module", params=list(parity.TEXT_MODELS))
def setup(request, tmp_path_factory) -> Setup:
    return Setup(tmp_path_factory.mktemp("text"), request.param)


@pytest.fixture(scope="module")
def reference(setup):
    pytest.importorskip("torch", reason="live parity needs torch")
    from tests.reference import Reference

    return Reference(setup.directory, setup.processor)


def test_the_checkpoint_is_the_recorded_one(setup):
    assert weights_hash(setup.directory) == str(setup.golden["weights"]), (
        "If that was meant, run `python -m tests.fixtures.make_golden` and commit its file."
    )


def test_each_block(setup, reference):
    decoder = _model(setup.config, setup.params).decoder
    graph, stacked = nnx.split(decoder.layers)
    prompt = setup.prompts[0]
    angles = decoder.angles(jnp.asarray(prompt.positions)[None])
    mask = jnp.tril(jnp.ones((len(prompt.tokens),) * 2, bool))[None]

    @jax.jit
    def run(layer, x):
        return nnx.merge(graph, layer)(x, angles, lambda q, k, v: (attention(q, k, v, mask), None))[0]

    blocks = reference.blocks(prompt)["decoder"]
    assert len(blocks) == setup.config.num_layers
    for i, (entered, left) in enumerate(blocks):
        ours = run(jax.tree.map(lambda x, i=i: x[i], stacked), jnp.asarray(entered))
        assert parity.relative_error(ours, left) < 1e-5, f"block {i}"


def test_logits(setup, reference):
    assert np.isfinite(setup.logits).all()  # the filler row too
    for row, prompt in enumerate(setup.prompts):
        theirs = reference.logits(prompt).detach().numpy()
        assert parity.relative_error(setup.logits[row, : len(prompt.tokens)], theirs) < 1e-4


def test_recorded_logits(setup):
    for row, prompt in enumerate(setup.prompts):
        name = prompt.problem.problem_id
        np.testing.assert_array_equal(prompt.tokens, setup.golden[f"{name}/tokens"])
        ours = kept(setup.logits[row, : len(prompt.tokens)], KEPT_TEXT_LOGITS)
        assert parity.relative_error(ours, setup.golden[f"{name}/logits"]) < 1e-4


def test_recorded_greedy_tokens(setup):
    processor = setup.processor
    sampling = Sampling(
        NEW_TOKENS, processor.stop_ids, processor.pad_id, temperature=0.0, banned_ids=processor.banned_ids
    )
    out = Engine(setup.config, setup.params, setup.mesh).generate(setup.batch, 1, sampling, jax.random.key(0))
    for row, prompt in enumerate(setup.prompts):
        ours = out.tokens[row, 0][out.mask[row, 0]]
        np.testing.assert_array_equal(ours, setup.golden[f"{prompt.problem.problem_id}/greedy"])
        assert len(set(ours)) > 10, "a greedy loop compares little"
