"""The weighted sum of the terms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from perception_r1_jax.rewards import combine
from perception_r1_jax.rewards.score import WEIGHTS


def test_the_published_weights():
    assert combine({"format": 1.0, "accuracy": 1.0, "visual": 1.0, "repetition": 0.0}, WEIGHTS) == pytest.approx(1.7)
    assert combine({"format": 0.0, "accuracy": 0.0, "visual": 0.5, "repetition": -1.0}, WEIGHTS) == pytest.approx(-0.65)


def test_arrays():
    terms = {"a": np.array([[0.0, 1.0]]), "b": np.array([[2.0, 3.0]])}
    np.testing.assert_allclose(combine(terms, {"b": 10.0, "a": 1.0}), [[20.0, 31.0]])


def test_the_order_of_the_terms_does_not_change_a_bit():
    terms = {"a": 0.1, "b": 0.2, "c": 0.3}
    backwards = dict(reversed(terms.items()))
    assert combine(terms, dict.fromkeys("abc", 1.0)) == combine(backwards, dict.fromkeys("cba", 1.0))


def test_a_missing_value_is_no_zero():
    assert math.isnan(combine({"a": math.nan, "b": 1.0}, {"a": 1.0, "b": 1.0}))


@pytest.mark.parametrize(("terms", "weights"), [({"a": 1.0}, {}), ({"a": 1.0}, {"a": 1.0, "b": 1.0}), ({}, {})])
def test_each_term_has_its_weight(terms, weights):
    with pytest.raises(ValueError, match="give each term its weight"):
        combine(terms, weights)
