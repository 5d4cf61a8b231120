"""Operations of matrix products, which a TPU's compiler writes as convolutions."""

from __future__ import annotations

import math
import re

import numpy as np

from perception_r1_jax.plan.hlo import Computation, Instruction


def product_flops(computation: Computation, instruction: Instruction) -> float:
    """Two for each multiply-add of a product or convolution; 0 for all else."""
    if instruction.opcode == "convolution":
        return _convolution(computation, instruction)
    if instruction.opcode == "dot":
        contracted = instruction.attribute(r"lhs_contracting_dims=\{([\d,]*)\}")
    elif instruction.opcode == "custom-call" and re.search(r"gemm|matmul", instruction.rest):
        contracted = instruction.attribute(r'"lhs_contracting_dimensions":\[([\d",]*)\]')
    else:
        return 0.0
    if contracted is None:
        return 0.0
    left = computation.instructions[instruction.operands[0]].shapes[0].dims
    depth = math.prod(left[int(axis)] for axis in re.findall(r"\d+", contracted))
    return 2.0 * math.prod(instruction.shapes[0].dims) * depth


def _convolution(computation: Computation, instruction: Instruction) -> float:
    """Only pairs of a number and a kernel entry count that meet: padding and the gaps of a dilation do not."""
    left, kernel = (computation.instructions[name].shapes[0].dims for name in instruction.operands[:2])
    left_labels, kernel_labels, out_labels = re.match(
        r"(\w+)_(\w+)->(\w+)", instruction.attribute(r"dim_labels=(\S+?)(?:,|$)")
    ).groups()
    out = instruction.shapes[0].dims
    spatial = [label for label in out_labels if label.isdigit()]
    meetings = math.prod(
        _meetings(
            left[left_labels.index(axis)],
            kernel[kernel_labels.index(axis)],
            out[out_labels.index(axis)],
            {name: values[number] for name, values in _window(instruction, len(spatial)).items()},
        )
        for number, axis in enumerate(spatial)
    )
    features = kernel[kernel_labels.index("i")] * out[out_labels.index("f")]
    return 2.0 * out[out_labels.index("b")] * features * meetings


def _window(instruction: Instruction, dims: int) -> dict[str, list[str]]:
    """The window's fields for each spatial dimension."""
    text = instruction.attribute(r"window=\{([^}]*)\}") or ""
    given = {name: value.split("x") for name, value in re.findall(r"(\w+)=(\S+)", text)}
    usual = {"stride": "1", "pad": "0_0", "lhs_dilate": "1", "rhs_dilate": "1"}
    return {name: given.get(name, [value] * dims) for name, value in usual.items()}


def _meetings(size: int, kernel: int, out: int, window: dict[str, str]) -> int:
    """In how many pairs of output and kernel positions of one dimension there is a number to multiply."""
    stride, spread, gap = (int(window[name]) for name in ("stride", "lhs_dilate", "rhs_dilate"))
    low = int(window["pad"].split("_")[0])
    at = np.arange(out)[:, None] * stride + np.arange(kernel)[None] * gap - low
    return int(((at >= 0) & (at <= (size - 1) * spread) & (at % spread == 0)).sum())
