"""The devices that a plan is for: a TPU topology that need not be there, or this machine's own."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
from collections.abc import Sequence

import jax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from perception_r1_jax.errors import UserError
from perception_r1_jax.inference.reshard import device_memory
from perception_r1_jax.speeds import SPEEDS, Speed

LOCAL = "local"

ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",  # any type that exists: the topology's name says what is compiled for
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no device is touched, so that two plans may be made at a time
}
"""What libtpu asks a TPU machine for, answered where there is none."""

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Target:
    """What is compiled for.

    Attributes:
        name: as the user gave it.
        devices: in the order of the mesh.
        memory: bytes of one device that programs may take, as its compiler says.
        speed: None where it is not known.
    """

    name: str
    devices: Sequence[jax.Device]
    memory: int
    speed: Speed | None

    @property
    def kind(self) -> str:
        """The device's name."""
        return self.devices[0].device_kind

    @property
    def is_tpu(self) -> bool:
        """Whether libtpu compiles for it."""
        return self.devices[0].platform == "tpu"


def find_target(name: str) -> Target:
    """The target by its name: a TPU topology such as "v5e:4x4", or "local".

    Raises:
        UserError: libtpu is not installed, or does not know the topology.
    """
    if name == LOCAL:
        devices = jax.devices()
        memory = device_memory(devices[0])
    else:
        devices = _describe(name)
        memory = _compilers_limit(devices[0])
    return Target(name, devices, memory, SPEEDS.get(devices[0].device_kind))


def _describe(name: str) -> Sequence[jax.Device]:
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"to compile for --topology {name} the package libtpu is needed; it runs without a TPU. "
            "Install it with `pip install -e .[plan]`, or plan for this machine with --topology local."
        )
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"libtpu does not know the topology {name!r}: {str(error).splitlines()[0]} "
            "Give a version and the chips along each side, such as v5e:4x4, v6e:4x4 or v5p:2x2x2."
        ) from error
    if devices[0].device_kind == "TPU v4":
        raise UserError(f"--topology {name}: here a TPU v4 is two devices, and JAX makes no mesh of them. Take v5p.")
    return devices


def _compilers_limit(device: jax.Device) -> int:
    """Bytes that the compiler lets programs have, read from its refusal of one that is far too large."""
    place = NamedSharding(Mesh([device], "x"), PartitionSpec())
    huge = jax.ShapeDtypeStruct((2**42,), "int8", sharding=place)
    try:
        jax.jit(lambda x: x + 1).lower(huge).compile()
    except jax.errors.JaxRuntimeError as error:
        if found := re.search(r"available HBM \(([\d.]+)G\)", str(error)):
            return int(float(found[1]) * GIB)
        raise
    raise RuntimeError(f"a program of 4 TiB compiled for {device.device_kind}, so its memory is not known.")
