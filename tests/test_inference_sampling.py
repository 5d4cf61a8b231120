"""What is kept against a sorting oracle and transformers; bans, penalty, minimum; greedy; the shares that are drawn."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perception_r1_jax.inference.sampling import Sampling, keep_likeliest, sample, shaped, tempered, token_logps

ALL = {
    "temperature": 0.7,
    "top_k": 12,
    "top_p": 0.9,
    "min_p": 0.05,
    "repetition_penalty": 1.3,
    "min_new_tokens": 4,
    "banned_ids": (3, 5),
}
"""Every setting at once, for a vocabulary of 40 or so."""


draw = jax.jit(sample, static_argnames="sampling")


def settings(**fields) -> Sampling:
    return Sampling(**{"max_new_tokens": 8, "stop_ids": (0, 1), "pad_id": 2} | fields)


def random_rows(*shape: int, size: int = 40, seed: int = 0) -> dict[str, np.ndarray]:
    """Logits, keys, lengths and tokens seen of rows of this shape."""
    rng = np.random.default_rng(seed)
    return {
        "logits": jnp.asarray(3 * rng.normal(size=(*shape, size)), jnp.float32),
        "keys": jax.random.split(jax.random.key(seed), shape),
        "index": jnp.asarray(rng.integers(0, 8, shape), jnp.int32),
        "seen": jnp.asarray(rng.random((*shape, size)) < 0.3),
    }


def sorted_keep(logits: np.ndarray, top_k: int, top_p: float, min_p: float) -> np.ndarray:
    """The oracle: sort, cut at k, then at the first token whose cumulated share reaches p, then at min-p; ties stay."""
    probs = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    order = np.argsort(-probs, kind="stable")
    if top_k:
        probs = np.where(probs >= probs[order[min(top_k, len(order)) - 1]], probs, 0)
    shares = np.cumsum(probs[order]) / probs.sum()
    last = order[np.argmax(shares >= top_p - 1e-7)] if top_p < 1 else order[np.flatnonzero(probs[order])[-1]]
    return (probs >= probs[last]) & (probs >= min_p * probs.max())


@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p"),
    [
        (0, 1.0, 0.0),
        (5, 1.0, 0.0),
        (1, 1.0, 0.0),
        (0, 0.9, 0.0),
        (0, 0.05, 0.0),
        (20, 0.5, 0.0),
        (500, 0.7, 0.0),
        (0, 1.0, 0.03),
        (0, 1.0, 1.0),
        (30, 0.99, 0.04),
        (4, 0.99, 0.001),
    ],
)
def test_keeps_what_sorting_keeps(top_k, top_p, min_p):
    logits = np.random.default_rng(0).normal(size=(7, 200)).astype(np.float32) * 3
    kept = np.asarray(jax.jit(keep_likeliest, static_argnums=(1, 2, 3))(jnp.asarray(logits), top_k, top_p, min_p))
    expected = np.stack([sorted_keep(row, top_k, top_p, min_p) for row in logits])
    np.testing.assert_array_equal(kept, expected)


def test_ties_at_the_threshold_are_kept():
    logits = jnp.log(jnp.asarray([[0.4, 0.2, 0.2, 0.1, 0.1]]))
    assert keep_likeliest(logits, 2, 1.0, 0.0).tolist() == [[True, True, True, False, False]]
    assert keep_likeliest(logits, 0, 0.5, 0.0).tolist() == [[True, True, True, False, False]]
    assert keep_likeliest(jnp.asarray([[1.0, 0.5, 1.0, 0.0]]), 0, 1.0, 1.0).tolist() == [[True, False, True, False]]


@pytest.mark.parametrize("fields", [{}, ALL], ids=["defaults", "all"])
def test_the_vocabulary_is_not_sorted(fields):
    rows = random_rows(2, 3)
    program = draw.lower(**rows, sampling=settings(**fields)).as_text()
    assert "xponential" in program  # the softmax, so that it is the program and not an empty text
    assert not re.search(r"\b(sort|top_k)\b", program)


def test_what_is_impossible_stays_impossible():
    rows = random_rows(50)
    rows["logits"] = jnp.where(jnp.arange(40) % 3 == 1, rows["logits"], -jnp.inf)  # of 40 tokens 13 are left
    rows["logits"] = rows["logits"].at[0].set(jnp.where(jnp.arange(40) == 7, -20.0, -jnp.inf))
    tokens, logps = draw(**rows, sampling=settings(**ALL | {"top_k": 30}))
    assert set(tokens.tolist()) <= set(range(1, 40, 3))
    assert tokens[0] == 7
    assert logps[0] == 0
    assert np.isfinite(logps).all()


@pytest.mark.parametrize("size", [40, 256, 1000])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_token_is_drawn_where_the_cumulated_probability_passes_a_number_of_its_key(temperature, size):
    rows = random_rows(40, 5, size=size)
    sampling = settings(temperature=temperature, banned_ids=(3, 5))
    tokens, logps = sample(rows["logits"], rows["keys"], sampling)
    scaled = np.asarray(rows["logits"], np.float64) / temperature
    scaled[..., [3, 5]] = -np.inf
    shares = np.exp(scaled - np.logaddexp.reduce(scaled, axis=-1, keepdims=True))
    ends = np.cumsum(shares, axis=-1)
    for row in np.ndindex(40, 5):
        mark = float(jax.random.uniform(rows["keys"][row], (), jnp.float32))
        token = int(tokens[row])
        assert ends[row][token] - shares[row][token] - 1e-6 <= mark <= ends[row][token] + 1e-6
    np.testing.assert_allclose(
        logps, np.log(np.take_along_axis(shares, np.asarray(tokens)[..., None], -1)[..., 0]), atol=1e-5
    )


@pytest.mark.parametrize("possible", [[0], [39], [255, 300], [256], [511], [100, 101, 999]])
def test_no_number_draws_what_is_impossible(monkeypatch, possible):
    """Also the least and the largest number that there is, and one whose mark is rounded up to the end."""
    logits = jnp.full((4, 1000), -jnp.inf).at[:, jnp.asarray(possible)].set(0.1)
    numbers = iter([0.0, 0.5, float(np.nextafter(np.float32(1), np.float32(0))), 1.0])
    monkeypatch.setattr(jax, "vmap", lambda draw: lambda keys: jnp.asarray(list(numbers), jnp.float32))
    tokens, _ = sample(logits, jax.random.split(jax.random.key(0), 4), settings())
    assert set(tokens.tolist()) <= set(possible)
    assert {tokens[0].item(), tokens[3].item()} == {possible[0], possible[-1]}


def test_sums_that_fall_by_a_rounding_draw_nothing_impossible(monkeypatch):
    """Weights 1, 0 and 1, and a number between the second sum, rounded down, and the first."""
    below = np.nextafter(np.float32(1), np.float32(0))
    cumsum = jnp.cumsum
    monkeypatch.setattr(jnp, "cumsum", lambda x, axis: cumsum(x, axis=axis).at[..., 1].set(below))
    monkeypatch.setattr(jax, "vmap", lambda draw: lambda keys: jnp.full(1, below / 2))
    logits = jnp.asarray([[0.0, -jnp.inf, 0.0]])
    assert sample(logits, jax.random.split(jax.random.key(0), 1), settings())[0].tolist() == [0]


@pytest.mark.parametrize("shape", [(), (12,), (3, 4), (2, 3, 2)])
def test_rows_of_any_shape_draw_the_same(shape):
    flat = random_rows(12)
    rows = {name: value[0] if shape == () else value.reshape(*shape, *value.shape[1:]) for name, value in flat.items()}
    tokens, logps = draw(**rows, sampling=settings(**ALL))
    flat_tokens, flat_logps = draw(**flat, sampling=settings(**ALL))
    assert tokens.shape == logps.shape == shape
    np.testing.assert_array_equal(tokens.reshape(-1), flat_tokens[: tokens.size])
    np.testing.assert_allclose(logps.reshape(-1), flat_logps[: tokens.size], rtol=1e-6)


def test_tokens_under_other_numbers_are_chosen_alike():
    """With the vocabulary in another order: the same token under its new number."""
    rows, order = random_rows(30), np.random.default_rng(1).permutation(40)
    number = {old: new for new, old in enumerate(order.tolist())}
    greedy = ALL | {"temperature": 0.0}
    tokens, logps = sample(**rows, sampling=settings(**greedy))
    renamed = {name: value[..., order] if name in ("logits", "seen") else value for name, value in rows.items()}
    ids = {"stop_ids": tuple(number[i] for i in (0, 1)), "banned_ids": tuple(number[i] for i in (3, 5))}
    new_tokens, new_logps = sample(**renamed, sampling=settings(**greedy | ids))
    assert new_tokens.tolist() == [number[token] for token in tokens.tolist()]
    np.testing.assert_allclose(new_logps, logps, rtol=1e-5)
    assert len(set(tokens.tolist())) > 10


def test_no_stop_id_is_drawn_before_the_minimum():
    logits = jnp.broadcast_to(jnp.asarray([9.0, 8.0, 0.0, 1.0]), (8, 4))
    index = jnp.arange(8, dtype=jnp.int32)
    keys = jax.random.split(jax.random.key(0), 8)
    for temperature in (0.0, 0.1):
        tokens, logps = sample(logits, keys, settings(temperature=temperature, min_new_tokens=3), index)
        assert [token in (0, 1) for token in tokens.tolist()] == [False] * 3 + [True] * 5
        np.testing.assert_allclose(logps, token_logps(logits / (temperature or 1), tokens), rtol=1e-6)


def test_greedy_heeds_the_repetition_penalty():
    logits = jnp.asarray([[2.0, 1.5, -1.0], [2.0, 1.5, -1.0], [-1.0, -1.2, -1.4], [-1.0, -1.2, -1.4]])
    seen = jnp.asarray([[False] * 3, [True, False, False], [True, False, False], [True, True, False]])
    sampling = settings(temperature=0.0, repetition_penalty=1.5)
    tokens, logps = sample(logits, jax.random.split(jax.random.key(0), 4), sampling, seen=seen)
    assert tokens.tolist() == [0, 1, 1, 2]
    np.testing.assert_allclose(logps, token_logps(logits, tokens), rtol=1e-6)


def test_a_setting_that_needs_the_response_so_far_asks_for_it():
    rows = random_rows(2)
    with pytest.raises(ValueError, match=r"min_new_tokens = 2 needs `index`"):
        sample(rows["logits"], rows["keys"], settings(min_new_tokens=2), seen=rows["seen"])
    with pytest.raises(ValueError, match=r"repetition_penalty = 1\.2 needs `seen`"):
        sample(rows["logits"], rows["keys"], settings(repetition_penalty=1.2), index=rows["index"])


def processed_by_transformers(sampling: Sampling, prompts: np.ndarray) -> tuple[np.ndarray, ...]:
    """What a small Qwen2 generates in `transformers`: tokens [B, T], and logits before and after shaping [B, T, V]."""
    torch = pytest.importorskip("torch")
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=40, num_key_value_heads=1, initializer_range=1.0, **sizes)).eval()
    shaping = {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
    out = model.generate(
        torch.as_tensor(prompts),
        attention_mask=torch.ones(prompts.shape, dtype=torch.int64),
        do_sample=sampling.temperature > 0,
        **(shaping | {"min_p": sampling.min_p} if sampling.temperature > 0 else {}),
        repetition_penalty=sampling.repetition_penalty,
        suppress_tokens=list(sampling.banned_ids),
        eos_token_id=list(sampling.stop_ids),
        pad_token_id=sampling.pad_id,
        min_new_tokens=sampling.min_new_tokens,
        max_new_tokens=sampling.max_new_tokens,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
    )
    before, after = (np.stack([step.numpy() for step in steps], 1) for steps in (out.logits, out.scores))
    return out.sequences.numpy()[:, prompts.shape[1] :], before, after


def lengths_and_seen(prompts: np.ndarray, tokens: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """For each of the responses' tokens [B, T]: how many come before it, and which stand before it [B, T, 40]."""
    seen = np.zeros((*tokens.shape, 40), bool)
    for row, step in np.ndindex(tokens.shape):
        seen[row, step, [*prompts[row], *tokens[row, :step]]] = True
    return jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape), jnp.asarray(seen)


SHAPING = [
    {},
    {"top_k": 12},
    {"top_p": 0.9},
    {"min_p": 0.1},
    {"top_k": 12, "top_p": 0.9, "min_p": 0.05},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.8},
    {"min_new_tokens": 6},
    {"banned_ids": (3, 5)},
    ALL,
]


@pytest.mark.parametrize("fields", SHAPING, ids=lambda fields: "+".join(fields) or "plain")
def test_what_is_drawn_from_is_as_in_transformers(fields):
    sampling = settings(**{"temperature": 0.7, "max_new_tokens": 12} | fields)
    prompts = np.random.default_rng(0).integers(6, 40, (6, 5))
    tokens, before, after = processed_by_transformers(sampling, prompts)
    index, seen = lengths_and_seen(prompts, tokens)
    logits = jnp.asarray(before)
    np.testing.assert_allclose(shaped(tempered(logits, sampling), sampling, index, seen), after, rtol=1e-5)


@pytest.mark.parametrize("fields", [{}, {"repetition_penalty": 1.3}, {"min_new_tokens": 6}, ALL])
def test_greedy_tokens_are_those_of_transformers(fields):
    sampling = settings(**{"max_new_tokens": 12} | fields | {"temperature": 0.0})
    prompts = np.random.default_rng(0).integers(6, 40, (6, 5))
    tokens, before, _ = processed_by_transformers(sampling, prompts)
    index, seen = lengths_and_seen(prompts, tokens)
    keys = jax.random.split(jax.random.key(0), tokens.shape)
    ours, _ = sample(jnp.asarray(before), keys, sampling, index, seen)
    going = np.cumsum(np.isin(tokens, sampling.stop_ids), 1) - np.isin(tokens, sampling.stop_ids) == 0
    np.testing.assert_array_equal(np.asarray(ours)[going], tokens[going])


def test_greedy_takes_the_likeliest_that_is_not_banned():
    logits = jnp.asarray([[[1.0, 3.0, 2.0, 0.0]]])
    sampling = Sampling(1, stop_ids=(0,), pad_id=0, temperature=0.0, banned_ids=(1,))
    tokens, logps = sample(logits, jax.random.split(jax.random.key(0), (1, 1)), sampling)
    assert tokens.tolist() == [[2]]
    np.testing.assert_allclose(logps, [[2 - np.log(np.exp(1) + np.exp(2) + 1)]], rtol=1e-6)


def test_drawn_shares_are_the_probabilities_at_the_temperature():
    logits = jnp.broadcast_to(jnp.asarray([0.0, 1.0, 2.0, -1.0]), (1, 20_000, 4))
    sampling = Sampling(1, stop_ids=(0,), pad_id=0, temperature=0.5, banned_ids=(1,))
    tokens, logps = sample(logits, jax.random.split(jax.random.key(3), (1, 20_000)), sampling)
    weights = np.exp(np.array([0.0, -np.inf, 2.0, -1.0]) / 0.5)
    shares = np.bincount(np.asarray(tokens)[0], minlength=4) / 20_000
    np.testing.assert_allclose(shares, weights / weights.sum(), atol=0.01)
    np.testing.assert_allclose(np.exp(logps), (weights / weights.sum())[np.asarray(tokens)], rtol=1e-5)


def test_drawn_shares_are_the_probabilities_under_all_settings():
    """Against probabilities by hand; log-probs stay those of the temperature and the ban."""
    rows, fields = 40_000, {"temperature": 0.8, "top_k": 5, "top_p": 0.95, "min_p": 0.1, "banned_ids": (3,)}
    logits = np.array([3.0, 2.0, 1.8, 9.0, -0.5, 1.0, 2.2, -3.0], np.float32)
    seen, drawn = np.arange(8) == 1, np.array([3.0, 2.0 / 1.25, 1.8, 9.0, -0.5, 1.0, 2.2, -3.0]) / 0.8
    drawn[[0, 3]] = -np.inf  # a stop id, too early, and the banned one
    # Of the others top-k keeps 6, 2, 1, 5, 4 (2.2, 1.8, 1.6, 1.0, -0.5), and top-p drops 4, since the four before it
    # have 98.5%; min-p keeps all four.
    drawn[[4, 7]] = -np.inf
    expected = np.exp(drawn) / np.exp(drawn).sum()
    tokens, logps = sample(
        jnp.broadcast_to(logits, (rows, 8)),
        jax.random.split(jax.random.key(5), rows),
        settings(**fields, stop_ids=(0,), min_new_tokens=2, repetition_penalty=1.25),
        jnp.full(rows, 1, jnp.int32),
        jnp.broadcast_to(seen, (rows, 8)),
    )
    shares = np.bincount(np.asarray(tokens), minlength=8) / rows
    # Five standard deviations of a binomial share: of 400,000 seeds about one would fail a right sampler.
    assert (np.abs(shares - expected) <= 5 * np.sqrt(expected * (1 - expected) / rows)).all()
    plain = np.where(np.arange(8) == 3, -np.inf, logits / 0.8)
    np.testing.assert_allclose(logps, (plain - np.log(np.exp(plain).sum()))[np.asarray(tokens)], rtol=1e-5)


def test_log_probs_are_those_before_top_k():
    logits = jnp.asarray([[[0.0, 1.0, 2.0]]])
    keys = jax.random.split(jax.random.key(0), (1, 1))
    tokens, logps = sample(logits, keys, Sampling(1, stop_ids=(0,), pad_id=0, top_k=1))
    assert tokens.tolist() == [[2]]
    np.testing.assert_allclose(logps, [[jax.nn.log_softmax(logits[0, 0])[2]]], rtol=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        {"top_p": 0.0},
        {"temperature": -1.0},
        {"top_k": -1},
        {"max_new_tokens": 0},
        {"stop_ids": ()},
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"min_p": np.nan},
        {"min_new_tokens": -1},
        {"min_new_tokens": 2},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": np.inf},
        {"stop_strings": ("",)},
        {"stop_strings": ("\ufffd",)},
    ],
)
def test_impossible_settings_are_errors(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=rf"sampling needs .*{name}"):
        Sampling(**{"max_new_tokens": 1, "stop_ids": (0,), "pad_id": 0, **wrong})
