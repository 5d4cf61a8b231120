"""The programs of an engine, for one kind of calls: rollouts, judgements or evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perception_r1_jax.inference import Engine, Sampling
from perception_r1_jax.inference.call import without_pictures
from perception_r1_jax.inference.generation import Generation, Moves
from perception_r1_jax.inference.reshard import serving_shardings
from perception_r1_jax.models import KeyValues, Params, flops
from perception_r1_jax.models.cache import AXES
from perception_r1_jax.plan.programs import CACHE, Held, Program, join
from perception_r1_jax.records import PromptBatch
from perception_r1_jax.sharding import abstract_batch, replicated, tree_shardings


@dataclasses.dataclass(frozen=True)
class Calls:
    """Calls of `Engine.generate` of one shape.

    Attributes:
        name: of the stage.
        engine: without parameters.
        stored: its parameters as they are trained (`jax.ShapeDtypeStruct`, with shardings). None where no program
            brings them: they are there already, or are read one after another.
        kind: of its parameters, one of `programs.KINDS`.
        prompts: shapes of N prompts.
        samples: G.
        sampling: how tokens are drawn.
        choice_ids: where answers are forced, the only tokens that the model may choose; () where they are not.
        beside: what else lies on the devices meanwhile.
        beside_load: what else does while the parameters are loaded.
    """

    name: str
    engine: Engine
    stored: Params | None
    kind: str
    prompts: PromptBatch
    samples: int
    sampling: Sampling
    choice_ids: tuple[int, ...]
    beside: Held
    beside_load: Held


def served_params(engine: Engine) -> Params:
    """Shapes and shardings of the engine's copy of the parameters."""
    return _placed(engine.serving.shapes, serving_shardings(engine.serving, engine.mesh))


def serving_programs(calls: Calls) -> list[Program]:
    """All that such calls run: loading, prefill with its pictures, decoding at every number of slots, and moves."""
    load = [] if calls.stored is None else [_load(calls)]
    return [*load, *_Serving(calls).programs()]


def _load(calls: Calls) -> Program:
    stored, made = {calls.kind: calls.stored}, {calls.kind: served_params(calls.engine)}
    return Program(
        name=f"{calls.name}/load",
        mesh=calls.engine.mesh,
        lower=lambda: calls.engine.reshard.lower(calls.stored),
        held=join(calls.beside_load, stored, made),
        given=stored,
        made=made,
    )


class _Serving:
    """What the programs of these calls share."""

    def __init__(self, calls: Calls):
        self._calls, self._engine, self._mesh = calls, calls.engine, calls.engine.mesh
        self._params = served_params(calls.engine)
        self._pools = calls.engine.plan(calls.prompts, calls.samples, calls.sampling)
        self._length = calls.prompts.tokens.shape[1]
        self._prompts = self._pool(self._pools.prompts, self._length)
        self._pages = self._pool(self._pools.pages, self._pools.page_tokens)
        self._key = _placed(jax.eval_shape(lambda: jax.random.key(0)), replicated(self._mesh))
        self._drawing = {"sampling": calls.sampling, "choice_ids": calls.choice_ids}
        self._held = join(calls.beside, {calls.kind: self._params, CACHE: (self._prompts, self._pages)})

    def programs(self) -> Iterator[Program]:
        """Those that are compiled with the first call."""
        for level in self._pools.prefill_levels:
            yield self._embed(level)
            yield self._prefill(level)
        generation = self._generation()
        for level in self._pools.levels:
            yield self._decode(level, generation)
        yield self._move("prompts", self._prompts, self._pools.prompts, self._pools.prompt_block)
        yield self._move("pages", self._pages, self._pools.pages, self._pools.page_block)

    def _embed(self, level: int) -> Program:
        prompts, model = self._rows(level), self._engine.config
        windows = prompts.image_ids.shape[1]
        used = {"decoder": {"embed": self._params["decoder"]["embed"]}}
        if windows:
            used["vision"] = self._params["vision"]
        return self._program(
            f"vision {level}" if windows else f"embed {level}",
            lambda: self._engine.programs.embed.lower(self._params, abstract_batch(self._mesh, prompts)),
            {self._calls.kind: used},
            flops.vision_flops(model.vision, windows, level * self._engine.shards) if windows else 0.0,
        )

    def _prefill(self, level: int) -> Program:
        model, rows = self._engine.config, level * self._engine.shards
        embeddings = jax.ShapeDtypeStruct((rows, self._length, model.hidden_size), self._engine.serving.dtype)
        places = jax.ShapeDtypeStruct((self._engine.shards, level), jnp.int32)
        forced = jax.ShapeDtypeStruct((rows,), jnp.int32) if self._calls.choice_ids else None
        batch = abstract_batch(
            self._mesh, (jax.eval_shape(without_pictures, self._rows(level)), embeddings, places, forced)
        )

        def lower():
            prompts, embeddings, places, forced = batch
            return self._engine.programs.prefill.lower(
                self._params,
                prompts,
                embeddings,
                self._prompts,
                places,
                forced,
                self._key,
                samples=self._calls.samples,
                **self._drawing,
            )

        decoder = self._params["decoder"]
        if not model.tie_embeddings:
            decoder = {name: tree for name, tree in decoder.items() if name != "embed"}
        useful = flops.prompt_flops(model, self._length, rows) + flops.head_flops(model, rows)
        return self._program(f"prefill {level}", lower, {self._calls.kind: decoder, CACHE: self._prompts}, useful)

    def _decode(self, level: int, generation: Generation) -> Program:
        model, tokens = self._engine.config, self._calls.sampling.max_new_tokens
        tables = abstract_batch(self._mesh, (generation.slots(level), generation.tables(level)))
        span, rows = self._pools.page_tokens, level * self._engine.shards

        def lower():
            slots, cells = tables
            return self._engine.programs.decode.lower(
                self._params, self._prompts, self._pages, slots, cells, self._key, length=span, **self._drawing
            )

        blocks = {
            "prompt_blocks": self._pools.prompts // self._pools.prompt_block,
            "page_blocks": self._pools.pages // self._pools.page_block,
        }
        given = {self._calls.kind: self._params["decoder"], CACHE: (self._prompts, self._pages)}
        useful = flops.response_flops(model, self._length + tokens // 2, span, rows)
        return self._program(f"decode {level}", lower, given, useful, blocks)

    def _move(self, name: str, pool: KeyValues, size: int, block: int) -> Program:
        moves = abstract_batch(self._mesh, Moves.none(self._engine.shards, block, size))
        return self._program(f"move {name}", lambda: self._engine.programs.move.lower(pool, *moves), {CACHE: pool})

    def _program(self, name: str, lower: Callable, given: Held, useful: float = 0.0, turns=None) -> Program:
        return Program(
            f"{self._calls.name}/{name}", self._mesh, lower, self._held, given, useful_flops=useful, turns=turns or {}
        )

    def _rows(self, level: int) -> PromptBatch:
        rows = level * self._engine.shards
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), self._calls.prompts)

    def _pool(self, entries: int, tokens: int) -> KeyValues:
        engine = self._engine
        sizes = (engine.shards, entries, tokens)
        shapes = jax.eval_shape(lambda: KeyValues.empty(engine.config, *sizes, engine.cache_dtype))
        axes = jax.tree.map(lambda x: AXES[: x.ndim], shapes)
        return _placed(shapes, tree_shardings(self._mesh, axes, shapes))

    def _generation(self) -> Generation:
        """The host's side of a call in which nothing has begun."""
        calls = self._calls

        def nothing(x):  # an array of this shape that takes no room
            return np.broadcast_to(np.zeros((), x.dtype), x.shape)

        shape = (len(calls.prompts.lengths), calls.sampling.max_new_tokens)
        return Generation(
            jax.tree.map(nothing, calls.prompts),
            calls.samples,
            calls.sampling,
            self._pools,
            self._engine.shards,
            forced=np.zeros(shape, np.int32) if calls.choice_ids else None,
            limits=None,
            decode=str if calls.sampling.stop_strings else None,
        )


def _placed(shapes: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
