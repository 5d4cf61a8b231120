"""One table between this project's parameters and the tensors of a Hugging Face checkpoint.

Hugging Face keeps a linear map as [out, in] with flattened heads and each layer apart; here kernels are
[in..., out...] with the heads as axes of their own and the layers stacked in front. Two layouts of names
exist: `model.*`, `visual.*`, `lm_head.weight`, which the published checkpoints have and which is written, and
the `model.language_model.*`, `model.visual.*` of transformers 5, which is read as well.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from flax import traverse_util

from perception_r1_jax.models import ModelConfig, abstract_params

ServingPath = tuple[str | int, ...]
"""Place of a parameter among the `serving_params`, such as ("decoder", "layers", 3, "mlp", "up", "kernel")."""

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        path: the parameter's place in the tree, joined by "/".
        name: the tensor's published name; `{i}` stands for the layer, and the parameter is then stacked.
        axes: parameter axes (without the stacked one) -> tensor axes. `dnh->nh,d` reads: a kernel [d, n, h]
            is a tensor of two axes, the first n and h flattened, the second d.
    """

    path: str
    name: str
    axes: str

    @property
    def stacked(self) -> bool:
        """Whether the parameter holds this tensor of every layer."""
        return "{i}" in self.name

    @property
    def groups(self) -> list[list[int]]:
        """For each tensor axis the parameter axes that are flattened into it."""
        ours, theirs = self.axes.split("->")
        return [[ours.index(letter) for letter in group] for group in theirs.split(",")]


def _linear(path: str, name: str, axes: str = "df->f,d", bias: bool = False) -> tuple[Row, ...]:
    kernel = Row(f"{path}/kernel", f"{name}.weight", axes)
    outputs = axes.split("->")[1].split(",")[0]
    return (kernel, Row(f"{path}/bias", f"{name}.bias", f"{outputs}->{outputs}")) if bias else (kernel,)


def _scale(path: str, name: str) -> tuple[Row, ...]:
    return (Row(f"{path}/scale", f"{name}.weight", "d->d"),)


_D, _HF_D = "decoder/layers", "model.layers.{i}"
_V, _HF_V = "vision/layers", "visual.blocks.{i}"

TABLE: tuple[Row, ...] = (
    Row("decoder/embed/embedding", EMBEDDING, "vd->v,d"),
    *_scale(f"{_D}/input_norm", f"{_HF_D}.input_layernorm"),
    *_linear(f"{_D}/attention/q", f"{_HF_D}.self_attn.q_proj", "dnh->nh,d", bias=True),
    *_linear(f"{_D}/attention/k", f"{_HF_D}.self_attn.k_proj", "dnh->nh,d", bias=True),
    *_linear(f"{_D}/attention/v", f"{_HF_D}.self_attn.v_proj", "dnh->nh,d", bias=True),
    *_linear(f"{_D}/attention/o", f"{_HF_D}.self_attn.o_proj", "nhd->d,nh"),
    *_scale(f"{_D}/post_attention_norm", f"{_HF_D}.post_attention_layernorm"),
    *_linear(f"{_D}/mlp/gate", f"{_HF_D}.mlp.gate_proj"),
    *_linear(f"{_D}/mlp/up", f"{_HF_D}.mlp.up_proj"),
    *_linear(f"{_D}/mlp/down", f"{_HF_D}.mlp.down_proj"),
    *_scale("decoder/norm", "model.norm"),
    Row("decoder/head/kernel", HEAD, "vd->v,d"),
    Row("vision/patch_embed/kernel", "visual.patch_embed.proj.weight", "pd->d,p"),
    *_scale(f"{_V}/norm1", f"{_HF_V}.norm1"),
    *_linear(f"{_V}/attention/qkv", f"{_HF_V}.attn.qkv", "dcnh->cnh,d", bias=True),
    *_linear(f"{_V}/attention/o", f"{_HF_V}.attn.proj", "nhd->d,nh", bias=True),
    *_scale(f"{_V}/norm2", f"{_HF_V}.norm2"),
    *_linear(f"{_V}/mlp/gate", f"{_HF_V}.mlp.gate_proj", bias=True),
    *_linear(f"{_V}/mlp/up", f"{_HF_V}.mlp.up_proj", bias=True),
    *_linear(f"{_V}/mlp/down", f"{_HF_V}.mlp.down_proj", bias=True),
    *_scale("vision/merger/norm", "visual.merger.ln_q"),
    *_linear("vision/merger/fc1", "visual.merger.mlp.0", bias=True),
    *_linear("vision/merger/fc2", "visual.merger.mlp.2", bias=True),
)

NESTED_PREFIXES = {"model.language_model.": "model.", "model.visual.": "visual."}


def published_name(name: str) -> str:
    """The published name of a tensor that has either layout's name."""
    for nested, published in NESTED_PREFIXES.items():
        if name.startswith(nested):
            return published + name.removeprefix(nested)
    return name


def nested_name(name: str) -> str:
    """The transformers 5 name of a published tensor of Qwen2.5-VL."""
    for nested, published in NESTED_PREFIXES.items():
        if name.startswith(published):
            return nested + name.removeprefix(published)
    return name


@dataclasses.dataclass(frozen=True)
class HfTensor:
    """A tensor of a Hugging Face checkpoint and the parameter, or the layer of one, that it holds.

    Attributes:
        name: published name.
        shape: of the tensor.
        row: the line of the table.
        layer: index in the stacked parameter, None where it is not stacked.
        parameter_shape: of the parameter, without the stacked axis.
    """

    name: str
    shape: tuple[int, ...]
    row: Row
    layer: int | None
    parameter_shape: tuple[int, ...]

    @property
    def _sliced_axes(self) -> list[int]:
        """Parameter axes whose slices are contiguous runs of a tensor axis; of a patch only the outputs are."""
        firsts = [group[0] for group in self.row.groups]
        return firsts if len(firsts) == len(self.shape) else firsts[:1]

    def stored_slices(self, index: Sequence[slice]) -> tuple[slice, ...]:
        """The smallest block of the tensor that holds this part of the parameter."""
        blocks = []
        for axis, group in zip(self._sliced_axes, self.row.groups):
            inner = math.prod(self.parameter_shape[a] for a in group[1:])
            start, stop, _ = index[axis].indices(self.parameter_shape[axis])
            blocks.append(slice(start * inner, stop * inner))
        return tuple(blocks)

    def to_parameter(self, block: np.ndarray, index: Sequence[slice]) -> np.ndarray:
        """The part of the parameter at `index`, from the block that `stored_slices` names (a view)."""
        order = [axis for group in self.row.groups for axis in group]
        sliced = self._sliced_axes
        lengths = [len(range(*index[a].indices(n))) if a in sliced else n for a, n in enumerate(self.parameter_shape)]
        whole = block.reshape([lengths[axis] for axis in order]).transpose(np.argsort(order))
        return whole[tuple(slice(None) if axis in sliced else index[axis] for axis in range(len(lengths)))]

    def to_stored(self, parameter: np.ndarray) -> np.ndarray:
        """The whole tensor from the whole parameter (one layer of it)."""
        order = [axis for group in self.row.groups for axis in group]
        return np.ascontiguousarray(parameter.transpose(order)).reshape(self.shape)


def flatten(tree: Any) -> dict[str, Any]:
    """A tree of nested dicts as {"decoder/norm/scale": leaf, ...}."""
    return traverse_util.flatten_dict(tree, sep="/")


def unflatten(leaves: dict[str, Any]) -> Any:
    """The tree that `flatten` took apart."""
    return traverse_util.unflatten_dict(leaves, sep="/")


def parameter_tensors(config: ModelConfig) -> dict[str, list[HfTensor]]:
    """For each parameter of the model, by path, its tensors: one, or one per layer.

    Raises:
        KeyError: the model has a parameter that the table lacks.
    """
    rows = {row.path: row for row in TABLE}
    return {path: _tensors(rows[path], leaf.shape, config) for path, leaf in flatten(abstract_params(config)).items()}


def serving_tensors(config: ModelConfig) -> dict[ServingPath, list[HfTensor]]:
    """As `parameter_tensors`, for the tree of `models.serving_params`: in the decoder each layer is apart."""
    apart = {}
    for path, tensors in parameter_tensors(config).items():
        parts = tuple(path.split("/"))
        if parts[:2] == ("decoder", "layers"):
            apart |= {(*parts[:2], tensor.layer, *parts[2:]): [tensor] for tensor in tensors}
        else:
            apart[parts] = tensors
    return apart


def hf_tensors(config: ModelConfig) -> dict[str, HfTensor]:
    """Every tensor of the model's published checkpoint, by name, in the order of the table."""
    return {tensor.name: tensor for tensors in parameter_tensors(config).values() for tensor in tensors}


def _tensors(row: Row, shape: tuple[int, ...], config: ModelConfig) -> list[HfTensor]:
    if not row.stacked:
        return [HfTensor(row.name, _stored_shape(row, shape, config), row, None, shape)]
    layers, *rest = shape
    stored = _stored_shape(row, rest, config)
    return [HfTensor(row.name.replace("{i}", str(i)), stored, row, i, tuple(rest)) for i in range(layers)]


def _stored_shape(row: Row, shape: Sequence[int], config: ModelConfig) -> tuple[int, ...]:
    if row.path == "vision/patch_embed/kernel":  # a 3-D convolution whose stride is its size
        vision = config.vision
        return (shape[1], vision.in_channels, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
    return tuple(math.prod(shape[axis] for axis in group) for group in row.groups)
