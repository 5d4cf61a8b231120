"""How much of everything the engine holds at a time: slots, prompts and pages in each shard of the batch."""

from __future__ import annotations

import dataclasses
import math

from perception_r1_jax.errors import UserError

PAGE_TOKENS = 32
"""Tokens of a page, and of a stretch of decoding between two looks of the host."""

LEAST_SLOTS = 4
"""A batch of so few slots is not halved any more when sequences run out: the step would take as long."""

EXPECTED_SHARE = 0.25
"""Of its limit, what a response is expected to take. Where responses take more, some wait until there is room again."""

PREFILL_TOKENS = 8192
"""Of the prompts that are run at a time: their activations take room."""

PROMPT_BLOCKS, PAGE_BLOCKS = 4, 32
"""Blocks that a pool is cut into: the grain of what a step reads."""

LEAST_BLOCK_TOKENS = 8192
"""A block has no fewer tokens: on a CPU a loop over blocks copies each of them, and a single one is read in place."""


@dataclasses.dataclass(frozen=True)
class Pools:
    """Sizes in one shard.

    Attributes:
        slots: B, sequences decoded at a time.
        prompts: P, prompts whose keys and values are held.
        prompt_block: the grain in which they are read.
        pages: T, pages of responses.
        page_block: the grain in which they are read.
        page_tokens: K.
        prefill: prompts that are run at a time, at most.
    """

    slots: int
    prompts: int
    prompt_block: int
    pages: int
    page_block: int
    page_tokens: int
    prefill: int

    @property
    def levels(self) -> tuple[int, ...]:
        """Numbers of slots that there are programs for, rising: when sequences run out, the batch is halved."""
        sizes = [self.slots]
        while sizes[-1] > LEAST_SLOTS:
            sizes.append(-(-sizes[-1] // 2))
        return tuple(reversed(sizes))

    @property
    def prefill_levels(self) -> tuple[int, ...]:
        """Numbers of prompts that there are programs for, rising: many at the start, few for slots that come free."""
        return tuple(sorted({max(self.prefill // 8, 1), self.prefill}))

    def tokens(self, prompt_tokens: int, recent_cost: float = 1.0) -> float:
        """Tokens whose keys and values take as much room as all this, with prompts of so many; see `plan_pools`."""
        return self.prompts * prompt_tokens + (self.pages + self.slots * recent_cost) * self.page_tokens


def pages_of(new_tokens: int, page_tokens: int) -> int:
    """Pages of a response at its limit; its last token is never fed."""
    return -(-(new_tokens - 1) // page_tokens)


def plan_pools(
    *,
    prompts: int,
    samples: int,
    prompt_tokens: int,
    new_tokens: int,
    slots: int,
    budget: float,
    recent_cost: float = 1.0,
) -> Pools:
    """The largest pools within a budget, and no larger than the work.

    Args:
        prompts: that one shard has to do.
        samples: G.
        prompt_tokens: L.
        new_tokens: C, the limit of a response.
        slots: the most sequences to decode at a time.
        budget: tokens whose keys and values a shard may hold.
        recent_cost: what a token takes until its page is full, for each slot, beside a token of the pools: more than
            theirs where they are kept in 8 bits.

    Raises:
        UserError: not even one response fits.
    """
    page_tokens = min(PAGE_TOKENS, max(new_tokens - 1, 1))
    longest = max(pages_of(new_tokens, page_tokens), 1)
    slots = min(slots, prompts * samples)
    while True:
        running = -(-slots // samples)
        prefill = -(-running // -(-running // max(PREFILL_TOKENS // prompt_tokens, 1)))  # in rounds of one size
        # A group's last responses hold its prompt while others have taken its slots.
        for held in sorted({min(prompts, slots, spare * running) for spare in (1, 2, 4)}, reverse=True):
            held, prompt_block = _in_blocks(held, PROMPT_BLOCKS, prompt_tokens)
            room = int((budget - held * prompt_tokens) / page_tokens - slots * recent_cost)
            pages, page_block = _pages_in(room, slots * longest, longest, page_tokens)
            if pages >= max(longest, slots * longest * EXPECTED_SHARE):
                return Pools(slots, held, prompt_block, pages, page_block, page_tokens, prefill)
        if slots == 1:
            least = prompt_tokens + (longest + recent_cost) * page_tokens
            raise UserError(
                f"one response of {new_tokens} tokens to a prompt of {prompt_tokens} needs room in the cache for "
                f"{math.ceil(least)} tokens; there is room for {int(budget)}. Lower the limit of responses "
                "(config.rollout.response_buckets, config.evaluation.max_new_tokens, config.judge.max_new_tokens, or "
                "--max_new_tokens), that of prompts, raise config.rollout.cache_memory, of a judge "
                "config.judge.cache_memory, or --cache_memory, or compute in bfloat16 (config.model.dtype, or --dtype)."
            )
        slots //= 2


def _pages_in(room: int, wanted: int, longest: int, page_tokens: int) -> tuple[int, int]:
    """Pages and their block: all that are wanted, or as many whole blocks as there is room for."""
    pages, block = _in_blocks(wanted, PAGE_BLOCKS, page_tokens)
    if pages <= room:
        return pages, block
    block = min(block, longest)
    return max(room, 0) // block * block, block


def _in_blocks(size: int, blocks: int, tokens: int) -> tuple[int, int]:
    """A number of entries of so many tokens, rounded up to whole blocks, and the block; small pools are one block."""
    least = max(LEAST_BLOCK_TOKENS // tokens, 1)
    count = max(size // max(-(-size // blocks), least), 1)
    block = -(-size // count)
    return block * count, block
