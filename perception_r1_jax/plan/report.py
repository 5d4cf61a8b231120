"""A plan as text for people and as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from perception_r1_jax.plan.advice import Setting
from perception_r1_jax.plan.measure import ACTIVATIONS, Measured
from perception_r1_jax.plan.programs import KINDS
from perception_r1_jax.plan.roofline import Roofline, roofline
from perception_r1_jax.plan.topologies import GIB, Target

COLUMNS = (*KINDS, ACTIVATIONS)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What was found out.

    Attributes:
        target: the devices.
        layout: where models lie, a line each.
        problems: what keeps the run from starting, whatever its programs take.
        programs: all of them, in their order.
        advice: for each program that does not fit, by name.
        only: how the names of the run's programs begin that were compiled; "" for all of them.
    """

    target: Target
    layout: Sequence[str]
    problems: Sequence[str]
    programs: Sequence[Measured]
    advice: dict[str, Sequence[Setting]]
    only: str

    @property
    def fits(self) -> bool:
        """Whether the run can start, and every program can run."""
        return not self.problems and all(program.fits for program in self.programs)

    @property
    def fullest(self) -> Measured:
        """The program that takes most."""
        return max(self.programs, key=lambda program: program.total)


def as_json(plan: Plan) -> dict[str, Any]:
    """All numbers: bytes, operations a device unless said otherwise, seconds."""
    return {
        "fits": plan.fits,
        "only": plan.only,
        "topology": plan.target.name,
        "device": plan.target.kind,
        "devices": len(plan.target.devices),
        "memory": plan.target.memory,
        "layout": list(plan.layout),
        "problems": list(plan.problems),
        "bytes_per_device": {**plan.fullest.bytes, "total": plan.fullest.total, "program": plan.fullest.name},
        "programs": [_program(program, plan.target) for program in plan.programs],
        "advice": {name: [setting._asdict() for setting in settings] for name, settings in plan.advice.items()},
    }


def _program(measured: Measured, target: Target) -> dict[str, Any]:
    cost, times = measured.cost, roofline(measured, target)
    return {
        "name": measured.name,
        "fits": measured.fits,
        "bytes": {**measured.bytes, "total": measured.total},
        "flops": cost and cost.flops,
        "useful_flops_of_all_devices": measured.useful_flops,
        "bytes_moved": cost and cost.bytes_moved,
        "collective_bytes": cost and cost.collective_bytes,
        "roofline_seconds": times and {"compute": times.compute, "memory": times.memory, "links": times.links},
        "mfu": times and times.mfu,
        "compile_seconds": measured.compile_seconds,
        "refusal": measured.refusal,
        "largest": [{"bytes": size, "array": text} for size, text in measured.largest],
    }


def as_text(plan: Plan) -> str:
    """Three tables, and what to do where something does not fit."""
    target = plan.target
    head = f"{target.name}: {len(target.devices)} x {target.kind}, {target.memory / GIB:.2f} GiB each"
    parts = [
        "\n".join([head, *(f"  {line}" for line in plan.layout)]),
        "GiB a device\n" + _aligned([_memory_head(), *(_memory_row(x) for x in plan.programs)]),
        "A device's work\n" + _aligned([_WORK_HEAD, *(_work_row(x, target) for x in plan.programs)]),
        *_sent(plan),
        *(_shortage(program, plan.advice[program.name]) for program in plan.programs if not program.fits),
        *(f"does not start: {problem}" for problem in plan.problems),
        f"{'fits' if plan.fits else 'DOES NOT FIT'}{_part(plan)}: the fullest program is {plan.fullest.name} with "
        f"{plan.fullest.total / GIB:.2f} of {target.memory / GIB:.2f} GiB",
    ]
    return "\n\n".join(parts)


def _part(plan: Plan) -> str:
    return f" (of the run only {plan.only}...)" if plan.only else ""


def _memory_head() -> list[str]:
    return ["program", *(name.replace("_", " ") for name in COLUMNS), "total", ""]


def _memory_row(measured: Measured) -> list[str]:
    sizes = [f"{measured.bytes[name] / GIB:.2f}" for name in COLUMNS]
    total = f"{'>' if measured.cost is None else ''}{measured.total / GIB:.2f}"
    return [measured.name, *sizes, total, "" if measured.fits else "DOES NOT FIT"]


_WORK_HEAD = ["program", "TFLOP", "GB moved", "GB sent", "seconds", "bound by", "MFU", "compiled in"]


def _work_row(measured: Measured, target: Target) -> list[str]:
    cost, times = measured.cost, roofline(measured, target)
    work = ["-"] * 3
    if cost:
        sent = sum(cost.collective_bytes.values())
        work = [f"{cost.flops / 1e12:.3g}", f"{cost.bytes_moved / 1e9:.3g}", f"{sent / 1e9:.3g}"]
    return [measured.name, *work, *_times(times), f"{measured.compile_seconds:.0f} s"]


def _sent(plan: Plan) -> Iterator[str]:
    """A table of what goes between devices, where anything does."""
    sending = [x for x in plan.programs if x.cost and any(x.cost.collective_bytes.values())]
    kinds = sorted({kind for x in sending for kind in x.cost.collective_bytes})
    rows = [[x.name, *(f"{x.cost.collective_bytes.get(kind, 0) / 1e9:.3g}" for kind in kinds)] for x in sending]
    if sending:
        yield "GB that a device sends\n" + _aligned([["program", *kinds], *rows])


def _times(times: Roofline | None) -> list[str]:
    return [f"{times.seconds:.2g}", times.bound, f"{100 * times.mfu:.1f}%"] if times else ["-"] * 3


def _shortage(measured: Measured, settings: Sequence[Setting]) -> str:
    over = measured.total - measured.memory
    missing = f"lacks {over / GIB:.2f} GiB" if over > 0 else "is refused by the compiler"
    items = sorted(measured.bytes.items(), key=lambda item: -item[1])
    lines = [f"{measured.name} {missing}. What is largest:"]
    lines += [f"  {size / GIB:7.2f} GiB  {name.replace('_', ' ')}" for name, size in items if size > 0.01 * GIB]
    lines += [f"  {size / GIB:7.2f} GiB    of its own: {text}" for size, text in measured.largest]
    if measured.cost is None:
        lines.append(f"  the compiler: {measured.refusal.splitlines()[0]}")
    lines.append("What would free memory:")
    lines += [f"  {_freed(setting)}  {setting.text}{_is_enough(setting, over)}" for setting in settings]
    return "\n".join(lines)


def _freed(setting: Setting) -> str:
    return f"{setting.frees / GIB:7.2f} GiB" if setting.frees else "       some"


def _is_enough(setting: Setting, over: int) -> str:
    return " (enough by itself)" if 0 < over <= setting.frees else ""


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """The first column to the left, all others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = (
        "  ".join(
            cell.rjust(width) if index else cell.ljust(width) for index, (cell, width) in enumerate(zip(row, widths))
        )
        for row in rows
    )
    return "\n".join("  " + line.rstrip() for line in lines)
