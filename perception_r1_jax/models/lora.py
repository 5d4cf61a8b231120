"""Low-rank adapters (LoRA, arXiv 2106.09685): beside a matrix W, which stays, a product A B of narrow ones is learned.

A model's parameters may hold `Adapters` beside its own, under the name ADAPTERS. Products then take W and A B apart, so
that no gradient of W is made. `merge_adapters` makes of both parameters like any other.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.typing import DTypeLike
from jaxtyping import Array, Key

from perception_r1_jax.models.quantized import Int8, contract
from perception_r1_jax.records import Leaf

ADAPTERS = "adapters"

INPUTS = {"q": 1, "k": 1, "v": 1, "qkv": 1, "o": 2, "gate": 1, "up": 1, "down": 1}
"""Matrices of the layers that may have adapters, with the number of axes that their products sum over."""

VISION_MODULES = frozenset(INPUTS) - {"q", "k", "v"}
"""Those that the vision tower has."""


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """What a model is given adapters by.

    Attributes:
        rank: columns of A, rows of B.
        scale: of A B.
        modules: those of `INPUTS` that have adapters.
        vision: whether they have them in the vision tower, too.
        dtype: of the parameters that stay as they are.
    """

    rank: int
    scale: float
    modules: tuple[str, ...]
    vision: bool
    dtype: DTypeLike


@functools.partial(jax.tree_util.register_dataclass, data_fields=["matrices"], meta_fields=["scale"])
@dataclasses.dataclass(frozen=True)
class Adapters:
    """All adapters of a model.

    Attributes:
        matrices: A [layers, in..., rank] as "a" and B [layers, rank, out...] as "b", float32, in the model's tree
            beside W [layers, in..., out...], which is "kernel".
        scale: of A B.
    """

    matrices: dict[str, Any]
    scale: float


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Adapted:
    """A matrix [in..., out...] with its adapter: a [in..., rank] and, scaled, b [rank, out...]. Or a stack of such."""

    kernel: Leaf
    a: Leaf
    b: Leaf

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the matrix."""
        return self.kernel.shape

    def merged(self) -> jax.Array:
        """W + A B, float32."""
        stacked = self.a.ndim + self.b.ndim > len(self.shape) + 2
        multiply = jax.vmap(_multiply) if stacked else _multiply
        return self.kernel.astype(jnp.float32) + multiply(self.a, self.b)


def _multiply(a, b):
    return jnp.tensordot(a, b, axes=1, preferred_element_type=jnp.float32)


def contract_adapted(x: jax.Array, matrix: jax.Array | Int8 | Adapted, count: int) -> jax.Array:
    """As `quantized.contract`, also of a matrix with an adapter."""
    if not isinstance(matrix, Adapted):
        return contract(x, matrix, count)
    return contract(x, matrix.kernel, count) + contract(contract(x, matrix.a, count), matrix.b, 1)


def attach_adapters(params: dict[str, Any]) -> dict[str, Any]:
    """The model's own tree, with each matrix that has an adapter as `Adapted`; parameters without any as they are."""
    if ADAPTERS not in params:
        return params
    adapters = params[ADAPTERS]
    whole, narrow = (traverse_util.flatten_dict(tree) for tree in (base_params(params), adapters.matrices))
    for *place, name in narrow:
        if name == "a":
            path = (*place, "kernel")
            whole[path] = Adapted(whole[path], narrow[*place, "a"], narrow[*place, "b"] * adapters.scale)
    return traverse_util.unflatten_dict(whole)


def merge_adapters(params: dict[str, Any]) -> dict[str, Any]:
    """The model's own tree with each matrix and its adapter as one, float32."""
    return jax.tree.map(
        lambda x: x.merged() if isinstance(x, Adapted) else x,
        attach_adapters(params),
        is_leaf=lambda x: isinstance(x, Adapted),
    )


def base_params(params: dict[str, Any]) -> dict[str, Any]:
    """The model without its adapters: the one that training began from."""
    return {name: tree for name, tree in params.items() if name != ADAPTERS}


def narrow_matrices(lora: LoraConfig, whole: Mapping[str, Any], rank: Any) -> dict[str, Any]:
    """For a tree of the parameters' shapes, or of their logical axes, those of A and B.

    Args:
        lora: which matrices have them.
        whole: tuples, one for each parameter.
        rank: what stands for the rank in a tuple: its size, or the name of its axis.
    """
    found = {}
    for path, sizes in traverse_util.flatten_dict(whole).items():
        if _is_adapted(lora, path):
            inputs = 1 + INPUTS[path[-2]]
            found[*path[:-1], "a"] = (*sizes[:inputs], rank)
            found[*path[:-1], "b"] = (sizes[0], rank, *sizes[inputs:])
    return traverse_util.unflatten_dict(found)


def _is_adapted(lora, path):
    of_layer = "layers" in path and path[-1] == "kernel"
    return of_layer and path[-2] in lora.modules and (lora.vision or path[0] != "vision")


def init_adapters(shapes: Adapters, key: Key[Array, ""]) -> Adapters:
    """A uniform within 1 / sqrt(inputs) around 0, as peft draws it, and B zero: the model is the base at first.

    Args:
        shapes: of all matrices (`jax.ShapeDtypeStruct`).
        key: for all of them.
    """

    def init(path, x):
        if path[-1].key == "b":
            return jnp.zeros(x.shape, x.dtype)
        bound = math.prod(x.shape[1:-1]) ** -0.5
        return jax.random.uniform(jax.random.fold_in(key, places[path]), x.shape, x.dtype, -bound, bound)

    places = {path: index for index, (path, _) in enumerate(jax.tree_util.tree_leaves_with_path(shapes.matrices))}
    return Adapters(jax.tree_util.tree_map_with_path(init, shapes.matrices), shapes.scale)
