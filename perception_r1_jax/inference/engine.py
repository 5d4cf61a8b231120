"""The engine: prompts in, responses out, however many and however long. Rollouts, judge and evaluation use it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from perception_r1_jax.host_memory import to_device
from perception_r1_jax.inference.call import Call, Programs
from perception_r1_jax.inference.choices import Between
from perception_r1_jax.inference.choosing import Choosing, Chosen, row_levels
from perception_r1_jax.inference.generation import Generation, OnGroups
from perception_r1_jax.inference.pools import Pools, plan_pools
from perception_r1_jax.inference.reshard import Serving, Stream, device_memory, make_reshard, read_params, serving_mesh
from perception_r1_jax.inference.sampling import Sampling
from perception_r1_jax.inference.stats import GenerationStats
from perception_r1_jax.models import ModelConfig, Params, Prefix, token_bytes
from perception_r1_jax.records import PromptBatch
from perception_r1_jax.sharding import replicated

SLOTS = 256
"""The most sequences that a device decodes at a time, unless told otherwise."""

WEIGHTS_MEMORY, CACHE_MEMORY = 0.45, 0.3
"""Shares of a device's memory that the weights and the keys and values may take, unless told otherwise."""


def ignore_progress(*_: object) -> None:
    """For those who wait for the end."""


class Generated(NamedTuple):
    """Responses to N prompts (numpy).

    Attributes:
        tokens: int32 [N, G, C], pad ids after a response's end.
        mask: bool [N, G, C], true on a response's tokens, its stop token included.
        logps: float32 [N, G, C], 0 outside of the mask.
        stopped: bool [N, G], false for a response that was cut at its limit.
        stats: what it took.
    """

    tokens: Int[np.ndarray, "N G C"]
    mask: Bool[np.ndarray, "N G C"]
    logps: Float[np.ndarray, "N G C"]
    stopped: Bool[np.ndarray, "N G"]
    stats: GenerationStats


class Engine:
    """A model ready to generate.

    Attributes:
        config: the model's shapes.
        mesh: where it serves: the devices of the mesh it was given, with the least tensor parallelism that fits.
        serving: how the weights are kept.
        cache_dtype: of keys and values in the pools.
        reshard: the program that makes the serving copy of parameters.
        programs: all others.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: Params | None,
        mesh: Mesh,
        *,
        dtype: DTypeLike = jnp.float32,
        slots: int = SLOTS,
        weights_memory: float = WEIGHTS_MEMORY,
        cache_memory: float = CACHE_MEMORY,
        cache_int8: bool = False,
        weights_int8: bool = False,
        memory: int | None = None,
    ):
        """Places the parameters, where there are any yet; `load` takes others later.

        Args:
            config: the model's shapes.
            params: its parameters as they are trained or read, wherever they lie.
            mesh: the devices.
            dtype: to compute in; logits, softmax and log-probs are float32.
            slots: the most sequences that a device decodes at a time.
            weights_memory: share of a device's memory that the weights may take.
            cache_memory: share of a device's memory that the keys and values may take.
            cache_int8: keeps keys and values of prompts and pages in 8 bits.
            weights_int8: keeps the decoder's matrices in 8 bits, with a scale for each output.
            memory: bytes of a device; what the device says if None.

        Raises:
            UserError: the weights do not fit, however they are split.
        """
        memory = device_memory(mesh.local_mesh.devices.flat[0]) if memory is None else memory
        self.config = config
        self.serving = Serving(config, jnp.dtype(dtype), weights_int8)
        self.mesh = serving_mesh(mesh, self.serving, weights_memory * memory)
        self._slots, self._cache_bytes = slots, cache_memory * memory
        self.cache_dtype = jnp.dtype(jnp.int8) if cache_int8 else self.serving.dtype
        self._recent_cost = token_bytes(config, self.serving.dtype) / token_bytes(config, self.cache_dtype)
        self.reshard = make_reshard(self.serving, self.mesh)
        self._params = None if params is None else self.reshard(params)
        self.programs = Programs(config, self.serving.dtype, self.cache_dtype)

    def load(self, params: Params) -> None:
        """Takes these parameters from now on: one program casts them and moves them to the serving mesh."""
        self._params = None
        self._params = self.reshard(params)

    def read(self, stream: Stream, *, host_memory: bool = False) -> None:
        """Takes parameters that come one after another (`weights.stream_params`): the model is never held twice.

        With `host_memory` they stay in the memory of the devices' hosts, but for what is done `on_device`.
        """
        self._params = None
        self._params = read_params(self.serving, self.mesh, stream, host_memory=host_memory)

    @contextlib.contextmanager
    def on_device(self) -> Iterator[None]:
        """Within it the parameters are on the devices, wherever they lie before and after."""
        kept = self._params
        self._params = to_device(kept)
        try:
            yield
        finally:
            self._params = kept

    def unload(self) -> None:
        """Lets go of the parameters, so that their room is free."""
        self._params = None

    @property
    def loaded(self) -> bool:
        """Whether it has parameters."""
        return self._params is not None

    def _given(self) -> Params:
        if not self.loaded:
            raise RuntimeError("the engine has no parameters; `load` them first.")
        return self._params

    def layout(self) -> str:
        """Where the weights lie and how the batch is split, for people."""
        ways = self.mesh.shape["tensor"]
        gib = self.serving.bytes / ways / 2**30
        return f"batch over {self.shards} x tensor {ways}, weights {gib:.2f} GiB a device in {self.serving}"

    @property
    def shards(self) -> int:
        """D: in how many shards the batch lies; sequences of different shards never meet."""
        return self.mesh.shape["data"]

    def generate(
        self,
        prompts: PromptBatch,
        samples: int,
        sampling: Sampling,
        key: Key[Array, ""],
        *,
        prefix: Prefix | None = None,
        limits: Int[np.ndarray, "N G"] | None = None,
        decode: Callable[[Sequence[int]], str] | None = None,
        on_progress: Callable[[int], None] = ignore_progress,
        on_groups: OnGroups = ignore_progress,
    ) -> Generated:
        """Generates `samples` responses to each prompt. Picture and prompt are computed once per prompt.

        However many there are, they pass through as many slots as there is room for; whatever leaves makes place for
        the next. What a response says does not depend on that.

        Args:
            prompts: N prompts (numpy); rows of length 0 only fill the batch.
            samples: G.
            sampling: how tokens are drawn, and C, the most tokens of a response.
            key: of this batch, usually folded from (seed, step).
            prefix: what `prefix` made of the tokens that all prompts begin with, where `prompts` are the rest of them:
                their positions go on from there.
            limits: the most tokens of each response, from 1 to C; C everywhere if None.
            decode: from token ids to text, where `sampling` has stop strings.
            on_progress: called with the number of responses finished so far, between stretches of decoding, and between
                the programs that the first batch compiles; what it raises ends the generation.
            on_groups: called likewise with the prompts whose responses have all finished since the last call. The
                lengths of the responses decide which come together, not the clock. Its time is not in the stats. It
                returns None, or up to as many prompts of the same bucket. These are written over the first of the rows
                in `prompts` and run under the rows' limits; at the end a row has the responses to its last prompt.

        Raises:
            UserError: not even one response has room in the cache.
        """
        params = self._given()
        if prefix and sampling.repetition_penalty != 1:
            raise ValueError("a repetition penalty counts all tokens of a prompt; give whole prompts, no prefix.")
        shared = prefix.length if prefix else 0
        pools = self.plan(*prompts.tokens.shape, samples, sampling, shared)
        generation = Generation(prompts, samples, sampling, pools, self.shards, limits=limits, decode=decode)
        length, per_token = prompts.tokens.shape[1], token_bytes(self.config, self.cache_dtype)
        tokens = pools.tokens(length, self._recent_cost) + shared
        generation.stats.cache_bytes = round(self.shards * tokens * per_token)
        generation.stats.prompt_bytes = self.shards * pools.prompts * length * per_token
        with jax.set_mesh(self.mesh):
            Call(
                self.programs,
                params,
                self.mesh,
                generation,
                pools,
                prompt_tokens=length,
                sampling=sampling,
                key=key,
                prefix=prefix,
            ).run(on_progress, on_groups)
        return Generated(generation.tokens, generation.mask, generation.logps, generation.stopped, generation.stats)

    def prefix(self, tokens: Int[np.ndarray, " P"]) -> Prefix:
        """Computes the text that many prompts begin with, once for all calls of `generate` and `choose`."""
        with jax.set_mesh(self.mesh):
            tokens = jax.device_put(np.asarray(tokens, np.int32), replicated(self.mesh))
            return self.programs.prefix(self._given(), tokens)

    def choose(
        self,
        prompts: PromptBatch,
        between: Sequence[Sequence[int]],
        counts: Int[np.ndarray, " N"],
        choice_ids: tuple[int, ...],
        *,
        prefix: Prefix | None = None,
    ) -> Chosen:
        """Fills in the open places of answers of a known form, one after another, with the likeliest of a few tokens.

        Args:
            prompts: N prompts (numpy) with their answers up to the first place; rows of length 0 only fill the batch.
            between: the M - 1 known texts between one place and the next, as token ids.
            counts: how many places each answer has, from 1 to M.
            choice_ids: the tokens to choose from; the first of equals is taken.
            prefix: as of `generate`.

        Raises:
            UserError: not even one row has room in the cache.
        """
        known = Between.of(between)
        levels = self.choice_levels(*prompts.tokens.shape, known, prefix.length if prefix else 0)
        with jax.set_mesh(self.mesh):
            choosing = Choosing(self.programs, self._given(), self.mesh, known, choice_ids)
            return choosing.run(prompts, counts, prefix, levels)

    @property
    def compilations(self) -> int:
        """Programs compiled so far. All that prompts of one shape need are compiled with the first of them."""
        return self.programs.compilations + self.reshard._cache_size()

    def choice_levels(self, rows: int, length: int, between: Between, prefix_tokens: int = 0) -> tuple[int, ...]:
        """Numbers of rows that a call of `choose` with so many prompts of so many tokens has programs for.

        Only shapes are read. Raises as `choose`.
        """
        budget = self._cache_tokens(self.serving.dtype) - prefix_tokens
        return row_levels(rows, self.shards, length + between.room, budget)

    def _cache_tokens(self, dtype: DTypeLike) -> float:
        """How many tokens a shard may hold keys and values of."""
        return self._cache_bytes * self.mesh.shape["tensor"] / token_bytes(self.config, dtype)

    def plan(self, rows: int, length: int, samples: int, sampling: Sampling, prefix_tokens: int = 0) -> Pools:
        """Sizes of the pools for a call of `generate` with so many prompts of so many tokens; raises as that does."""
        return plan_pools(
            prompts=-(-rows // self.shards),
            samples=samples,
            prompt_tokens=length,
            new_tokens=sampling.max_new_tokens,
            slots=self._slots,
            budget=self._cache_tokens(self.cache_dtype) - prefix_tokens,
            recent_cost=self._recent_cost,
        )
