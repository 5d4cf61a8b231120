"""The engine: `generate` compiled per bucket on a mesh. Rollouts, the judge and scripts/generate.py use it."""

from __future__ import annotations

import functools

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int, Key

from perception_r1_jax.inference.generate import Responses, generate
from perception_r1_jax.inference.sampling import Sampling
from perception_r1_jax.models import ModelConfig, Params
from perception_r1_jax.records import PromptBatch
from perception_r1_jax.sharding import put_batch, replicated

Generated = Responses
"""The engine's answer: `Responses` of numpy arrays."""


class Engine:
    """A model ready to generate.

    Attributes:
        config: the model's shapes.
        params: its parameters on the mesh, in the dtype to compute in; None for now: a training loop sets the current
            policy here before each rollout.
        mesh: where they live.
    """

    def __init__(self, config: ModelConfig, params: Params | None, mesh: Mesh):
        self.config, self.params, self.mesh = config, params, mesh
        self._generate = jax.jit(
            functools.partial(generate, config), static_argnames=("samples", "sampling", "choice_ids")
        )

    def generate(
        self,
        prompts: PromptBatch,
        samples: int,
        sampling: Sampling,
        key: Key[Array, ""],
        forced: Int[np.ndarray, "N C"] | None = None,
        choice_ids: tuple[int, ...] = (),
    ) -> Generated:
        """Generates `samples` responses to each prompt of a padded batch; see `generate`."""
        with jax.set_mesh(self.mesh):
            responses = self._generate(
                self.params,
                put_batch(self.mesh, prompts),
                jax.device_put(key, replicated(self.mesh)),
                None if forced is None else put_batch(self.mesh, forced),
                samples=samples,
                sampling=sampling,
                choice_ids=choice_ids,
            )
        return Generated(*jax.device_get(responses))

    @property
    def compilations(self) -> int:
        """Programs compiled so far: one per bucket and setting."""
        return self._generate._cache_size()
