"""The programs of an engine that chooses between a few tokens in answers of a known form: a constrained judge's."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from perception_r1_jax.inference import Engine
from perception_r1_jax.inference.call import without_pictures
from perception_r1_jax.inference.choices import Between
from perception_r1_jax.models import flops, token_bytes
from perception_r1_jax.plan.programs import CACHE, Held, Program, device_bytes, join
from perception_r1_jax.plan.serving import embed_program, placed, prefix_program, prefix_shapes, rows_of, served_params
from perception_r1_jax.records import PromptBatch
from perception_r1_jax.sharding import abstract_batch, replicated


@dataclasses.dataclass(frozen=True)
class ChoiceCalls:
    """Calls of `Engine.choose` of one shape.

    Attributes:
        name: of the stage.
        engine: without parameters; they are read one after another.
        kind: of its parameters, one of `programs.KINDS`.
        prompts: shapes of N prompts, without their prefix.
        between: shapes of the known text between the choices.
        choice_ids: the tokens to choose from.
        prefix_tokens: that all prompts begin with; 0 for none.
        beside: what else lies on the devices meanwhile.
    """

    name: str
    engine: Engine
    kind: str
    prompts: PromptBatch
    between: Between
    choice_ids: tuple[int, ...]
    prefix_tokens: int
    beside: Held


def choosing_programs(calls: ChoiceCalls) -> Iterator[Program]:
    """All that such calls run: the prefix, and at each number of rows embeddings and the answers."""
    params, prefix = served_params(calls.engine), prefix_shapes(calls.engine, calls.prefix_tokens)
    held = join(calls.beside, {calls.kind: params, CACHE: prefix})
    if prefix:
        yield prefix_program(calls.name, calls.engine, calls.kind, calls.prefix_tokens, held)
    for rows in calls.engine.choice_levels(*calls.prompts.tokens.shape, calls.between, calls.prefix_tokens):
        yield embed_program(calls.name, calls.engine, calls.kind, rows_of(calls.prompts, rows), held)
        yield _choose(calls, rows, held)


def choosing_cache_bytes(calls: ChoiceCalls) -> int:
    """Bytes of a device that keys and values take while the largest of them runs, those of the prefix included.

    Raises:
        UserError: as `Engine.choice_levels`.
    """
    engine, (rows, length) = calls.engine, calls.prompts.tokens.shape
    most = engine.choice_levels(rows, length, calls.between, calls.prefix_tokens)[-1] // engine.shards
    own = (
        most
        * (length + calls.between.room)
        * token_bytes(engine.config, engine.serving.dtype)
        // engine.mesh.shape["tensor"]
    )
    return own + device_bytes(prefix_shapes(engine, calls.prefix_tokens))


def _choose(calls: ChoiceCalls, rows: int, held: Held) -> Program:
    engine, model = calls.engine, calls.engine.config
    params, prefix = served_params(engine), prefix_shapes(engine, calls.prefix_tokens)
    length, steps = calls.prompts.tokens.shape[1], len(calls.between.sizes)
    embeddings = jax.ShapeDtypeStruct((rows, length, model.hidden_size), engine.serving.dtype)
    prompts = jax.eval_shape(without_pictures, rows_of(calls.prompts, rows))
    batch = abstract_batch(engine.mesh, (prompts, embeddings))
    known = (calls.between, jax.ShapeDtypeStruct((), jnp.int32))
    known = placed(known, jax.tree.map(lambda _: replicated(engine.mesh), known))
    tokens = length + calls.between.room
    pairs = tokens * (calls.prefix_tokens + tokens / 2)
    useful = flops.layers_flops(model, rows * tokens, rows * pairs) + flops.head_flops(model, rows * (steps + 1))
    return Program(
        f"{calls.name}/choose {rows // engine.shards}",
        engine.mesh,
        lambda: engine.programs.choose.lower(params, *batch, *known, prefix, choice_ids=calls.choice_ids),
        held,
        {calls.kind: params["decoder"], CACHE: prefix},
        useful_flops=useful,
        turns={"steps": steps},
    )
