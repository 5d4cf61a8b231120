"""What became of each reward term in a batch: every status counted, and one warning for each kind of failure."""

from __future__ import annotations

import collections
import logging
from collections.abc import Iterable

logger = logging.getLogger(__name__)

NAMED = 5
"""Problems that a message names; a step at full size has 1,024 responses."""


class Tally:
    """Counts of statuses, and where the failures were.

    Attributes:
        counts: "term/status" -> number of responses.
    """

    def __init__(self):
        self.counts: collections.Counter[str] = collections.Counter()
        self._failures: dict[tuple[str, str], list[tuple[str, str]]] = collections.defaultdict(list)

    def add(self, term: str, status: str, problem_id: str, *, failed: bool, detail: str = "") -> None:
        """Takes in a response's status; `detail` is what else is known of a failure."""
        self.counts[f"{term}/{status}"] += 1
        if failed:
            self._failures[term, status].append((problem_id, detail))

    def warn(self) -> None:
        """Logs each kind of failure once, with its number, the first problems and the first detail."""
        for (term, status), places in self._failures.items():
            ids, (detail, *_) = zip(*places)
            count, reason = len(places), f": {detail}" if detail else ""
            logger.warning("%s reward: %d %s, of the problems %s%s", term, count, status, name_first(ids), reason)


def name_first(problem_ids: Iterable[str]) -> str:
    """The first few different ids, and "..." where there are more."""
    names = list(dict.fromkeys(problem_ids))
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
