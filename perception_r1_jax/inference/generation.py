"""The host's side of one call of the engine: what waits, what runs, and the tables that tell the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from perception_r1_jax.inference.pools import Pools
from perception_r1_jax.inference.programs import Slots
from perception_r1_jax.inference.sampling import Sampling
from perception_r1_jax.inference.schedule import Places, Response, Shard, admit, cut
from perception_r1_jax.inference.stats import GenerationStats
from perception_r1_jax.inference.stop import stop_length
from perception_r1_jax.models import Tables
from perception_r1_jax.processing import pick_bucket
from perception_r1_jax.records import PromptBatch


class PrefillBatch(NamedTuple):
    """Prompts to run now.

    Attributes:
        prompts: D x n of them; the others of a shard that has fewer have length 0.
        places: int32 [D, n], their entries in the pool of prompts; past the last one for the others.
        rows: [D][up to n] rows of the batch.
    """

    prompts: PromptBatch
    places: np.ndarray
    rows: list[list[int]]


class Moves(NamedTuple):
    """Entries of a pool to be moved: sources and targets int32 [D, n]; a target past the last entry is none."""

    sources: np.ndarray
    targets: np.ndarray

    @classmethod
    def none(cls, shards: int, size: int, nowhere: int) -> Moves:
        """Room for `size` moves in each shard."""
        return cls(np.zeros((shards, size), np.int32), np.full((shards, size), nowhere, np.int32))


class FinishedGroups(NamedTuple):
    """All responses to some prompts (numpy).

    Attributes:
        rows: of the n prompts in their batch.
        tokens: int32 [n, G, C], as in `Generated`.
        mask: bool [n, G, C], likewise.
        logps: float32 [n, G, C], likewise.
        stopped: bool [n, G], likewise.
    """

    rows: list[int]
    tokens: np.ndarray
    mask: np.ndarray
    logps: np.ndarray
    stopped: np.ndarray


OnGroups = Callable[[FinishedGroups], PromptBatch | None]
"""Takes finished groups, and may give up to as many prompts to run in their rows."""


class Generation:
    """One batch of prompts on its way, and those that take the places of its first ones, in the same arrays.

    Attributes:
        samples: G.
        tokens, mask, logps, stopped: of the responses that are finished, as in `Generated`.
        finished: how many are.
        stats: what it took.
    """

    def __init__(
        self,
        prompts: PromptBatch,
        samples: int,
        sampling: Sampling,
        pools: Pools,
        shards: int,
        *,
        limits: np.ndarray | None,
        decode: Callable[[Sequence[int]], str] | None,
    ):
        """Args as of `Engine.generate`; `pools` are the sizes in each of so many shards."""
        shape = (len(prompts.lengths), samples)
        self._prompts, self._sampling, self._pools, self.samples = prompts, sampling, pools, samples
        self._decode = decode
        self._limits = np.full(shape, sampling.max_new_tokens, np.int32) if limits is None else limits
        if self._limits.shape != shape or self._limits.min() < 1 or self._limits.max() > sampling.max_new_tokens:
            raise ValueError(
                f"limits must be of shape {shape} and from 1 to {sampling.max_new_tokens}, not of shape "
                f"{self._limits.shape} and from {self._limits.min()} to {self._limits.max()}."
            )
        if sampling.stop_strings and decode is None:
            raise ValueError(f"stop_strings = {sampling.stop_strings} need `decode`, from token ids to text.")
        self._shards = [Shard(pools, samples) for _ in range(shards)]
        self._waiting = deque(np.flatnonzero(prompts.lengths).tolist())
        self._expected = len(self._waiting) * samples
        self.tokens = np.full((*shape, sampling.max_new_tokens), sampling.pad_id, np.int32)
        self.mask = np.zeros(self.tokens.shape, bool)
        self.logps = np.zeros(self.tokens.shape, np.float32)
        self.stopped = np.broadcast_to((prompts.lengths == 0)[:, None], shape).copy()
        self.finished = 0
        self._missing = np.full(shape[0], samples)
        self._handed_out = prompts.lengths == 0
        self.stats = GenerationStats()

    @property
    def shape(self) -> tuple:
        """What the programs' shapes depend on, beside the pools: all of a prompt, and G."""
        return tuple(x.shape[1:] for x in jax.tree.leaves(self._prompts)), self.samples

    @property
    def done(self) -> bool:
        """Whether all responses are finished."""
        return self.finished == self._expected

    def take_groups(self) -> FinishedGroups:
        """Those of which the last response has finished since the last call, in the order of the batch."""
        rows = np.flatnonzero((self._missing == 0) & ~self._handed_out)
        self._handed_out[rows] = True
        return FinishedGroups(rows.tolist(), self.tokens[rows], self.mask[rows], self.logps[rows], self.stopped[rows])

    def replace(self, rows: Sequence[int], prompts: PromptBatch) -> None:
        """Writes prompts over the first of these rows, whose groups were handed out.

        Raises:
            ValueError: more prompts than rows, prompts of another bucket, or filler.
        """
        count, bucket = len(prompts.lengths), _bucket(self._prompts)
        if count > len(rows) or _bucket(prompts) != bucket or not prompts.lengths.all():
            raise ValueError(
                f"{count} prompts of {_bucket(prompts)} tokens and windows, {prompts.lengths} of the tokens used, for "
                f"{len(rows)} rows of {bucket}; give up to as many prompts of the same bucket, and no filler."
            )
        taken = list(rows[:count])
        for ours, new in zip(jax.tree.leaves(self._prompts), jax.tree.leaves(prompts)):
            ours[taken] = new
        self._waiting.extend(taken)
        self._expected += count * self.samples
        self._missing[taken], self._handed_out[taken] = self.samples, False
        self.tokens[taken], self.mask[taken], self.logps[taken] = self._sampling.pad_id, False, 0

    def next_prompts(self) -> PrefillBatch | None:
        """Prompts for slots that would stay idle without; None if none would, or nothing is left or has room."""
        taken = admit(self._shards, self._waiting, self._pools.prefill_levels)
        return self._prefill_batch(taken) if any(taken) else None

    def no_prompts(self) -> list[PrefillBatch]:
        """Batches of each size without a prompt."""
        return [self._prefill_batch([[] for _ in self._shards], size) for size in self._pools.prefill_levels]

    def _prefill_batch(self, taken: list[list[tuple[int, int]]], least: int = 1) -> PrefillBatch:
        """Rows with their places, for each shard, in the smallest size that holds at least so many."""
        most = max(least, *map(len, taken))
        size = pick_bucket(most, self._pools.prefill_levels, "prompts to run")
        rows, places = (np.full((len(taken), size), fill, np.int32) for fill in (-1, self._pools.prompts))
        for shard, pairs in enumerate(taken):
            for index, (row, place) in enumerate(pairs):
                rows[shard, index], places[shard, index] = row, place
        flat = rows.ravel()
        prompts = jax.tree.map(lambda x: x[np.maximum(flat, 0)], self._prompts)
        prompts.lengths[flat < 0] = 0
        return PrefillBatch(prompts, places, [[row for row, _ in pairs] for pairs in taken])

    def start(self, batch: PrefillBatch, tokens: np.ndarray, logps: np.ndarray) -> None:
        """Begins the responses to prompts that have been run, with their first tokens [D x n, G]."""
        for index, (shard, rows) in enumerate(zip(self._shards, batch.rows)):
            for offset, row in enumerate(rows, index * batch.places.shape[1]):
                for sample in range(self.samples):
                    first = [int(tokens[offset, sample])], [float(logps[offset, sample])]
                    response = Response(row, sample, int(self._limits[row, sample]), *first)
                    if not self._finish_if_ended(shard, response, known=0):
                        shard.ready.append(response)

    def seat(self) -> int:
        """Fills the slots; how many of each shard are needed: one of `Pools.levels`, 0 where nothing is left to do."""
        for shard in self._shards:
            self.stats.preempted += shard.seat()
        active = max(len(shard.active) for shard in self._shards)
        return pick_bucket(active, (0, *self._pools.levels), "responses in slots")

    def slots(self, level: int) -> Slots:
        """What is in the first `level` slots of each shard."""
        shape = (len(self._shards), level)
        zeros = {name: np.zeros(shape, np.int32) for name in ("tokens", "lengths", "limits", "positions", "samples")}
        prompt_ids, pages = np.zeros(shape, np.uint32), np.full(shape, self._pools.pages, np.int32)
        seen = self._empty_history(shape) if self._sampling.repetition_penalty != 1 else None
        for at, response in self._seated():
            length = len(response.tokens)
            zeros["tokens"][at], zeros["lengths"][at], zeros["limits"][at] = response.tokens[-1], length, response.limit
            zeros["positions"][at] = self._prompts.next_position[response.row] + length - 1
            zeros["samples"][at], prompt_ids[at] = response.sample, self._prompts.prompt_ids[response.row]
            pages[at] = response.pages[-1]
            if seen is not None:
                prompt = self._prompts.tokens[response.row, : self._prompts.lengths[response.row]]
                said = np.concatenate([prompt, response.tokens])
                seen[at][: len(said)] = said
        return Slots(**zeros, prompt_ids=prompt_ids, pages=pages, seen=seen)

    def tables(self, level: int) -> Tables:
        """Whose prompts and pages are whose, when `level` slots of each shard are decoded."""
        pools, shards = self._pools, len(self._shards)
        lengths = np.zeros((shards, pools.prompts), np.int32)
        cells = np.zeros((shards, level), np.int32)
        slots = np.zeros((shards, pools.prompts, self.samples), np.int32)
        owners = np.full((shards, pools.pages), level, np.int32)
        for index, shard in enumerate(self._shards):
            for row, place in shard.prompts.items():
                lengths[index, place] = self._prompts.lengths[row]
        for (index, slot), response in self._seated():
            place = self._shards[index].prompts[response.row]
            cells[index, slot] = place * self.samples + response.sample
            slots[index, place, response.sample] = slot
            owners[index, response.pages[:-1]] = slot
        return Tables(
            lengths=lengths,
            cells=cells,
            slots=slots,
            owners=owners,
            prompt_blocks=np.int32(_blocks(max(shard.prompt_places.end for shard in self._shards), pools.prompt_block)),
            page_blocks=np.int32(_blocks(max(shard.page_places.end for shard in self._shards), pools.page_block)),
            prompt_block=pools.prompt_block,
            page_block=pools.page_block,
        )

    def collect(self, level: int, steps: int, tokens: np.ndarray, logps: np.ndarray) -> None:
        """Takes in what `steps` steps of decoding gave, [D, B, K] each; those that have ended leave their slots."""
        self.stats.steps += level * len(self._shards) * steps
        for index, shard in enumerate(self._shards):
            going = []
            for slot, response in enumerate(shard.active):
                known = len(response.tokens)
                response.tokens += tokens[index, slot, :steps].tolist()
                response.logps += logps[index, slot, :steps].tolist()
                if not self._finish_if_ended(shard, response, known):
                    going.append(response)
            shard.active[:] = going

    def prompt_moves(self) -> list[Moves]:
        """Where prompts are to go so that fewer blocks are read; mostly nowhere."""
        places = [shard.prompt_places for shard in self._shards]
        return _moves(places, self._pools.prompt_block, [shard.compact_prompts for shard in self._shards])

    def page_moves(self) -> list[Moves]:
        """As `prompt_moves`, for pages."""
        places = [shard.page_places for shard in self._shards]
        return _moves(places, self._pools.page_block, [shard.compact_pages for shard in self._shards])

    def _seated(self) -> Iterator[tuple[tuple[int, int], Response]]:
        for index, shard in enumerate(self._shards):
            for slot, response in enumerate(shard.active):
                yield (index, slot), response

    def _empty_history(self, shape: tuple[int, int]) -> np.ndarray:
        """Filled with a token past every vocabulary."""
        room = self._prompts.tokens.shape[1] + self._sampling.max_new_tokens
        return np.full((*shape, room), np.iinfo(np.int32).max, np.int32)

    def _finish_if_ended(self, shard: Shard, response: Response, known: int) -> bool:
        """Whether the response ends with what came after its first `known` tokens; then it is kept, cut to its end."""
        count, stopped = cut(response.tokens, self._sampling.stop_ids, response.limit, known)
        if self._sampling.stop_strings:
            found = stop_length(self._decode, response.tokens[:count], self._sampling.stop_strings, start=known)
            if found is not None:
                count, stopped = found, True
        if not stopped and count < response.limit:
            return False
        at = (response.row, response.sample)
        self.tokens[at][:count], self.logps[at][:count] = response.tokens[:count], response.logps[:count]
        self.mask[at][:count], self.stopped[at] = True, stopped
        self.finished += 1
        self._missing[response.row] -= 1
        self.stats.tokens += count
        self.stats.decoded += count - 1
        shard.finish(response)
        return True


def _bucket(prompts: PromptBatch) -> tuple[int, int]:
    """Tokens L and windows W."""
    return prompts.tokens.shape[1], prompts.image_ids.shape[1]


def _blocks(size: int, block: int) -> int:
    return -(-size // block)


def _moves(places: Sequence[Places], block: int, compactions: Sequence[Callable[[], dict[int, int]]]) -> list[Moves]:
    """Compacts pools if at least half of the blocks that are read could be spared; the moves, `block` at a time."""
    used, end = (max(sizes) for sizes in zip(*((len(pool.used), pool.end) for pool in places)))
    if _blocks(end, block) < 2 * max(_blocks(used, block), 1):
        return []
    lists, nowhere = [sorted(compact().items()) for compact in compactions], places[0].size
    tables = []
    for start in range(0, max(map(len, lists)), block):
        table = Moves.none(len(lists), block, nowhere)
        for index, pairs in enumerate(lists):
            for column, (source, target) in enumerate(pairs[start : start + block]):
                table.sources[index, column], table.targets[index, column] = source, target
        tables.append(table)
    return tables
