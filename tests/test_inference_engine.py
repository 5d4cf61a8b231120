"""The engine's promise: whatever the slots, pages, shards and waves, a response is what the naive way would give."""

from __future__ import annotations

import dataclasses
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perception_r1_jax.errors import UserError
from perception_r1_jax.inference import Engine, Sampling, call, generation, pools, schedule
from perception_r1_jax.inference.programs import sample_keys
from perception_r1_jax.inference.reshard import device_memory
from perception_r1_jax.inference.sampling import sample
from perception_r1_jax.models import (
    KeyValues,
    Tables,
    compute_logits,
    decode_step,
    embed_prompts,
    prefill,
    response_angles,
    serving_params,
)
from perception_r1_jax.processing import narrow
from perception_r1_jax.records import WINDOW_PATCHES, WINDOW_TOKENS
from perception_r1_jax.sharding import make_mesh
from tests import naive, tiny

SAMPLING = Sampling(30, stop_ids=tuple(range(6)), pad_id=tiny.PAD_ID, banned_ids=(tiny.IMAGE_ID,))
KEY = jax.random.key(5)
SAMPLES = 3
BROKEN = 85


@pytest.fixture(autouse=True)
def small_pages(monkeypatch):
    """Several stretches to a response, and several blocks to a pool."""
    monkeypatch.setattr(pools, "PAGE_TOKENS", 4)
    monkeypatch.setattr(pools, "LEAST_SLOTS", 2)
    monkeypatch.setattr(pools, "LEAST_BLOCK_TOKENS", 12)


shared_programs = functools.cache(call.Programs)


def make_engine(devices: int = 1, **fields) -> Engine:
    """An engine with the programs of those before it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("perception_r1_jax.inference.engine.Programs", shared_programs)
        return new_engine(devices, **fields)


def new_engine(devices: int = 1, **fields) -> Engine:
    return Engine(tiny.CONFIG, tiny.params(), make_mesh(devices=jax.devices()[:devices]), **fields)


@pytest.fixture(scope="module")
def prompts():
    return tiny.prompt_batch([20, 7, 24, 3, 9, 22, 1], [1, 0, 1, 0, 0, 1, 0])


@pytest.fixture(scope="module")
def plain(prompts):
    """All responses at once, in one page each."""
    return make_engine(slots=64).generate(prompts, SAMPLES, SAMPLING, KEY)


def naive_logits(prompts, tokens, mask):
    """Logits [N, G, C, V] of each response token: one row per response, the whole prompt in each."""
    params = tiny.params()
    return compute_logits(tiny.CONFIG, params, naive.predicting_states(tiny.CONFIG, params, prompts, tokens, mask))


@pytest.fixture(scope="module")
def naive_plain(prompts, plain):
    """The naive logits of these responses."""
    return jax.jit(naive_logits)(prompts, plain.tokens, plain.mask)


def test_decoding_steps_have_the_logits_of_one_row_per_response(prompts, plain, naive_plain):
    """Two steps behind one prefill, each with a token of all responses, which see the prompt of their group."""
    slots = np.arange(7 * SAMPLES, dtype=np.int32)
    tables = Tables(
        lengths=prompts.lengths[None],
        cells=slots[None],
        slots=slots.reshape(1, 7, SAMPLES),
        owners=np.full((1, 1), slots.size, np.int32),
        prompt_blocks=np.int32(1),
        page_blocks=np.int32(0),
        prompt_block=7,
        page_block=1,
    )
    positions = np.repeat(prompts.next_position, SAMPLES)[None]

    @jax.jit
    def steps(params, prompts, fed, positions, tables):
        params = serving_params(params)
        _, new = prefill(tiny.CONFIG, params, prompts, embed_prompts(tiny.CONFIG, params, prompts), 1)
        pool, pages, recent = (
            KeyValues.empty(tiny.CONFIG, 1, *size, jnp.float32) for size in ((7, 24), (1, 4), (slots.size, 4))
        )
        pool, recent, found = pool.put(jnp.arange(7)[None], new), recent.joined(), []
        for step in range(2):
            angles = response_angles(tiny.CONFIG, positions + jnp.int32(step))
            cache = (pool, pages, recent, jnp.int32(step), tables)
            logits, recent = decode_step(tiny.CONFIG, params, fed[..., step], angles, *cache)
            found.append(logits.reshape(7, SAMPLES, -1))
        return jnp.stack(found, 2)

    logits = steps(tiny.params(), prompts, plain.tokens.reshape(1, -1, 30), positions, tables)
    fed = plain.mask[:, :, :2, None]
    assert fed.sum() > 30
    found, expected = (np.where(fed, x, 0) for x in (logits, naive_plain[:, :, 1:3]))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_it_draws_what_one_row_per_response_draws_under_the_same_keys(prompts, plain, naive_plain):
    """Each token, given those before it: then by induction all of them."""
    logits, shape = naive_plain, plain.tokens.shape
    ids = jnp.broadcast_to(prompts.prompt_ids[:, None, None], shape)
    numbers, index = (jnp.broadcast_to(jnp.arange(shape[i]).reshape(-1, *[1] * (2 - i)), shape) for i in (1, 2))
    tokens, logps = sample(logits, sample_keys(KEY, ids, numbers, index), SAMPLING)
    assert plain.mask.sum() > 150
    np.testing.assert_array_equal(np.where(plain.mask, tokens, 0), np.where(plain.mask, plain.tokens, 0))
    np.testing.assert_allclose(np.where(plain.mask, logps, 0), plain.logps, atol=2e-5)


def assert_same(out, expected):
    np.testing.assert_array_equal(out.tokens, expected.tokens)
    np.testing.assert_array_equal(out.mask, expected.mask)
    np.testing.assert_array_equal(out.stopped, expected.stopped)
    np.testing.assert_allclose(out.logps, expected.logps, atol=2e-5)


@pytest.mark.parametrize("slots", [1, 2, 5, 21])
def test_a_sample_does_not_depend_on_the_number_of_slots(prompts, plain, slots):
    out = make_engine(slots=slots).generate(prompts, SAMPLES, SAMPLING, KEY)
    assert_same(out, plain)
    assert out.stats.tokens == plain.mask.sum()
    assert out.stats.preempted == 0


def test_unequal_lengths_leave_few_slots_idle(prompts):
    rng = np.random.default_rng(0)
    limits = rng.choice([2, 4, 30], (7, SAMPLES), p=[0.4, 0.4, 0.2]).astype(np.int32)
    endless = dataclasses.replace(SAMPLING, min_new_tokens=30)
    out = make_engine(slots=4).generate(prompts, SAMPLES, endless, KEY, limits=limits)
    np.testing.assert_array_equal(out.mask.sum(-1), limits)
    static = limits.sum() / (limits.size * 30)
    assert out.stats.utilisation > 2 * static
    assert not out.stopped.any()


@pytest.mark.parametrize("devices", [2, 3, 8])
def test_a_sample_does_not_depend_on_the_shards(prompts, plain, devices):
    engine = make_engine(devices, slots=2)
    assert engine.shards == devices
    assert_same(engine.generate(prompts, SAMPLES, SAMPLING, KEY), plain)


def test_weights_that_do_not_fit_are_split_and_draw_the_same(prompts, plain):
    whole = sum(x.size * 4 for x in jax.tree.leaves(tiny.params()))
    engine = make_engine(4, slots=4)
    memory = engine._cache_bytes / 0.3
    split = make_engine(4, slots=4, weights_memory=0.6 * whole / memory)
    assert split.mesh.shape == {"data": 2, "fsdp": 1, "tensor": 2}
    assert_same(split.generate(prompts, SAMPLES, SAMPLING, KEY), plain)
    with pytest.raises(UserError, match=r"the weights take .* also when split over 4 devices and 2 key heads"):
        make_engine(4, weights_memory=0.4 * whole / memory)


def test_what_finds_no_room_in_the_cache_comes_later(prompts, plain):
    """Room for a few long responses at most: some give way to others and begin again."""
    engine = make_engine(slots=64)
    per_token = 2 * 2 * 2 * 8 * 4
    engine._cache_bytes = (6 * 24 + 20 * 4) * per_token
    out = engine.generate(prompts, SAMPLES, SAMPLING, KEY)
    assert_same(out, plain)
    assert out.stats.cache_bytes <= engine._cache_bytes
    assert out.stats.steps < plain.stats.steps, "fewer slots, so fewer of them idle at the end"
    engine._cache_bytes = 50 * per_token
    with pytest.raises(UserError, match=r"needs room in the cache for \d+ tokens; there is room for 50"):
        engine.generate(prompts, SAMPLES, SAMPLING, KEY)


def test_responses_that_give_way_come_out_the_same(prompts, plain, monkeypatch):
    monkeypatch.setattr(pools, "EXPECTED_SHARE", 0.01)
    engine = make_engine(slots=64)
    engine._cache_bytes = (7 * 24 + 24 * 4) * 2 * 2 * 2 * 8 * 4
    out = engine.generate(prompts, SAMPLES, SAMPLING, KEY)
    assert_same(out, plain)
    assert out.stats.preempted > 0


def test_gaps_between_prompts_and_pages_are_closed(prompts, plain, monkeypatch):
    moved = []
    compact = schedule.Places.compact
    monkeypatch.setattr(schedule.Places, "compact", lambda places: moved.append(compact(places)) or moved[-1])
    limits = np.full((7, SAMPLES), 30, np.int32)
    limits[:5] = 6  # the first prompts leave early, the last ones stay at the pools' ends
    out = make_engine(slots=64).generate(prompts, SAMPLES, SAMPLING, KEY, limits=limits)
    assert sum(map(bool, moved)) >= 2
    cut_off = np.arange(30) < limits[..., None]
    np.testing.assert_array_equal(out.tokens, np.where(plain.mask & cut_off, plain.tokens, tiny.PAD_ID))


def test_gaps_are_closed_in_8_bits_and_over_devices_too(prompts, monkeypatch):
    """Numbers and their scales move together."""
    limits = np.full((7, SAMPLES), 30, np.int32)
    limits[:5] = 6
    moves, found = generation._moves, []

    def counted(*arguments):
        tables = moves(*arguments)
        found.extend(tables)
        return tables

    monkeypatch.setattr(generation, "_moves", counted)
    weights = sum(x.size * 4 for x in jax.tree.leaves(tiny.params()))

    def run():
        share = 0.6 * weights / device_memory(jax.devices()[0])
        engine = make_engine(4, slots=64, cache_int8=True, weights_memory=share)
        assert engine.mesh.shape == {"data": 2, "fsdp": 1, "tensor": 2}
        return engine.generate(prompts, SAMPLES, SAMPLING, KEY, limits=limits)

    closed = run()
    assert found
    monkeypatch.setattr(generation, "_moves", lambda *_: [])
    left = run()
    np.testing.assert_array_equal(closed.tokens, left.tokens)
    # The order of sums is another, so a number in 8 bits may fall to the other side.
    np.testing.assert_allclose(closed.logps, left.logps, atol=5e-3)


def test_prompts_are_run_once_each(prompts, monkeypatch):
    """The picture and the prompt: once a prompt, not once a response, however they come through."""
    encoded, run = [], []
    put = call.put_batch

    def watch(mesh, batch):
        if isinstance(batch, type(prompts)):
            seen = encoded if batch.patches.shape[1] else run
            seen.extend(batch.prompt_ids[batch.lengths > 0].tolist())
        return put(mesh, batch)

    monkeypatch.setattr(call, "put_batch", watch)
    make_engine(slots=2).generate(prompts, SAMPLES, SAMPLING, KEY)
    assert sorted(encoded) == sorted(run) == prompts.prompt_ids.tolist()


def pictured_prompts(rng: np.random.Generator, length: int = 40, windows: int = 2):
    """Seven prompts of 0 or more windows of pictures, of which the last one may be partly empty."""
    pictures = rng.integers(0, windows + 1, 7)
    lengths = rng.integers(WINDOW_TOKENS * pictures + 2, length + 1)
    batch = tiny.prompt_batch(lengths, pictures, length=length, windows=windows)
    for row in np.flatnonzero(pictures):
        missing = rng.integers(0, WINDOW_TOKENS)
        gone = batch.image_slots[row] >= WINDOW_TOKENS * pictures[row] - missing
        batch.image_slots[row, gone], batch.tokens[row, gone] = -1, 0
        empty = slice(WINDOW_PATCHES - WINDOW_PATCHES // WINDOW_TOKENS * missing, None)
        batch.patch_valid[row, pictures[row] - 1, empty] = False
        batch.patches[row, pictures[row] - 1, empty] = 0
    return batch


def test_a_step_reads_as_many_blocks_of_pages_as_are_in_use(prompts, plain, monkeypatch):
    """Those of responses that have just begun lie in the first block; with their lengths more are read."""
    read, tables = [], generation.Generation.tables

    def watched(self, level):
        read.append(tables(self, level))
        return read[-1]

    monkeypatch.setattr(generation.Generation, "tables", watched)
    assert_same(make_engine(slots=2).generate(prompts, SAMPLES, SAMPLING, KEY), plain)
    blocks = [int(each.page_blocks) for each in read]
    in_use = [np.flatnonzero((each.owners < each.cells.shape[1]).any(0)) for each in read]
    assert blocks[0] <= 1 < max(blocks)
    for each, used, count in zip(read, in_use, blocks):
        assert used.size == 0 or used.max() < count * each.page_block, "what is read holds all that is in use"
        assert count <= -(-(2 * 30 // 4 + 2) // each.page_block)


@pytest.mark.parametrize("fields", [{}, {"cache_int8": True, "devices": 4}])
def test_nothing_is_compiled_after_the_first_batches(fields):
    """Twenty batches of other pictures, lengths and limits, that come in two buckets by turns."""
    engine, buckets = new_engine(**fields, slots=8), ((40, 2), (24, 1))
    for bucket in buckets:
        prompts, compiled = pictured_prompts(np.random.default_rng(1), *bucket), []

        def look(_, seen=compiled):
            seen.append(engine.compilations)

        engine.generate(prompts, SAMPLES, SAMPLING, KEY, on_progress=look)
        assert compiled[0] < compiled[-1] - 4
        assert np.diff(compiled).max() <= 2, "who looks for a stop does not wait for all compilations"
    warm, rng, windows, partly = engine.compilations, np.random.default_rng(0), set(), 0
    for seed in range(20):
        engine.load(tiny.params())
        batch, limits = pictured_prompts(rng, *buckets[seed % 2]), rng.integers(1, 31, (7, SAMPLES)).astype(np.int32)
        windows |= {(batch.image_ids[row] >= 0).sum() for row in range(7)}
        partly += (batch.patch_valid.any(-1) & ~batch.patch_valid.all(-1)).sum()
        out = engine.generate(batch, SAMPLES, SAMPLING, jax.random.key(seed), limits=limits)
        assert (out.mask.sum(-1) <= limits).all()
        assert np.isfinite(out.logps).all()
    assert engine.compilations == warm
    assert windows == {0, 1, 2}
    assert partly > 50


def test_stop_strings_end_a_response_wherever_the_stretches_end(prompts, plain):
    """Decoded, a token is a letter; a response ends with the token that completes "b" after "a"."""

    def decode(tokens):
        return "".join("abcdefgh"[token % 8] for token in tokens)

    strings = ("ab", "hhc")
    ended = dataclasses.replace(SAMPLING, stop_strings=strings)
    out = make_engine(slots=5).generate(prompts, SAMPLES, ended, KEY, decode=decode)
    cut = 0
    for row, sample_ in np.ndindex(out.stopped.shape):
        text = decode(plain.tokens[row, sample_][plain.mask[row, sample_]])
        ends = [text.find(string) + len(string) for string in strings if string in text]
        expected = min(ends, default=len(text))
        assert out.mask[row, sample_].sum() == expected
        assert out.stopped[row, sample_] == (plain.stopped[row, sample_] or bool(ends))
        cut += bool(ends)
    assert cut > 3
    with pytest.raises(ValueError, match="need `decode`"):
        make_engine().generate(prompts, SAMPLES, ended, KEY)


def test_a_repetition_penalty_counts_the_prompt_and_all_that_was_said(prompts):
    """With a penalty past every logit no token comes twice, nor one of the prompt, as long as there are others."""
    penal = dataclasses.replace(SAMPLING, temperature=0.0, repetition_penalty=1e6, stop_ids=(tiny.STOP_ID,))
    few = tiny.rows(prompts, [1, 3])
    out = make_engine(slots=2).generate(few, 1, penal, KEY)
    for row in range(2):
        said = out.tokens[row, 0][out.mask[row, 0]].tolist()
        assert len(set(said)) == len(said)
        assert not set(said) & set(few.tokens[row, : few.lengths[row]].tolist())


def test_no_response_ends_before_the_minimum(prompts, plain):
    assert (plain.mask.sum(-1) < 12).any()
    out = make_engine(slots=4).generate(prompts, SAMPLES, dataclasses.replace(SAMPLING, min_new_tokens=12), KEY)
    assert out.mask.sum(-1).min() >= 12


def test_progress_is_told_and_ends_the_generation_where_it_raises(prompts):
    told = []
    engine = make_engine(slots=4)
    engine.generate(prompts, SAMPLES, SAMPLING, KEY, on_progress=told.append)
    assert told == sorted(told)
    assert told[-1] == 21
    assert len(set(told)) > 3

    def stop(finished):
        if finished > 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate(prompts, SAMPLES, SAMPLING, KEY, on_progress=stop)


def test_groups_are_handed_out_as_they_finish_in_an_order_that_the_data_decides(prompts, plain):
    prompts = dataclasses.replace(prompts, lengths=prompts.lengths * (np.arange(7) != 3))  # one is only filler
    engine, told, handed_out = make_engine(slots=4), [0], []

    def take(groups):
        handed_out.append((told[-1], groups))

    for _ in range(2):
        out = engine.generate(prompts, SAMPLES, SAMPLING, KEY, on_progress=told.append, on_groups=take)
    half = len(handed_out) // 2
    assert half > 2
    order = [(finished, groups.rows) for finished, groups in handed_out]
    assert order[:half] == order[half:]
    assert sorted(row for _, rows in order[:half] for row in rows) == [0, 1, 2, 4, 5, 6]
    assert order[0][0] < out.mask.any(-1).sum() == 18, "the first leave while others are drawn"
    finished = 0
    for told_by_then, groups in handed_out[:half]:
        finished += SAMPLES * len(groups.rows)
        assert finished <= told_by_then
        np.testing.assert_array_equal(groups.tokens, out.tokens[groups.rows])
        np.testing.assert_array_equal(groups.mask, plain.mask[groups.rows])


@pytest.mark.parametrize("devices", [1, 2])
def test_other_prompts_may_take_the_rows_of_what_is_done(prompts, plain, devices):
    """Three rows for seven prompts: each has the responses that it has with all of them at once."""
    engine, rows, waiting, found = make_engine(devices, slots=8), [0, 1, 2], [3, 4, 5, 6], {}

    def take(groups):
        np.testing.assert_array_equal(groups.stopped, plain.stopped[[rows[row] for row in groups.rows]])
        found.update((rows[row], (t, m)) for row, t, m in zip(groups.rows, groups.tokens, groups.mask))
        more = [waiting.pop(0) for _ in groups.rows[: len(waiting)]]
        for row, prompt in zip(groups.rows, more):
            rows[row] = prompt
        return tiny.rows(prompts, more) if more else None

    out = engine.generate(tiny.rows(prompts, rows), SAMPLES, SAMPLING, KEY, on_groups=take)
    assert sorted(found) == list(range(7))
    for prompt, (tokens, mask) in found.items():
        np.testing.assert_array_equal(tokens, plain.tokens[prompt])
        np.testing.assert_array_equal(mask, plain.mask[prompt])
    np.testing.assert_array_equal(out.tokens, plain.tokens[rows])
    np.testing.assert_allclose(out.logps, plain.logps[rows], atol=1e-5)
    np.testing.assert_array_equal(out.stopped, plain.stopped[rows])
    assert out.stats.tokens == plain.mask.sum()


def first_of(prompts, rows, length=24, **fields):
    """These rows in a bucket of `length` tokens, with other fields."""
    return dataclasses.replace(narrow(tiny.rows(prompts, rows), length, windows=2), **fields)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"rows": [3, 4, 6]}, r"3 prompts of \(24, 2\) .* for [12] rows of \(24, 2\)"),
        ({"rows": [3], "length": 16}, r"1 prompts of \(16, 2\) .* rows of \(24, 2\)"),
        ({"rows": [3], "lengths": np.zeros(1, np.int32)}, r"\[0\] of the tokens used"),
    ],
)
def test_what_may_not_take_the_rows_of_what_is_done_is_refused(prompts, fields, told):
    with pytest.raises(ValueError, match=told):
        make_engine().generate(
            tiny.rows(prompts, [0, 1]), SAMPLES, SAMPLING, KEY, on_groups=lambda _: first_of(prompts, **fields)
        )


def test_who_takes_a_group_may_end_the_generation_and_its_time_is_not_counted(prompts):
    def take(groups):
        time.sleep(0.3)
        if len(seen := [*taken, groups]) == 2:
            raise KeyboardInterrupt
        taken[:] = seen

    engine, taken = make_engine(slots=4), []
    with pytest.raises(KeyboardInterrupt):
        engine.generate(prompts, SAMPLES, SAMPLING, KEY, on_groups=take)
    started = time.monotonic()
    out = engine.generate(prompts, SAMPLES, SAMPLING, KEY, on_groups=lambda groups: time.sleep(0.3))
    assert out.stats.seconds < time.monotonic() - started - 0.6


def test_the_prompts_are_held_once_and_counted(prompts, plain):
    per_token = 2 * 2 * 2 * 8 * 4  # k and v, layers, heads, size, bytes
    assert plain.stats.prompt_bytes == 7 * 24 * per_token
    pages = recent = 21 * 29  # a response's last token is never fed
    assert plain.stats.cache_bytes == plain.stats.prompt_bytes + (pages + recent) * per_token


@pytest.mark.parametrize("fields", [{}, {"cache_int8": True}, {"devices": 2}])
def test_a_sequence_with_broken_numbers_breaks_no_other(prompts, fields):
    """Some responses say a token whose embedding is NaN, and a prompt has it: nothing else changes."""
    engine = make_engine(**fields, slots=6)
    sound = engine.generate(prompts, SAMPLES, SAMPLING, KEY)
    said = (sound.tokens == BROKEN) & sound.mask
    assert 0 < said.any(-1).sum() < 10
    assert not (prompts.tokens == BROKEN).any()

    def without_one_token(path, x):
        return x.at[BROKEN].set(jnp.nan) if path[-1].key == "embedding" else x

    told = dataclasses.replace(prompts, tokens=prompts.tokens.copy())
    told.tokens[5, 0] = BROKEN
    engine.load(jax.tree_util.tree_map_with_path(without_one_token, tiny.params()))
    out = engine.generate(told, SAMPLES, SAMPLING, KEY)
    before = np.cumsum(said, -1) - said == 0  # up to the token itself
    before[5] = False
    np.testing.assert_array_equal(np.where(before, out.tokens, 0), np.where(before, sound.tokens, 0))
    np.testing.assert_allclose(np.where(before, out.logps, 0), np.where(before, sound.logps, 0), atol=2e-5)
    for row, sample_, place in zip(*np.nonzero(said)):
        if row != 5 and before[row, sample_, place] and place < 29:
            assert np.isnan(out.logps[row, sample_, place + 1])
    assert np.isnan(out.logps[5, :, 0]).all()


def test_stats_add_up(prompts, plain):
    stats = plain.stats
    assert stats.tokens == plain.mask.sum()
    assert stats.decoded == plain.mask.sum() - plain.mask.any(-1).sum()
    assert 0 < stats.utilisation < 1
    assert min(stats.vision, stats.prefill, stats.decode, stats.host) > 0
    assert stats.metrics()["tokens_per_second"] == pytest.approx(stats.tokens / stats.seconds)


@pytest.mark.parametrize(
    "limits", [np.zeros((7, 3), np.int32), np.full((7, 3), 31, np.int32), np.ones((7, 2), np.int32)]
)
def test_wrong_limits_are_refused(prompts, limits):
    with pytest.raises(ValueError, match=r"limits must be of shape \(7, 3\) and from 1 to 30, not of shape \(7, \d\)"):
        make_engine().generate(prompts, SAMPLES, SAMPLING, KEY, limits=limits)


def test_without_parameters_it_says_so(prompts):
    engine = make_engine()
    engine.unload()
    with pytest.raises(RuntimeError, match="no parameters; `load` them first"):
        engine.generate(prompts, SAMPLES, SAMPLING, KEY)
