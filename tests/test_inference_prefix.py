"""What many prompts begin with is computed once and read by all: nothing else than with whole prompts comes of it."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perception_r1_jax.errors import UserError
from perception_r1_jax.inference import Engine, Sampling, call, choosing
from perception_r1_jax.models import compute_logits, token_bytes
from perception_r1_jax.sharding import make_mesh
from tests import naive, tiny

SHARED = 11
SAMPLING = Sampling(10, stop_ids=(tiny.STOP_ID,), pad_id=tiny.PAD_ID, banned_ids=(tiny.IMAGE_ID,))
KEY = jax.random.key(5)
CHOICES = (10, 11, 12)
BETWEEN = [[20, 21, 22], [23], [24, 25, 26, 27]]
COUNTS = np.array([4, 2, 1, 1, 3, 4, 1])
PREFIX = np.random.default_rng(9).integers(0, 80, SHARED).astype(np.int32)
MEMORY, WEIGHTS = 2**30, sum(x.nbytes for x in jax.tree.leaves(tiny.params()))
ENGINES = {
    "one_device": {},
    "mesh": {"devices": 4, "weights_memory": 0.6 * WEIGHTS / MEMORY},
    "int8_weights": {"weights_int8": True},
    "int8_cache": {"cache_int8": True},
}


def make_engine(devices: int = 1, **fields) -> Engine:
    mesh = make_mesh(devices=jax.devices()[:devices])
    return Engine(tiny.CONFIG, tiny.params(), mesh, slots=4, memory=MEMORY, **fields)


@pytest.fixture(scope="module")
def rests():
    """Prompts behind the prefix, two of them with a picture; one row only fills the batch."""
    rests = tiny.prompt_batch([20, 7, 24, 0, 3, 9, 1], [1, 0, 1, 0, 0, 0, 0])
    return dataclasses.replace(rests, positions=rests.positions + SHARED, next_position=rests.next_position + SHARED)


@pytest.fixture(scope="module")
def wholes(rests):
    """The same prompts, whole."""

    def before(x, values):
        return np.concatenate([np.broadcast_to(values, (*x.shape[:-1], SHARED)).astype(x.dtype), x], axis=-1)

    return dataclasses.replace(
        rests,
        tokens=before(rests.tokens, PREFIX),
        positions=before(rests.positions, np.arange(SHARED)),
        image_slots=before(rests.image_slots, -1),
        lengths=np.where(rests.lengths, rests.lengths + SHARED, 0).astype(np.int32),
    )


@pytest.mark.parametrize("name", ["one_device", "mesh", "int8_cache"])
def test_responses_are_those_to_whole_prompts(rests, wholes, name):
    engine = make_engine(**ENGINES[name])
    assert engine.mesh.shape["tensor"] == (2 if name == "mesh" else 1)
    expected = engine.generate(wholes, 3, SAMPLING, KEY)
    out = engine.generate(rests, 3, SAMPLING, KEY, prefix=engine.prefix(PREFIX))
    assert expected.mask.sum() > 100
    if name == "int8_cache":  # a prompt reads its own beginning before that is rounded to 8 bits
        assert (out.tokens == expected.tokens).mean() > 0.9
        return
    np.testing.assert_array_equal(out.tokens, expected.tokens)
    np.testing.assert_allclose(out.logps, expected.logps, atol=2e-5)


@pytest.mark.parametrize("name", ENGINES)
def test_choices_are_those_behind_whole_prompts(rests, wholes, name):
    engine = make_engine(**ENGINES[name])
    expected = engine.choose(wholes, BETWEEN, COUNTS, CHOICES)
    out = engine.choose(rests, BETWEEN, COUNTS, CHOICES, prefix=engine.prefix(PREFIX))
    np.testing.assert_array_equal(out.picked, expected.picked)
    tolerance = 0.05 if name == "int8_cache" else 1e-5  # there the prefix alone is kept in 8 bits
    np.testing.assert_allclose(out.logits, expected.logits, atol=tolerance * np.abs(expected.logits).max())


def answers(picked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tokens int32 [N, 1, C] of answers with these choices, and the places [M] of the choices."""
    rows = []
    for row in picked:
        tokens = [CHOICES[row[0]]]
        for known, choice in zip(BETWEEN, row[1:]):
            tokens += [*known, CHOICES[choice]]
        rows.append(tokens)
    places = np.cumsum([0, *(len(known) + 1 for known in BETWEEN)])
    return np.array(rows, np.int32)[:, None], places


def test_logits_are_those_of_one_pass_over_prompt_and_answer(wholes):
    """Each place given the choices before it: then by induction all of them."""
    params = tiny.params()
    engine = make_engine()
    full = np.where(wholes.lengths, 4, 1)
    out = engine.choose(wholes, BETWEEN, full, CHOICES)
    tokens, places = answers(out.picked)
    hidden = naive.predicting_states(tiny.CONFIG, params, wholes, tokens, np.ones(tokens.shape, bool))[:, 0, places]
    logits = compute_logits(tiny.CONFIG, params, hidden)[..., np.array(CHOICES)]
    real = wholes.lengths > 0
    np.testing.assert_allclose(out.logits[real], logits[real], rtol=1e-5, atol=1e-5 * np.abs(logits).max())
    np.testing.assert_array_equal(out.picked[real], np.argmax(logits, -1)[real])
    assert len({tuple(row) for row in out.picked[real].tolist()}) > 2  # it is no constant


def test_an_answer_takes_a_step_less_than_it_has_places(rests, monkeypatch):
    ran = []
    engine = make_engine()
    program = engine.programs.choose

    def watched(params, prompts, embeddings, between, steps, *rest, **named):
        ran.append(int(steps))
        return program(params, prompts, embeddings, between, steps, *rest, **named)

    engine.choose(rests, BETWEEN, COUNTS, CHOICES)
    monkeypatch.setattr(engine.programs, "choose", watched)
    out = engine.choose(rests, BETWEEN, COUNTS, CHOICES)
    assert ran == [3]  # one program for all: the longest answer has four places
    np.testing.assert_array_equal(out.steps, np.where(rests.lengths, 3, 0))
    alone = engine.choose(tiny.rows(rests, [2]), BETWEEN, COUNTS[2:3], CHOICES)
    assert alone.steps.tolist() == [0]


def test_a_row_does_not_depend_on_the_rows_beside_it(rests, monkeypatch):
    engine = make_engine()
    out = engine.choose(rests, BETWEEN, COUNTS, CHOICES)
    monkeypatch.setattr(choosing, "PREFILL_TOKENS", 80)  # two rows at a time
    few = make_engine().choose(rests, BETWEEN, COUNTS, CHOICES)
    assert few.steps.tolist() == [3, 2, 0, 0, 2, 3, 0]  # those with as many places together
    for row, count in enumerate(COUNTS):
        np.testing.assert_array_equal(few.picked[row, :count], out.picked[row, :count])
        np.testing.assert_allclose(few.logits[row, :count], out.logits[row, :count], atol=2e-5)


def test_a_row_with_broken_numbers_breaks_no_other(rests):
    engine = make_engine()
    sound = engine.choose(rests, BETWEEN, COUNTS, CHOICES, prefix=engine.prefix(PREFIX))
    unused = (set(range(30, 88)) - {*rests.tokens.ravel().tolist(), *PREFIX.tolist()}).pop()  # nor in the answers

    def without_one_token(path, x):
        return x.at[unused].set(jnp.nan) if path[-1].key == "embedding" else x

    engine.load(jax.tree_util.tree_map_with_path(without_one_token, tiny.params()))
    told = dataclasses.replace(rests, tokens=rests.tokens.copy())
    told.tokens[4, 1] = unused
    out = engine.choose(told, BETWEEN, COUNTS, CHOICES, prefix=engine.prefix(PREFIX))
    assert np.isnan(out.logits[4, :3]).all()
    others = [0, 1, 2, 5, 6]
    np.testing.assert_array_equal(out.logits[others], sound.logits[others])


def test_nothing_is_compiled_after_the_first_batch(rests):
    engine = make_engine()
    prefix = engine.prefix(PREFIX)
    for prompts in (rests, tiny.rows(rests, [1, 3, 3, 3, 3, 3, 3]), tiny.rows(rests, [6, 5, 4, 2, 1, 0, 0])):
        engine.choose(prompts, BETWEEN, np.full(7, 2), CHOICES, prefix=prefix)
        engine.prefix(PREFIX[::-1])
        warm = engine.compilations
        engine.choose(rests, BETWEEN, COUNTS, CHOICES, prefix=engine.prefix(PREFIX[::-1]))
        assert engine.compilations == warm


def test_the_prefix_is_held_once_and_counted_once(rests, wholes):
    per_token = token_bytes(tiny.CONFIG, np.float32)
    engine = make_engine(2)
    prefix = engine.prefix(PREFIX)
    for x in (*prefix.k, *prefix.v):
        assert x.sharding.is_fully_replicated  # a device has all of it, for all rows of its shard
    assert sum(x.nbytes for x in (*prefix.k, *prefix.v)) == SHARED * per_token
    cut, whole = (
        engine.generate(batch, 3, SAMPLING, KEY, prefix=p).stats for batch, p in [(rests, prefix), (wholes, None)]
    )
    assert whole.prompt_bytes - cut.prompt_bytes == SHARED * 8 * per_token  # of each of 2 x 4 prompts
    assert whole.cache_bytes - cut.cache_bytes == SHARED * (8 - 2) * per_token


def test_prompts_are_run_without_their_prefix(rests, monkeypatch):
    """The programs see the rest of each prompt and nothing else."""
    seen = []
    put = call.put_batch
    monkeypatch.setattr(call, "put_batch", lambda mesh, batch: seen.append(batch) or put(mesh, batch))
    engine = make_engine()
    engine.generate(rests, 1, SAMPLING, KEY, prefix=engine.prefix(PREFIX))
    assert {batch.tokens.shape[1] for batch in seen if isinstance(batch, type(rests))} == {24}


def test_what_does_not_fit_is_refused(rests):
    engine = make_engine()
    engine._cache_bytes = 40 * token_bytes(tiny.CONFIG, np.float32)
    engine.choose(rests, BETWEEN[:1], np.ones(7, int), CHOICES)
    with pytest.raises(UserError, match=r"one request of 39 tokens needs room .* there is room for 29"):
        engine.choose(rests, BETWEEN, COUNTS, CHOICES, prefix=engine.prefix(PREFIX))
    penal = dataclasses.replace(SAMPLING, repetition_penalty=1.1)
    with pytest.raises(ValueError, match="give whole prompts, no prefix"):
        engine.generate(rests, 1, penal, KEY, prefix=engine.prefix(PREFIX))


@pytest.mark.parametrize(
    ("rows", "used"),
    [(16, [(16, 16)]), (9, [(9, 16)]), (8, [(2, 2)] * 4), (37, [(16, 16)] * 2 + [(2, 2), (2, 2), (1, 2)]), (0, [])],
)
def test_rows_go_into_large_programs_unless_half_of_one_would_be_idle(rows, used):
    assert [(len(run), level) for run, level in choosing.in_levels(np.arange(rows), (2, 16))] == used
