"""The random models that all CPU benchmarks run, as Hugging Face checkpoints that both sides load."""

from __future__ import annotations

import dataclasses
import json
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from perception_r1_jax.models import ModelConfig, Params, load_config
from perception_r1_jax.processing import Processor
from perception_r1_jax.sharding import make_mesh
from perception_r1_jax.weights import load_params
from perception_r1_jax.weights.random_checkpoint import write_random_checkpoint

SCALE = 2.0
"""Matrices of standard deviation 0.04, about one over the root of the hidden size: activations stay of order one."""


@dataclasses.dataclass(frozen=True)
class Shape:
    """A model to time: its name, family, and the fields of its `config.json`."""

    name: str
    family: str
    fields: Mapping[str, Any]


STANDARD = Shape(
    "standard",
    "qwen2_5_vl",
    {
        "vocab_size": 32768,
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]},
        "vision_config": {
            "depth": 8,
            "hidden_size": 256,
            "intermediate_size": 688,
            "num_heads": 4,
            "fullatt_block_indexes": [7],
        },
    },
)
"""A Qwen2.5-VL of 66 M parameters. As in the published models the heads have a shape of their own (64), and one vision
layer in eight attends to the whole picture, the others to windows."""

LONG = Shape(
    "long",
    "qwen2",
    {
        "vocab_size": 4096,
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
)
"""A Qwen2 of 5 M parameters, for cases of many thousand steps."""


class Model(NamedTuple):
    """A checkpoint as this project runs it: float32 on one device, as the peer does."""

    directory: Path
    config: ModelConfig
    params: Params
    processor: Processor
    mesh: Mesh


def write_checkpoint(folder: Path, shape: Shape) -> Path:
    """The directory of the shape's checkpoint under `folder`, written where it is not there yet."""
    version = zlib.crc32(json.dumps([shape.fields, SCALE], sort_keys=True).encode())
    directory = folder / f"{shape.name}-{version:08x}"
    if not directory.is_dir():
        partial = directory.with_suffix(".partial")  # left behind by a run that was stopped while writing
        shutil.rmtree(partial, ignore_errors=True)
        write_random_checkpoint(partial, shape.family, shape.fields, scale=SCALE).rename(directory)
    return directory


def load_model(folder: Path, shape: Shape) -> Model:
    """The shape's model, from its checkpoint under `folder`."""
    directory = write_checkpoint(folder, shape)
    config, mesh = load_config(directory), make_mesh(devices=jax.devices()[:1])
    params = load_params(directory, config, mesh, jnp.float32)
    return Model(directory, config, params, Processor.from_directory(directory), mesh)
