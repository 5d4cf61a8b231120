"""What the repository's tokenizers are made from."""

from __future__ import annotations

import itertools

from perception_r1_jax.data.geometry_world.conversations import DESCRIBE, READ, SURVEY, TASKS
from scripts.make_tokenizer import draw_world


def test_the_policy_s_tokens_do_not_change_with_the_shares_of_its_tasks():
    assert "survey" in TASKS
    heard = set(itertools.islice(draw_world(), 3000))
    assert {DESCRIBE, READ} <= heard
    assert SURVEY not in heard
