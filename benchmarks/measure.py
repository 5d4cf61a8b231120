"""Two sides timed in turn, what comes of it, and the command line that all benchmarks have."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
CHECKPOINTS = REPOSITORY / "runs" / "benchmarks"
PACKAGES = ("jax", "jaxlib", "numpy", "torch", "transformers")


@dataclasses.dataclass(frozen=True)
class Case:
    """A line of the result.

    Attributes:
        case: its name.
        ours, peer: what was measured, in `unit`; peer is None where there is none.
        unit: of both.
        ratio: above 1 where ours is better; None without a peer.
    """

    case: str
    ours: float
    peer: float | None
    unit: str
    ratio: float | None


Workload = Callable[[Path, bool], list[Case]]
"""From the folder of checkpoints, and whether to be quick, to the cases measured."""


def compare(case: str, unit: str, ours: float, peer: float | None = None, *, less_is_better: bool = False) -> Case:
    """The case of two numbers."""
    if peer is None:
        return Case(case, ours, None, unit, None)
    return Case(case, ours, peer, unit, peer / ours if less_is_better else ours / peer)


def throughput(case: str, unit: str, work: float, ours: Sequence[float], peer: Sequence[float] | None = None) -> Case:
    """The case of two sides that did the same work, from the seconds of their runs: work over the median."""
    rate = [None if seconds is None else work / statistics.median(seconds) for seconds in (ours, peer)]
    return compare(case, unit, *rate)


def interleave(
    sides: Mapping[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    warm: Mapping[str, Callable[[], object]] | None = None,
) -> dict[str, list[float]]:
    """Seconds of each run of each side, which are printed as they come.

    Every side is warmed up once, which is not timed: by a whole run, or by what `warm` has for it. Then they take
    turns, every second round in reverse order, so that a machine that becomes slower, and what one side leaves in the
    caches, hit all alike.
    """
    for name, run in (warm or sides).items():
        print(f"  {name:18} warms up", flush=True)
        run()
    seconds = {name: [] for name in sides}
    for turn in range(rounds):
        for name in list(sides)[:: -1 if turn % 2 else 1]:
            start = clock()
            sides[name]()
            seconds[name].append(clock() - start)
            print(f"  {name:18} {seconds[name][-1]:9.2f} s   round {turn + 1} of {rounds}", flush=True)
    return seconds


@functools.cache
def device() -> tuple[str, str]:
    """Platform and kind of the device that ours runs on, such as ("gpu", "NVIDIA H100 80GB HBM3").

    A process of its own is asked: the first to use a TPU keeps it from sides that have processes of their own.
    """
    ask = "import jax; device = jax.devices()[0]; print(device.platform); print(device.device_kind)"
    out = subprocess.run([sys.executable, "-c", ask], stdout=subprocess.PIPE, text=True, check=True).stdout
    name, kind = out.splitlines()
    return name, kind


def has_peer(there: bool) -> bool:
    """Whether a peer that is there is timed: only where ours runs on a CPU, as peers do. Says so where it is not."""
    name, kind = device()
    if there and name != "cpu":
        print(f"  no peer: it would run on the CPU, and ours runs on {kind}", flush=True)
    return there and name == "cpu"


def machine() -> dict[str, str]:
    """What the numbers depend on beside the code: device, processor, cores, versions, settings of XLA and malloc."""
    return {
        "device": device()[1],
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        **{name: os.environ.get(name, "") for name in ("XLA_FLAGS", "GLIBC_TUNABLES")},
    }


def run(workloads: Mapping[str, Workload], description: str, argv: Sequence[str] | None = None) -> None:
    """Reads the command line, runs the workloads one after the other, prints their cases and writes them as JSON."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="little work, to see that everything runs: no numbers")
    parser.add_argument("--json", type=Path, metavar="OUT", help="file to write the list of cases to")
    parser.add_argument("--only", choices=workloads, help="run this workload alone")
    parser.add_argument(
        "--checkpoints", type=Path, default=CHECKPOINTS, metavar="DIR", help="where the random models are kept"
    )
    args = parser.parse_args(argv)
    for name, value in machine().items():
        print(f"{name:12} {value}")
    cases: list[Case] = []
    for name in [args.only] if args.only else workloads:
        found = workloads[name](args.checkpoints, args.quick)
        for case in found:
            print(line(case), flush=True)
        cases += found
        if args.json:  # after each, so that a run that is stopped leaves what it found
            args.json.write_text(json.dumps([dataclasses.asdict(case) for case in cases], indent=1) + "\n")


def line(case: Case) -> str:
    """A case for a reader."""
    beside = "" if case.peer is None else f"   peer {case.peer:12,.2f}   ratio {case.ratio:6.2f}"
    return f"{case.case:20} ours {case.ours:12,.2f}{beside}   {case.unit}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [row for row in info.read_text().splitlines() if row.startswith("model name")] if info.is_file() else []
    return names[0].partition(":")[2].strip() if names else platform.processor()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
