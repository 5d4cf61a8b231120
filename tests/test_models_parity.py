"""Live parity with transformers + torch: blocks, logits, gradients, greedy tokens; and what a defect would cost."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from perception_r1_jax.grpo.log_probs import response_log_probs
from perception_r1_jax.grpo.losses import policy_loss
from perception_r1_jax.inference import Engine, Sampling
from perception_r1_jax.models import compute_logits, embed_prompts, forward, load_config, vision
from perception_r1_jax.models.attention import attention
from perception_r1_jax.models.qwen2_5_vl import _model
from perception_r1_jax.models.rope import vision_angles
from perception_r1_jax.processing import Processor, batch_prompts
from perception_r1_jax.sharding import make_mesh
from perception_r1_jax.weights import load_params
from perception_r1_jax.weights.names import flatten, parameter_tensors
from tests import parity
from tests.naive import prompt_mask

torch = pytest.importorskip("torch", reason="live parity needs torch; the golden fixtures are tested without it")

from tests.reference import Reference  # noqa: E402

ROWS = range(3)


class Setup:
    """Checkpoint, reference, our parameters and the prompts, made once."""

    def __init__(self, folder):
        self.directory = parity.write_checkpoint(folder)
        self.processor = Processor.from_directory(self.directory)
        self.config = load_config(self.directory)
        self.mesh = make_mesh(devices=jax.devices()[:1])
        self.params = load_params(self.directory, self.config, self.mesh, jnp.float32)
        self.reference = Reference(self.directory, self.processor)
        self.prompts = parity.prompts(self.processor)
        self.batch = parity.batch(self.processor, self.prompts)

    def reference_logits(self):
        with torch.no_grad():
            return [self.reference.logits(prompt).numpy() for prompt in self.prompts]


@pytest.fixture(scope="module")
def setup(tmp_path_factory) -> Setup:
    return Setup(tmp_path_factory.mktemp("vl"))


@pytest.fixture(scope="module")
def reference_logits(setup):
    return setup.reference_logits()


def our_logits(config, params, batch):
    """Logits [N, L, V] of whole prompts."""
    hidden = forward(config, params, embed_prompts(config, params, batch), batch.positions, prompt_mask(batch))
    return compute_logits(config, params, hidden)


def errors(setup, reference_logits, logits) -> list[float]:
    """Relative error of each prompt's logits."""
    return [
        parity.relative_error(logits[row, : len(prompt.tokens)], reference_logits[row])
        for row, prompt in enumerate(setup.prompts)
    ]


def test_the_reference_itself_uses_multimodal_positions(setup):
    inputs = setup.reference.inputs(setup.prompts[0])
    positions, _ = setup.reference.model.model.get_rope_index(
        inputs["input_ids"], inputs["mm_token_type_ids"], inputs["image_grid_thw"]
    )
    assert not torch.equal(positions[0], positions[1])
    np.testing.assert_array_equal(positions[:, 0], setup.prompts[0].positions)


@pytest.mark.parametrize("row", ROWS)
def test_each_decoder_block(setup, row):
    prompt = setup.prompts[row]
    decoder = _model(setup.config, setup.params).decoder
    angles = decoder.angles(jnp.asarray(prompt.positions)[None])
    mask = jnp.tril(jnp.ones((len(prompt.tokens),) * 2, bool))[None]
    graph, stacked = nnx.split(decoder.layers)
    blocks = setup.reference.blocks(prompt)["decoder"]
    assert len(blocks) == setup.config.num_layers
    for i, (entered, left) in enumerate(blocks):
        layer = nnx.merge(graph, jax.tree.map(lambda x, i=i: x[i], stacked))
        ours, _ = layer(jnp.asarray(entered), angles, lambda q, k, v: (attention(q, k, v, mask), None))
        assert parity.relative_error(ours, left) < 1e-5, f"decoder block {i}"


@pytest.mark.parametrize("row", [0, 1])
def test_each_vision_block(setup, row):
    prompt, config = setup.prompts[row], setup.config.vision
    layout = prompt.vision
    valid = layout.patch_valid
    graph, stacked = nnx.split(_model(setup.config, setup.params).vision.layers)
    angles = vision_angles(jnp.asarray(layout.patch_positions)[None], config.hidden_size // config.num_heads, 10000.0)
    blocks = setup.reference.blocks(prompt)["vision"]
    assert len(blocks) == config.depth
    for i, (entered, left) in enumerate(blocks):
        # The reference keeps the patches in window order without padding: our valid slots, read in order.
        x = np.zeros((*valid.shape, config.hidden_size), np.float32)
        x[valid] = entered
        layer = nnx.merge(graph, jax.tree.map(lambda x, i=i: x[i], stacked))
        full = jnp.asarray(i in config.full_attention_layers)
        ours = layer(jnp.asarray(x)[None], angles, jnp.asarray(valid)[None], jnp.asarray(layout.image_ids)[None], full)
        assert parity.relative_error(np.asarray(ours)[0][valid], left) < 1e-5, f"vision block {i}"


def test_logits(setup, reference_logits):
    logits = jax.jit(our_logits, static_argnums=0)(setup.config, setup.params, setup.batch)
    assert np.isfinite(np.asarray(logits)).all()  # the filler row too
    assert max(errors(setup, reference_logits, logits)) < 1e-4


def swapped_sections(setup):
    first, second, third = setup.config.mrope_section
    return dataclasses.replace(setup.config, mrope_section=(third, second, first)), setup.params, setup.batch


def shifted_windows(setup):
    """Windows of another partition: every window starts half a window later."""
    batch = setup.batch
    shift = lambda x: np.roll(x.reshape(x.shape[0], -1, *x.shape[3:]), 32, axis=1).reshape(x.shape)  # noqa: E731
    slots = np.where(batch.image_slots >= 0, (batch.image_slots + 8) % (parity.WINDOWS * 16), -1)
    moved = {name: shift(getattr(batch, name)) for name in ("patches", "patch_positions", "patch_valid")}
    return setup.config, setup.params, dataclasses.replace(batch, image_slots=slots, **moved)


def second_picture_dropped(setup):
    keep = setup.batch.image_ids != 1
    patches = setup.batch.patches * keep[:, :, None, None]
    return setup.config, setup.params, dataclasses.replace(setup.batch, patches=patches)


def plain_positions(setup):
    plain = np.broadcast_to(np.arange(parity.LENGTH, dtype=np.int32), setup.batch.positions.shape)
    return setup.config, setup.params, dataclasses.replace(setup.batch, positions=plain)


def without(path):
    def broken(setup):
        leaves, tree = jax.tree_util.tree_flatten_with_path(setup.params)
        changed = [x * 0 if "/".join(k.key for k in p) == path else x for p, x in leaves]
        return setup.config, jax.tree.unflatten(tree, changed), setup.batch

    broken.__name__ = f"without {path}"
    return broken


def every_layer_windowed(setup):
    windowed = dataclasses.replace(setup.config.vision, full_attention_layers=())
    return dataclasses.replace(setup.config, vision=windowed), setup.params, setup.batch


BREAKS = [
    (swapped_sections, 0),
    (plain_positions, 0),
    (shifted_windows, 0),
    (every_layer_windowed, 0),
    (second_picture_dropped, 1),
    (without("decoder/layers/attention/k/bias"), 2),
    (without("vision/layers/attention/qkv/bias"), 0),
    (without("vision/merger/fc1/bias"), 0),
    (without("vision/layers/mlp/up/bias"), 1),
]


@pytest.mark.parametrize(("broken", "row"), BREAKS, ids=[b.__name__ for b, _ in BREAKS])
def test_a_defect_is_caught_by_a_wide_margin(setup, reference_logits, broken, row):
    logits = jax.jit(our_logits, static_argnums=0)(*broken(setup))
    assert errors(setup, reference_logits, logits)[row] > 100 * 1e-4


def _attend_band(q, k, v, valid, image_ids):
    """The 64 slots before and after, whatever their window, of the same picture."""
    n, w, slots, heads, head = q.shape
    q, k, v = (x.reshape(n, w * slots, heads, head) for x in (q, k, v))
    picture = jnp.where(valid, image_ids[:, :, None], -1).reshape(n, w * slots)
    slot = np.arange(w * slots)
    near = np.abs(slot[:, None] - slot[None, :]) <= slots
    mask = (picture[:, :, None] == picture[:, None, :]) & (picture >= 0)[:, None, :] & near[None]
    return attention(q, k, v, mask).reshape(n, w, slots, heads, head)


def test_a_band_for_windows_is_caught_by_a_wide_margin(setup, reference_logits, monkeypatch):
    monkeypatch.setattr(vision, "_attend_windows", _attend_band)
    # A function of its own: the trace of `our_logits` with the true windows may be kept.
    logits = jax.jit(lambda params: our_logits(setup.config, params, setup.batch))(setup.params)
    assert errors(setup, reference_logits, logits)[0] > 100 * 1e-4
    assert errors(setup, reference_logits, logits)[2] < 1e-4  # the text has no windows


def test_gradients_of_the_loss(setup):
    rng = np.random.default_rng(0)
    responses = rng.integers(300, 900, (3, 2, 12)).astype(np.int32)
    mask = np.arange(12) < np.array([[12, 5], [9, 12], [1, 7]])[..., None]
    advantages = rng.normal(size=(3, 2)).astype(np.float32)
    ours = flatten(_our_gradients(setup, responses, mask, advantages))
    theirs = _torch_gradients(setup, responses, mask, advantages)
    for path, tensors in parameter_tensors(setup.config).items():
        whole = [slice(None)] * len(tensors[0].parameter_shape)
        pieces = [t.to_parameter(theirs[t.name].reshape(t.shape), whole) for t in tensors]
        reference = np.stack(pieces) if tensors[0].layer is not None else pieces[0]
        difference = np.linalg.norm(np.asarray(ours[path]) - reference) / np.linalg.norm(reference)
        assert difference < 1e-4, f"{path}: {difference:.1e}"


def _our_gradients(setup, responses, mask, advantages):
    batch = batch_prompts(setup.prompts, rows=3, length=parity.LENGTH, windows=parity.WINDOWS, pad_id=0)

    def loss(params):
        logps, _ = response_log_probs(setup.config, params, batch, jnp.asarray(responses), jnp.asarray(mask), chunk=5)
        rows = logps.reshape(6, 12)
        return policy_loss(
            rows, jax.lax.stop_gradient(rows), jnp.asarray(advantages.ravel()), jnp.asarray(mask.reshape(6, 12))
        )[0]

    return jax.jit(jax.grad(loss))(setup.params)


def _torch_gradients(setup, responses, mask, advantages):
    model = setup.reference.model
    model.zero_grad()
    total = 0
    for prompt, group, group_mask, group_advantages in zip(setup.prompts, responses, mask, advantages):
        for response, counted, advantage in zip(group, group_mask, group_advantages):
            size = int(counted.sum())
            logits = setup.reference.logits(prompt, response[:size])[len(prompt.tokens) - 1 : -1]
            logps = torch.log_softmax(logits, -1)[range(size), torch.from_numpy(response[:size]).long()]
            ratio = torch.exp(logps - logps.detach())
            total = total - (ratio * float(advantage)).mean() / 6
    total.backward()
    gradients = {name: p.grad.numpy() for name, p in model.named_parameters()}
    return {_published(name): gradient for name, gradient in gradients.items()}


def _published(name):
    return name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")


def test_greedy_tokens(setup):
    processor = setup.processor
    sampling = Sampling(64, processor.stop_ids, processor.pad_id, temperature=0.0, banned_ids=processor.banned_ids)
    out = Engine(setup.config, setup.params, setup.mesh).generate(setup.batch, 1, sampling, jax.random.key(0))
    for row, prompt in enumerate(setup.prompts):
        expected = setup.reference.greedy(prompt, 64, processor.banned_ids)
        ours = out.tokens[row, 0][out.mask[row, 0]].tolist()
        assert ours == expected
        assert len(set(ours)) > 10, "a greedy loop compares little"
