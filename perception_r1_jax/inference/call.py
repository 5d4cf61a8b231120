"""The device's side of one call of the engine: the pools, and the loop that keeps the slots full."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Key

from perception_r1_jax.inference.choices import choose_tokens
from perception_r1_jax.inference.generation import Generation, Moves, OnGroups, PrefillBatch
from perception_r1_jax.inference.pools import Pools
from perception_r1_jax.inference.programs import decode_stretch, prefill_prompts
from perception_r1_jax.inference.sampling import Sampling
from perception_r1_jax.inference.stats import GenerationStats
from perception_r1_jax.models import KeyValues, ModelConfig, Params, Prefix, embed_prompts, prefill_prefix
from perception_r1_jax.records import PromptBatch
from perception_r1_jax.sharding import put_batch, replicate_key


class Programs:
    """The compiled programs of one model, for all shapes that have come so far."""

    def __init__(self, config: ModelConfig, dtype: np.dtype, cache_dtype: np.dtype):
        self.embed = jax.jit(functools.partial(embed_prompts, config))
        self.prefill = jax.jit(
            functools.partial(prefill_prompts, config), static_argnames=("samples", "sampling"), donate_argnames="cache"
        )
        self.decode = jax.jit(
            functools.partial(decode_stretch, config, dtype=dtype),
            static_argnames=("length", "sampling"),
            donate_argnames="pages",
        )
        self.move = jax.jit(functools.partial(KeyValues.move), donate_argnums=0)  # a function of its own, to count
        self.empty = jax.jit(functools.partial(KeyValues.empty, config, dtype=cache_dtype), static_argnums=(0, 1, 2))
        self.prefix = jax.jit(functools.partial(prefill_prefix, config, dtype=cache_dtype))
        self.choose = jax.jit(functools.partial(choose_tokens, config), static_argnames="choice_ids")
        self.warm: set = set()

    @property
    def compilations(self) -> int:
        """How many there are."""
        programs = (self.embed, self.prefill, self.decode, self.move, self.empty, self.prefix, self.choose)
        return sum(program._cache_size() for program in programs)


def without_pictures(prompts: PromptBatch) -> PromptBatch:
    """The prompts as text: what is left to run when the pictures are among the embeddings."""
    fields = ("patches", "patch_positions", "patch_valid", "image_ids")
    return dataclasses.replace(prompts, **{name: getattr(prompts, name)[:, :0] for name in fields})


class Call:
    """One call of `Engine.generate`, to be used under its mesh."""

    def __init__(
        self,
        programs: Programs,
        params: Params,
        mesh: Mesh,
        generation: Generation,
        pools: Pools,
        prompt_tokens: int,
        sampling: Sampling,
        key: Key[Array, ""],
        prefix: Prefix | None,
    ):
        self._programs, self._params, self._mesh = programs, params, mesh
        self._generation, self._pools = generation, pools
        self._prefix = prefix
        self._key = replicate_key(mesh, key)
        self._sampling = dataclasses.replace(sampling, stop_strings=())  # the host's alone: no program is made for them
        shards = mesh.shape["data"]
        self._prompts = programs.empty(shards, pools.prompts, prompt_tokens)
        self._pages = programs.empty(shards, pools.pages, pools.page_tokens)

    def run(self, on_progress: Callable[[int], None], on_groups: OnGroups) -> None:
        """Runs all prompts and responses to their end; see `Engine.generate`."""
        generation = self._generation
        self._warm_up(on_progress)
        started, elsewhere = time.perf_counter(), 0.0
        while not generation.done:
            self._run_prompts(on_progress)
            self._run_responses()
            self._close_gaps()
            on_progress(generation.finished)
            if (groups := generation.take_groups()).rows:
                handed_out = time.perf_counter()
                more = on_groups(groups)
                elsewhere += time.perf_counter() - handed_out
                if more is not None:
                    generation.replace(groups.rows, more)
        stats = generation.stats
        stats.host = time.perf_counter() - started - elsewhere - stats.vision - stats.prefill - stats.decode

    def _warm_up(self, on_progress: Callable[[int], None]) -> None:
        """Compiles what later batches of this shape may need, though this one might not: all levels, and moves.

        Of a large model each takes a while; progress is told between them, so that they need not all be waited for.
        """
        length = self._prefix.length if self._prefix else 0
        shape = (self._pools, self._generation.shape, self._sampling, length)
        if shape in self._programs.warm:
            return
        stats, self._generation.stats = self._generation.stats, GenerationStats()  # compiling is not counted
        for batch in self._generation.no_prompts():
            self._prefill(batch)
            on_progress(0)
        for level in self._pools.levels:
            self._decode(level)  # of empty slots: not a step is made
            on_progress(0)
        shards, pools = self._mesh.shape["data"], self._pools
        self._prompts = self._moved(self._prompts, Moves.none(shards, pools.prompt_block, pools.prompts))
        self._pages = self._moved(self._pages, Moves.none(shards, pools.page_block, pools.pages))
        self._programs.warm.add(shape)
        self._generation.stats = stats

    def _run_prompts(self, on_progress: Callable[[int], None]) -> None:
        """Runs prompts until no slot would stay idle for want of them."""
        generation = self._generation
        while (batch := generation.next_prompts()) is not None:
            generation.start(batch, *self._prefill(batch))
            on_progress(generation.finished)

    def _prefill(self, batch: PrefillBatch) -> tuple[np.ndarray, np.ndarray]:
        stats = self._generation.stats
        with stats.timed("vision"):
            prompts = put_batch(self._mesh, batch.prompts)
            embeddings = jax.block_until_ready(self._programs.embed(self._params, prompts))
        with stats.timed("prefill"):
            text = put_batch(self._mesh, without_pictures(batch.prompts))  # one program, whatever the pictures' bucket
            return self._fill(text, embeddings, put_batch(self._mesh, batch.places))

    def _fill(self, prompts, embeddings, places) -> tuple[np.ndarray, np.ndarray]:
        self._prompts, *drawn = self._programs.prefill(
            self._params,
            prompts,
            embeddings,
            self._prompts,
            places,
            self._key,
            self._prefix,
            samples=self._generation.samples,
            sampling=self._sampling,
        )
        return jax.device_get(tuple(drawn))

    def _run_responses(self) -> None:
        """Decodes what is in the slots for as many tokens as a page has."""
        level = self._generation.seat()
        if level == 0:
            return
        with self._generation.stats.timed("decode"):
            tokens, logps, steps = self._decode(level)
        self._generation.collect(level, int(steps), tokens, logps)

    def _decode(self, level: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        slots = put_batch(self._mesh, self._generation.slots(level))
        tables = put_batch(self._mesh, self._generation.tables(level))
        self._pages, *out = self._programs.decode(
            self._params,
            self._prompts,
            self._pages,
            slots,
            tables,
            self._key,
            self._prefix,
            length=self._pools.page_tokens,
            sampling=self._sampling,
        )
        return jax.device_get(tuple(out))

    def _close_gaps(self) -> None:
        """Moves prompts and pages together where they lie scattered, so that a step reads fewer blocks of them."""
        for moves in self._generation.prompt_moves():
            self._prompts = self._moved(self._prompts, moves)
        for moves in self._generation.page_moves():
            self._pages = self._moved(self._pages, moves)

    def _moved(self, cache: KeyValues, moves: Moves) -> KeyValues:
        return self._programs.move(cache, *put_batch(self._mesh, moves))
