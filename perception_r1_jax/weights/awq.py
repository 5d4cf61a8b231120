"""AWQ checkpoints (arXiv 2306.00978): weights of 4 bits, made floats as they are read.

In the Hugging Face layout, version "gemm", a linear map `X.weight` [out, in] is kept as three tensors:

    X.qweight   int32 [in, out / 8]           integers q from 0 to 15, eight a word
    X.qzeros    int32 [in / group, out / 8]   likewise z, for each group of inputs
    X.scales    float16 [in / group, out]     s

and is (q - z) s. From the lowest bits up, a word holds columns 0, 2, 4, 6, 1, 3, 5, 7 of its eight.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from perception_r1_jax.json_files import read_json
from perception_r1_jax.weights.safetensors_io import CheckpointError, StoredTensor
from perception_r1_jax.weights.side_files import CONFIG_FILE

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
BITS, COLUMNS = 4, len(ORDER)
PARTS = ("qweight", "qzeros", "scales")


@dataclasses.dataclass(frozen=True)
class AwqTensor:
    """A weight in an AWQ checkpoint, read as a `StoredTensor` is."""

    name: str
    integers: StoredTensor
    zeros: StoredTensor
    scales: StoredTensor
    group: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Outputs and inputs, as an unquantized weight has them."""
        inputs, words = self.integers.shape
        return words * COLUMNS, inputs

    @property
    def dtype(self) -> np.dtype:
        """Of the scales."""
        return self.scales.dtype

    def read(self, block: Sequence[slice] = (slice(None),)) -> np.ndarray:
        """Reads a block [out, in], float32; axes beyond the given slices are read whole."""
        slices = (*block, *[slice(None)] * (2 - len(block)))
        (first, last, _), (start, stop, _) = (part.indices(size) for part, size in zip(slices, self.shape))
        words = slice(first // COLUMNS, -(-last // COLUMNS))
        columns = slice(words.start * COLUMNS, words.stop * COLUMNS)
        groups = slice(start // self.group, -(-stop // self.group))
        group_of = np.arange(start, stop) // self.group - groups.start
        zeros = unpack(self.zeros.read((groups, words)))[group_of]
        steps = unpack(self.integers.read((slice(start, stop), words))) - zeros
        values = steps * self.scales.read((groups, columns)).astype(np.float32)[group_of]
        return values[:, first - columns.start : last - columns.start].T


def unpack(words: np.ndarray) -> np.ndarray:
    """Eight integers from 0 to 15 from each word: int32 [rows, W] -> int8 [rows, 8 W]."""
    columns = np.empty((*words.shape, COLUMNS), np.int8)
    for place, column in enumerate(ORDER):
        columns[..., column] = (words >> (BITS * place)) & (2**BITS - 1)
    return columns.reshape(len(words), -1)


def quantized_group(directory: Path) -> int | None:
    """Inputs that share a scale in an AWQ checkpoint, -1 for all of them; None for a checkpoint of floats.

    Raises:
        CheckpointError: quantized by another method, or in another form.
    """
    config = read_json(directory / CONFIG_FILE).get("quantization_config")
    if config is None:
        return None
    given = {"quant_method": config.get("quant_method"), "bits": config.get("bits", config.get("w_bit"))}
    given |= {"version": str(config.get("version", "gemm")).lower(), "zero_point": config.get("zero_point", True)}
    for field, read in {"quant_method": "awq", "bits": BITS, "version": "gemm", "zero_point": True}.items():
        if given[field] != read:
            raise CheckpointError(
                f"{directory}: weights quantized with {field} {given[field]!r} are not read, only with {read!r}. "
                "Give the checkpoint before quantization, or one by AWQ (4 bits, version gemm)."
            )
    return config.get("group_size", config.get("q_group_size", 128))


def dequantized(tensors: Sequence[StoredTensor], group: int) -> list[StoredTensor | AwqTensor]:
    """The tensors, each complete set of `PARTS` as one weight; what is incomplete stays as it is, to be named."""
    by_name = {tensor.name: tensor for tensor in tensors}
    weights, used = [], set()
    for stem in (name.removesuffix(".qweight") for name in by_name if name.endswith(".qweight")):
        names = [f"{stem}.{part}" for part in PARTS]
        if all(name in by_name for name in names):
            parts = [by_name[name] for name in names]
            size = parts[0].shape[0] if group < 0 else group
            _check_parts(parts, size)
            weights.append(AwqTensor(f"{stem}.weight", *parts, size))
            used |= set(names)
    return [tensor for tensor in tensors if tensor.name not in used] + weights


def _check_parts(parts: Sequence[StoredTensor], group: int) -> None:
    (inputs, words), groups = parts[0].shape, -(-parts[0].shape[0] // group)
    for part, shape in zip(parts, ((inputs, words), (groups, words), (groups, words * COLUMNS))):
        if part.shape != shape:
            raise CheckpointError(
                f"{part.file}: {part.name} is {list(part.shape)}; with groups of {group} inputs it should be "
                f"{list(shape)}. Correct group_size in the quantization_config."
            )
