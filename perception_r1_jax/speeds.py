"""What devices can do."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Speed:
    """What a device does at best, each in units a second.

    Attributes:
        flops: of bfloat16 products.
        memory: bytes from and to its memory.
        links: bytes that it sends to other devices, over all its links together.
    """

    flops: float
    memory: float
    links: float


SPEEDS = {
    # Google Cloud's pages of each TPU version; the links' two directions are counted once.
    "TPU v5 lite": Speed(197e12, 819e9, 200e9),
    "TPU v5": Speed(459e12, 2765e9, 600e9),
    "TPU v6 lite": Speed(918e12, 1640e9, 400e9),
    # NVIDIA's data sheets, SXM, without sparsity.
    "NVIDIA A100-SXM4-80GB": Speed(312e12, 2039e9, 300e9),
    "NVIDIA H100 80GB HBM3": Speed(989e12, 3350e9, 450e9),
    "NVIDIA H200": Speed(989e12, 4800e9, 450e9),
}
"""By `device_kind`. For another device a plan has no times, and a run no utilisation."""
