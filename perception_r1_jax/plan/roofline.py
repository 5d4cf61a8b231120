"""How long a program takes at least, from what it does and what the device can do (Williams et al., 2009)."""

from __future__ import annotations

from typing import NamedTuple

from perception_r1_jax.plan.measure import Measured
from perception_r1_jax.plan.topologies import Target


class Roofline(NamedTuple):
    """Seconds, each of them with the device doing nothing else.

    Attributes:
        compute: of products, in bfloat16; of those that are needed where the program shows fewer: some are in kernels.
        memory: of reading and writing the device's memory.
        links: of sending to other devices.
        mfu: useful operations over those that the devices could do in `seconds`.
    """

    compute: float
    memory: float
    links: float
    mfu: float

    @property
    def seconds(self) -> float:
        """With all three at the same time: the longest."""
        return max(self.compute, self.memory, self.links)

    @property
    def bound(self) -> str:
        """Which of them that is."""
        return max(("compute", "memory", "links"), key=lambda name: getattr(self, name))


def roofline(measured: Measured, target: Target) -> Roofline | None:
    """None where the program or the device's speed is not known."""
    cost, speed = measured.cost, target.speed
    if cost is None or speed is None:
        return None
    done = max(cost.flops, measured.useful_flops / len(target.devices))
    times = (
        done / speed.flops,
        cost.bytes_moved / speed.memory,
        sum(cost.collective_bytes.values()) / speed.links,
    )
    could = len(target.devices) * speed.flops * max(times)
    return Roofline(*times, mfu=measured.useful_flops / could if could else 0.0)
