"""Sizes of the pools: as large as the work asks and the budget allows, and never too small for one response."""

from __future__ import annotations

import itertools

import pytest

from perception_r1_jax.errors import UserError
from perception_r1_jax.inference.pools import PAGE_TOKENS, pages_of, plan_pools

RUN = {"prompts": 16, "samples": 8, "prompt_tokens": 1024, "new_tokens": 4096, "slots": 64}


def plan(budget: int = 10**12, **fields):
    return plan_pools(**RUN | fields, budget=float(budget))


def test_without_want_every_slot_has_room_for_the_longest_response():
    pools = plan()
    assert pools.slots == 64
    assert pools.pages == 64 * pages_of(4096, PAGE_TOKENS)
    assert (pools.prompts, pools.prefill, pools.prefill_levels) == (16, 8, (1, 8))


def test_no_more_than_the_work_asks_for():
    pools = plan(prompts=2, samples=3)
    assert (pools.slots, pools.prompts, pools.prefill) == (6, 2, 2)
    assert pools.levels == (3, 6)


def test_prompts_are_held_once_however_many_responses_they_have():
    held = [plan(prompts=7, samples=samples, slots=7 * samples).prompts for samples in (1, 8)]
    assert held == [7, 7]


def test_blocks_divide_pools():
    for prompts, slots, tokens in itertools.product((1, 5, 16, 300), (1, 7, 64, 1000), (1, 2, 33, 500, 4096)):
        pools = plan(prompts=prompts, slots=slots, new_tokens=tokens)
        assert pools.prompts % pools.prompt_block == pools.pages % pools.page_block == 0
        assert pools.levels[-1] == pools.slots


@pytest.mark.parametrize("budget", [6_000, 12_000, 50_000, 200_000, 1_000_000])
def test_a_budget_is_kept_and_one_response_always_fits(budget):
    pools = plan(budget)
    assert pools.tokens(1024) <= budget
    assert pools.pages >= pages_of(4096, pools.page_tokens)
    assert pools.prompts >= 1


def test_more_memory_never_means_fewer_slots():
    slots = [plan(budget).slots for budget in (6_000, 12_000, 50_000, 200_000, 1_000_000)]
    assert slots == sorted(slots)
    assert slots[0] < slots[-1] == 64


def test_too_little_for_one_response_is_said_with_numbers():
    with pytest.raises(
        UserError, match=r"4096 tokens to a prompt of 1024 needs room .* 5152 tokens; there is room for 5000"
    ):
        plan(5_000)


@pytest.mark.parametrize(("tokens", "pages"), [(1, 0), (2, 1), (33, 1), (34, 2), (4096, 128)])
def test_a_response_s_last_token_is_never_fed(tokens, pages):
    assert pages_of(tokens, 32) == pages


def test_batches_are_halved_down_to_a_few():
    assert plan().levels == (4, 8, 16, 32, 64)
    assert plan(slots=50, prompts=50).levels == (4, 7, 13, 25, 50)
    assert plan(slots=4).levels == (4,)
