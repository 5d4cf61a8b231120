"""One of two processes that generate on a mesh across both: python -m tests.one_of_two RANK ADDRESS."""

from __future__ import annotations

import json
import signal
import sys

import jax
from rich.console import Console

from perception_r1_jax.inference import Engine, Generated, Sampling
from perception_r1_jax.sharding import make_mesh
from perception_r1_jax.training.stopping import Stopped, StopRequest
from tests import tiny

SIGNALLED, SIGNAL_AT = 1, 4
"""The process that gets a SIGTERM, and at which of its looks."""

SAMPLING = Sampling(40, stop_ids=(tiny.STOP_ID,), pad_id=tiny.PAD_ID, banned_ids=(tiny.IMAGE_ID,))


def make_engine(devices: list[jax.Device]) -> Engine:
    """Of two slots a device."""
    return Engine(tiny.CONFIG, jax.device_get(tiny.params()), make_mesh(devices=devices), slots=2)


def generate(engine: Engine, on_progress) -> Generated:
    """The same responses, wherever the devices are; several waves and stretches of them."""
    prompts = tiny.prompt_batch([20, 7, 24, 3], [1, 0, 1, 0])
    return engine.generate(prompts, 3, SAMPLING, jax.random.key(5), on_progress=on_progress)


def main(rank: int, address: str) -> None:
    """Generates twice, the second time with a signal to one of the two, and prints what came of it."""
    jax.distributed.initialize(address, 2, rank)
    jax.config.update("jax_default_matmul_precision", "highest")
    looks, stopped = [], False
    with StopRequest(Console(stderr=True)) as stop:

        def check(finished: int) -> None:
            looks.append(finished)
            if rank == SIGNALLED and len(looks) == SIGNAL_AT:
                signal.raise_signal(signal.SIGTERM)
            stop.check_waiting()  # must not end one of them alone
            stop.check()

        engine = make_engine(jax.devices())
        tokens = generate(engine, stop.check).tokens.tolist()
        try:
            generate(engine, check)
        except Stopped:
            stopped = True
    print(json.dumps({"tokens": tokens, "looks": len(looks), "stopped": stopped, "received": stop.received}))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
