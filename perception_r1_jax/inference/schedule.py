"""Which sequence is where: prompts into the pool, samples into slots, pages to those who need one. Plain Python.

Nothing here depends on the clock or on a device: the same lengths give the same schedule.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from perception_r1_jax.inference.pools import Pools
from perception_r1_jax.processing import pick_bucket


@dataclasses.dataclass(eq=False)
class Response:
    """A response on its way.

    Attributes:
        row: of its prompt in the batch.
        sample: its number in the group.
        limit: the most tokens that it may have.
        tokens, logps: so far.
        pages: places of its full pages, in order, and of the one that is being filled.
    """

    row: int
    sample: int
    limit: int
    tokens: list[int]
    logps: list[float]
    pages: list[int] = dataclasses.field(default_factory=list)


class Places:
    """The entries of a pool: the lowest free one is always taken, so what is in use stays together.

    Attributes:
        size: how many there are.
        used: those in use.
    """

    def __init__(self, size: int):
        self.size, self.used = size, set()
        self._free = list(range(size))

    @property
    def free(self) -> int:
        """How many entries are free."""
        return len(self._free)

    @property
    def end(self) -> int:
        """One past the highest entry in use."""
        return max(self.used, default=-1) + 1

    def take(self) -> int:
        """The lowest free entry, now in use."""
        place = heapq.heappop(self._free)
        self.used.add(place)
        return place

    def give(self, place: int) -> None:
        """Frees an entry."""
        self.used.remove(place)
        heapq.heappush(self._free, place)

    def compact(self) -> dict[int, int]:
        """Moves the highest entries into the lowest free ones; from where to where."""
        count = len(self.used)
        sources = sorted(place for place in self.used if place >= count)
        moves = {source: self.take() for source in sources}
        for source in sources:
            self.give(source)
        return moves


class Shard:
    """The prompts and sequences of one shard of the batch.

    Attributes:
        prompts: row of a prompt -> its entry in the pool.
        prompt_places, page_places: of the two pools.
        ready: responses that wait for a slot.
        active: responses in slots 0, 1, ...
    """

    def __init__(self, pools: Pools, samples: int):
        self._slots, self._samples = pools.slots, samples
        self._most = float(pools.slots)
        self.prompt_places, self.page_places = Places(pools.prompts), Places(pools.pages)
        self.prompts: dict[int, int] = {}
        self.ready: deque[Response] = deque()
        self.active: list[Response] = []
        self._unfinished: dict[int, int] = {}

    @property
    def load(self) -> int:
        """Responses under way or to come."""
        return sum(self._unfinished.values())

    @property
    def wants_prompts(self) -> bool:
        """Whether slots would stay idle for want of prompts, and there is room for one more."""
        return self.load < self._slots and self.has_room

    @property
    def has_room(self) -> bool:
        """Whether there is room for one more prompt."""
        return self.prompt_places.free > 0

    def admit(self, row: int) -> int:
        """Takes a prompt; its entry in the pool."""
        self.prompts[row] = self.prompt_places.take()
        self._unfinished[row] = self._samples
        return self.prompts[row]

    def finish(self, response: Response) -> None:
        """Frees what a response holds, and its prompt's entry if it is the group's last."""
        self._free_pages(response)
        self._most = min(self._most + 1 / self._most, self._slots)
        self._unfinished[response.row] -= 1
        if self._unfinished[response.row] == 0:
            del self._unfinished[response.row]
            self.prompt_places.give(self.prompts.pop(response.row))

    def seat(self) -> int:
        """Gives every active response a page for the next stretch, and free slots to those that wait.

        Where pages run out, the responses begun last give way: they begin again when there is room. Under their own
        keys they come out the same. From then on no more run than were left, and one more each time that as
        many have ended: a response begun without room to grow would soon give way again.

        Returns:
            How many gave way.
        """
        gave_way = 0
        while len(self.active) > self.page_places.free:
            response = self.active.pop()
            self._free_pages(response)
            del response.tokens[1:], response.logps[1:]
            self.ready.appendleft(response)
            gave_way += 1
            self._most = max(len(self.active), 1)
        room = min(int(self._most), self.page_places.free)
        while self.ready and len(self.active) < room:
            self.active.append(self.ready.popleft())
        for response in self.active:
            response.pages.append(self.page_places.take())
        return gave_way

    def compact_prompts(self) -> dict[int, int]:
        """Closes gaps among the prompts; from where to where."""
        moves = self.prompt_places.compact()
        self.prompts = {row: moves.get(place, place) for row, place in self.prompts.items()}
        return moves

    def compact_pages(self) -> dict[int, int]:
        """Closes gaps among the pages; from where to where."""
        moves = self.page_places.compact()
        for response in self.active:
            response.pages = [moves.get(place, place) for place in response.pages]
        return moves

    def _free_pages(self, response: Response) -> None:
        for place in response.pages:
            self.page_places.give(place)
        response.pages.clear()


def admit(shards: Sequence[Shard], waiting: deque[int], levels: Sequence[int]) -> list[list[tuple[int, int]]]:
    """Rows from the front of `waiting` to shards that want prompts, the least loaded first.

    A program runs the same number of prompts in every shard, one of `levels` (rising). So when one shard wants prompts
    the others take theirs ahead of time: no row of the program is run for nothing.

    Returns:
        For each shard the rows that it takes, with their entries in the pool of prompts.
    """
    taken: list[list[tuple[int, int]]] = [[] for _ in shards]

    def take(most: int, ready: Callable[[Shard], bool]) -> None:
        while waiting:
            able = [index for index, shard in enumerate(shards) if len(taken[index]) < most and ready(shard)]
            if not able:
                return
            index = min(able, key=lambda index: shards[index].load)
            row = waiting.popleft()
            taken[index].append((row, shards[index].admit(row)))

    take(levels[-1], lambda shard: shard.wants_prompts)
    wanted = max(map(len, taken))
    if wanted:
        take(pick_bucket(wanted, levels, "prompts to run"), lambda shard: shard.has_room)
    return taken


def cut(tokens: Sequence[int], stop_ids: Iterable[int], limit: int, known: int) -> tuple[int, bool]:
    """How many of a response's tokens count, and whether it ends with a stop id.

    Args:
        tokens: so far; what stands after a response's end means nothing.
        stop_ids: a response ends with the first of these.
        limit: the most tokens that it may have.
        known: the first so many hold no stop id.
    """
    stops = np.flatnonzero(np.isin(np.asarray(tokens[known:limit]), list(stop_ids)))
    return (known + int(stops[0]) + 1, True) if stops.size else (min(len(tokens), limit), False)
