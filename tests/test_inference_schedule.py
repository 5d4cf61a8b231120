"""The schedule by itself: nothing is lost, nothing lies in two places, and slots stay full while there is work."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest

from perception_r1_jax.inference.pools import Pools, plan_pools
from perception_r1_jax.inference.schedule import Places, Response, Shard, admit, cut

POOLS = Pools(slots=4, prompts=3, prompt_block=3, pages=10, page_block=2, page_tokens=4, prefill=2)


class Simulation:
    """Runs responses of given lengths [N][G] through shards as the engine does, without a model."""

    def __init__(self, lengths, shards: int = 1, pools: Pools = POOLS):
        self.lengths, self.pools = lengths, pools
        self.shards = [Shard(pools, len(lengths[0])) for _ in range(shards)]
        self.waiting = deque(range(len(lengths)))
        self.finished: list[tuple[int, int]] = []
        self.idle, self.gave_way, self.decoded, self.steps = [], 0, 0, 0

    def run(self, rounds: int = 1000) -> Simulation:
        while self.waiting or any(shard.load for shard in self.shards):
            rounds -= 1
            assert rounds, "it goes on for ever"
            self.prefill()
            for shard in self.shards:
                self.gave_way += shard.seat()
                self.check(shard)
                self.decode(shard)
        return self

    def prefill(self):
        while any(taken := admit(self.shards, self.waiting, self.pools.prefill_levels)):
            for shard, rows in zip(self.shards, taken):
                for row, _ in rows:
                    for sample, length in enumerate(self.lengths[row]):
                        self.keep(shard, Response(row, sample, length, [0], [0.0]), shard.ready)

    def decode(self, shard):
        if self.waiting or shard.ready:
            self.idle.append(self.pools.slots - len(shard.active))
        active, shard.active[:] = list(shard.active), []
        span = self.pools.page_tokens
        longest = max((response.limit - len(response.tokens) for response in active), default=0)
        level = min(level for level in (0, *self.pools.levels) if level >= len(active))
        self.steps += level * min(span, longest)
        self.decoded += sum(min(span, response.limit - len(response.tokens)) for response in active)
        for response in active:
            response.tokens += [0] * self.pools.page_tokens
            self.keep(shard, response, shard.active)

    def keep(self, shard, response, going):
        if len(response.tokens) >= response.limit:
            self.finished.append((response.row, response.sample))
            shard.finish(response)
        else:
            going.append(response)

    def check(self, shard):
        pages = [page for response in shard.active for page in response.pages]
        assert len(pages) == len(set(pages)) == len(shard.page_places.used) <= self.pools.pages
        assert len(set(shard.prompts.values())) == len(shard.prompts) <= self.pools.prompts
        assert {response.row for response in (*shard.active, *shard.ready)} <= set(shard.prompts)
        assert len(shard.active) <= self.pools.slots


def lengths(prompts: int, samples: int, longest: int, seed: int = 0):
    return np.random.default_rng(seed).integers(1, longest + 1, (prompts, samples)).tolist()


@pytest.mark.parametrize("shards", [1, 2, 3])
@pytest.mark.parametrize(("prompts", "samples"), [(1, 1), (7, 3), (20, 2), (3, 8)])
def test_every_response_comes_to_its_end_once(shards, prompts, samples):
    simulation = Simulation(lengths(prompts, samples, 9), shards).run()
    assert sorted(simulation.finished) == [(row, sample) for row in range(prompts) for sample in range(samples)]
    for shard in simulation.shards:
        assert shard.page_places.used == shard.prompt_places.used == set()
        assert shard.load == 0


def test_no_slot_is_idle_while_something_waits_and_has_room():
    simulation = Simulation(lengths(30, 2, 9)).run()
    assert simulation.gave_way == 0
    assert len(simulation.idle) > 10
    assert max(simulation.idle) <= 1  # a group may hold the last entry of the pool of prompts


def test_where_pages_run_out_the_latest_give_way_and_all_come_to_their_end():
    simulation = Simulation([[40] * 4] * 3).run()  # each needs all ten pages
    assert simulation.gave_way > 0
    assert len(simulation.finished) == 12


@pytest.mark.parametrize("pages", [300, 1000])
def test_little_is_done_twice_where_all_responses_take_their_whole_limit(pages):
    """Pages for a quarter or more of what 32 slots will ask for: the pool was planned for shorter responses."""
    pools = Pools(32, 16, 16, pages=pages, page_block=pages, page_tokens=4, prefill=4)
    simulation = Simulation([[128] * 8] * 32, pools=pools).run(100_000)
    assert len(simulation.finished) == 256
    assert simulation.decoded < 1.25 * 256 * 128
    assert simulation.gave_way < 256


def test_slots_are_used_where_lengths_are_very_unlike():
    """Log-normal lengths, median 300 and 95th percentile 1,500: of the slots' steps at least 85% give a token."""
    spread = np.log(5) / 1.645
    drawn = np.random.default_rng(0).lognormal(np.log(300), spread, (32, 8)).clip(1, 4096).astype(int)
    pools = plan_pools(prompts=32, samples=8, prompt_tokens=64, new_tokens=4096, slots=32, budget=1e9)
    simulation = Simulation(drawn.tolist(), pools=pools).run(100_000)
    assert drawn.sum() / simulation.steps > 0.85


@pytest.mark.parametrize(("shards", "budget"), [(1, 300_000.0), (8, 60_000.0)])
def test_a_step_of_the_published_run_passes_through_in_waves(shards, budget):
    """1,024 responses of up to 4,096 tokens, a quarter of them at the limit, in room for a part of them."""
    rng = np.random.default_rng(0)
    lengths = np.where(rng.random((128, 8)) < 0.25, 4096, rng.integers(50, 4096, (128, 8)))
    pools = plan_pools(prompts=128 // shards, samples=8, prompt_tokens=1024, new_tokens=4096, slots=256, budget=budget)
    assert pools.tokens(1024) <= budget < lengths.sum() / shards
    simulation = Simulation(lengths.tolist(), shards, pools).run(1_000_000)
    assert sorted(simulation.finished) == [(row, sample) for row in range(128) for sample in range(8)]
    assert simulation.decoded < 1.25 * lengths.sum()


def test_work_goes_to_the_least_loaded_shard():
    shards = [Shard(POOLS, 2) for _ in range(2)]
    taken = admit(shards, deque(range(4)), (1, 2))
    assert [[row for row, _ in rows] for rows in taken] == [[0, 2], [1, 3]]
    assert admit(shards, deque([4]), (1, 2)) == [[], []], "all slots have their responses"


def test_when_one_shard_wants_prompts_the_others_take_theirs_ahead():
    shards = [Shard(POOLS, 2) for _ in range(3)]
    waiting = deque(range(9))
    admit(shards, waiting, (1, 2))
    for _ in range(2):
        shards[1].finish(Response(1, 0, 9, [0], [0.0]))
    assert [[row for row, _ in rows] for rows in admit(shards, waiting, (1, 2))] == [[7], [6], [8]]


def test_the_lowest_place_is_taken_and_gaps_close_from_above():
    places = Places(8)
    assert [places.take() for _ in range(6)] == [0, 1, 2, 3, 4, 5]
    for place in (1, 2, 4):
        places.give(place)
    assert (places.end, len(places.used)) == (6, 3)
    assert places.compact() == {3: 1, 5: 2}
    assert places.used == {0, 1, 2}
    assert places.end == 3
    assert places.take() == 3


def test_moved_pages_are_those_of_their_responses():
    shard = Shard(POOLS, 4)
    shard.admit(0)
    responses = [Response(0, sample, 99, [0], [0.0]) for sample in range(4)]
    shard.ready.extend(responses)
    for _ in range(2):
        shard.seat()
    assert [response.pages for response in responses] == [[0, 4], [1, 5], [2, 6], [3, 7]]
    shard.active[:] = responses[2:]
    for response in responses[:2]:
        shard.finish(response)
    assert shard.compact_pages() == {6: 0, 7: 1}
    assert [response.pages for response in responses[2:]] == [[2, 0], [3, 1]]


@pytest.mark.parametrize(
    ("tokens", "limit", "known", "result"),
    [
        ([5, 6, 9, 7], 10, 0, (3, True)),
        ([5, 6, 7], 10, 0, (3, False)),
        ([5, 6, 7, 9], 3, 0, (3, False)),
        ([5, 6, 9], 3, 2, (3, True)),
        ([9], 1, 0, (1, True)),
        ([5, 8, 9], 10, 1, (2, True)),
    ],
)
def test_a_response_ends_at_its_first_stop_id_or_its_limit(tokens, limit, known, result):
    assert cut(tokens, (8, 9), limit, known) == result
