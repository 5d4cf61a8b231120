"""The programs of an engine that writes: of rollouts, evaluation and its probes, or a judge that answers freely."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perception_r1_jax.inference import Engine, Sampling
from perception_r1_jax.inference.call import without_pictures
from perception_r1_jax.inference.generation import Generation, Moves
from perception_r1_jax.inference.reshard import serving_shardings
from perception_r1_jax.models import KeyValues, Params, Prefix, flops
from perception_r1_jax.models.cache import AXES
from perception_r1_jax.models.prefix import AXES as PREFIX_AXES
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
        beside: what else lies on the devices meanwhile.
        beside_load: what else does while the parameters are loaded.
        prefix_tokens: that all prompts begin with, and `prompts` do not hold; 0 for none.
    """

    name: str
    engine: Engine
    stored: Params | None
    kind: str
    prompts: PromptBatch
    samples: int
    sampling: Sampling
    beside: Held
    beside_load: Held
    prefix_tokens: int = 0


def served_params(engine: Engine) -> Params:
    """Shapes and shardings of the engine's copy of the parameters."""
    return placed(engine.serving.shapes, serving_shardings(engine.serving, engine.mesh))


def rows_of(prompts: PromptBatch, rows: int) -> PromptBatch:
    """Shapes of so many prompts."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), prompts)


def prefix_shapes(engine: Engine, tokens: int) -> Prefix | None:
    """Shapes and shardings of a prefix of so many tokens; None for none."""
    if tokens == 0:
        return None
    model = engine.config
    entry = jax.ShapeDtypeStruct((1, tokens, model.num_kv_heads, model.head_dim), engine.serving.dtype)
    make = functools.partial(Prefix.of, dtype=engine.cache_dtype)
    shapes = jax.eval_shape(make, [(entry, entry)] * model.num_layers)
    axes = jax.tree.map(lambda x: PREFIX_AXES[: x.ndim], shapes)
    return placed(shapes, tree_shardings(engine.mesh, axes, shapes))


def prefix_program(name: str, engine: Engine, kind: str, tokens: int, held: Held) -> Program:
    """What computes a prefix."""
    params = served_params(engine)
    text = jax.ShapeDtypeStruct((tokens,), jnp.int32, sharding=replicated(engine.mesh))
    return Program(
        f"{name}/prefix",
        engine.mesh,
        lambda: engine.programs.prefix.lower(params, text),
        held,
        {kind: params["decoder"]},
        {CACHE: prefix_shapes(engine, tokens)},
        useful_flops=flops.prompt_flops(engine.config, tokens, 1),
    )


def embed_program(name: str, engine: Engine, kind: str, prompts: PromptBatch, held: Held) -> Program:
    """What looks tokens up and encodes pictures."""
    params, model = served_params(engine), engine.config
    rows, windows = prompts.image_ids.shape
    used = {"decoder": {"embed": params["decoder"]["embed"]}}
    if windows:
        used["vision"] = params["vision"]
    return Program(
        f"{name}/{'vision' if windows else 'embed'} {rows // engine.shards}",
        engine.mesh,
        lambda: engine.programs.embed.lower(params, abstract_batch(engine.mesh, prompts)),
        held,
        {kind: used},
        useful_flops=flops.vision_flops(model.vision, windows, rows) if windows else 0.0,
    )


def serving_held(calls: Calls) -> Held:
    """What such calls hold between their programs: the parameters that serve, and the cache.

    Raises:
        UserError: as `Engine.plan`.
    """
    return _Serving(calls).own


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
        self._pools = calls.engine.plan(*calls.prompts.tokens.shape, calls.samples, calls.sampling, calls.prefix_tokens)
        self._prefix = prefix_shapes(calls.engine, calls.prefix_tokens)
        self._length = calls.prompts.tokens.shape[1]
        self._prompts = self._pool(self._pools.prompts, self._length)
        self._pages = self._pool(self._pools.pages, self._pools.page_tokens)
        self._key = placed(jax.eval_shape(lambda: jax.random.key(0)), replicated(self._mesh))
        self.own = {calls.kind: self._params, CACHE: (self._prompts, self._pages, self._prefix)}
        self._held = join(calls.beside, self.own)

    def programs(self) -> Iterator[Program]:
        """Those that are compiled with the first call."""
        calls = self._calls
        if self._prefix:
            yield prefix_program(calls.name, calls.engine, calls.kind, calls.prefix_tokens, self._held)
        for level in self._pools.prefill_levels:
            rows = self._rows(level)
            yield embed_program(calls.name, calls.engine, calls.kind, rows, self._held)
            yield self._prefill(level)
        generation = self._generation()
        for level in self._pools.levels:
            yield self._decode(level, generation)
        yield self._move("prompts", self._prompts, self._pools.prompts, self._pools.prompt_block)
        yield self._move("pages", self._pages, self._pools.pages, self._pools.page_block)

    def _prefill(self, level: int) -> Program:
        model, rows = self._engine.config, level * self._engine.shards
        embeddings = jax.ShapeDtypeStruct((rows, self._length, model.hidden_size), self._engine.serving.dtype)
        places = jax.ShapeDtypeStruct((self._engine.shards, level), jnp.int32)
        batch = abstract_batch(self._mesh, (jax.eval_shape(without_pictures, self._rows(level)), embeddings, places))

        def lower():
            prompts, embeddings, places = batch
            return self._engine.programs.prefill.lower(
                self._params,
                prompts,
                embeddings,
                self._prompts,
                places,
                self._key,
                self._prefix,
                samples=self._calls.samples,
                sampling=self._calls.sampling,
            )

        decoder = self._params["decoder"]
        if not model.tie_embeddings:
            decoder = {name: tree for name, tree in decoder.items() if name != "embed"}
        useful = flops.prompt_flops(model, self._length, rows) + flops.head_flops(model, rows)
        given = {self._calls.kind: decoder, CACHE: (self._prompts, self._prefix)}
        return self._program(f"prefill {level}", lower, given, useful)

    def _decode(self, level: int, generation: Generation) -> Program:
        model, tokens = self._engine.config, self._calls.sampling.max_new_tokens
        tables = abstract_batch(self._mesh, (generation.slots(level), generation.tables(level)))
        span, rows = self._pools.page_tokens, level * self._engine.shards

        def lower():
            slots, cells = tables
            return self._engine.programs.decode.lower(
                self._params,
                self._prompts,
                self._pages,
                slots,
                cells,
                self._key,
                self._prefix,
                length=span,
                sampling=self._calls.sampling,
            )

        blocks = {
            "prompt_blocks": self._pools.prompts // self._pools.prompt_block,
            "page_blocks": self._pools.pages // self._pools.page_block,
        }
        given = {self._calls.kind: self._params["decoder"], CACHE: self.own[CACHE]}
        before = self._calls.prefix_tokens + self._length
        useful = flops.response_flops(model, before + tokens // 2, span, rows)
        return self._program(f"decode {level}", lower, given, useful, blocks)

    def _move(self, name: str, pool: KeyValues, size: int, block: int) -> Program:
        moves = abstract_batch(self._mesh, Moves.none(self._engine.shards, block, size))
        return self._program(f"move {name}", lambda: self._engine.programs.move.lower(pool, *moves), {CACHE: pool})

    def _program(self, name: str, lower: Callable, given: Held, useful: float = 0.0, turns=None) -> Program:
        return Program(
            f"{self._calls.name}/{name}", self._mesh, lower, self._held, given, useful_flops=useful, turns=turns or {}
        )

    def _rows(self, level: int) -> PromptBatch:
        return rows_of(self._calls.prompts, level * self._engine.shards)

    def _pool(self, entries: int, tokens: int) -> KeyValues:
        engine = self._engine
        sizes = (engine.shards, entries, tokens)
        shapes = jax.eval_shape(lambda: KeyValues.empty(engine.config, *sizes, engine.cache_dtype))
        axes = jax.tree.map(lambda x: AXES[: x.ndim], shapes)
        return placed(shapes, tree_shardings(self._mesh, axes, shapes))

    def _generation(self) -> Generation:
        """The host's side of a call in which nothing has begun."""
        calls = self._calls

        def nothing(x):  # an array of this shape that takes no room
            return np.broadcast_to(np.zeros((), x.dtype), x.shape)

        return Generation(
            jax.tree.map(nothing, calls.prompts),
            calls.samples,
            calls.sampling,
            self._pools,
            self._engine.shards,
            limits=None,
            decode=str if calls.sampling.stop_strings else None,
        )


def placed(shapes: Any, shardings: Any) -> Any:
    """Shapes with where they lie."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
