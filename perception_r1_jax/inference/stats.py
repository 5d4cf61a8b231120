"""What a generation took."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager


@dataclasses.dataclass
class GenerationStats:
    """Times and counts of one call of the engine, or of several one after the other, which `+` makes of theirs.

    Attributes:
        vision, prefill, decode, host: seconds; encoding pictures and looking up tokens, running prompts, running
            responses, and everything that the host did between.
        tokens: that were kept.
        decoded: tokens that decoding steps gave and that were kept: all but the first of each response.
        steps: slots of all decoding steps, the idle ones included.
        preempted: times that a sequence gave up its place for want of pages, and was begun again later.
        cache_bytes: of all keys and values, over all devices; of several calls the most.
        prompt_bytes: those of the prompts among them; likewise.
    """

    vision: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    host: float = 0.0
    tokens: int = 0
    decoded: int = 0
    steps: int = 0
    preempted: int = 0
    cache_bytes: int = 0
    prompt_bytes: int = 0

    def __add__(self, other: GenerationStats) -> GenerationStats:
        sums = {name: value + getattr(other, name) for name, value in vars(self).items()}
        most = {name: max(getattr(self, name), getattr(other, name)) for name in ("cache_bytes", "prompt_bytes")}
        return GenerationStats(**sums | most)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Adds the seconds within to a stage."""
        started = time.perf_counter()
        yield
        setattr(self, stage, getattr(self, stage) + time.perf_counter() - started)

    @property
    def seconds(self) -> float:
        """All stages together."""
        return self.vision + self.prefill + self.decode + self.host

    @property
    def utilisation(self) -> float:
        """Share of the slots of all decoding steps that gave a token; 1 where there was no such step."""
        return self.decoded / self.steps if self.steps else 1.0

    def metrics(self) -> dict[str, float]:
        """Numbers to log, by name."""
        return {
            **{f"{stage}_seconds": getattr(self, stage) for stage in ("vision", "prefill", "decode", "host")},
            "tokens_per_second": self.tokens_per_second,
            "slot_utilisation": self.utilisation,
            "preempted": float(self.preempted),
            "cache_gib": self.cache_bytes / 2**30,
        }

    @property
    def tokens_per_second(self) -> float:
        """Of responses."""
        return self.tokens / self.seconds if self.seconds else 0.0
