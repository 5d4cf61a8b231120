"""The two ways in which data can be bad: a whole source that cannot be used, and one problem that is left out."""

from __future__ import annotations


class DataError(ValueError):
    """A data source that cannot be used at all; the message says what to do."""


class DroppedProblem(Exception):
    """One problem that takes no part in the run. It is counted and named, never cut or scored.

    Args:
        problem_id: the problem, or the place of its row where it has no id.
        reason: what is wrong, in the same words for every problem that shares the fault: counts go by it.
        detail: what is particular to this one (a path, a size, a library's message).
    """

    def __init__(self, problem_id: str, reason: str, detail: str = "") -> None:
        super().__init__(f"{problem_id}: {reason}" + (f" ({detail})" if detail else ""))
        self.problem_id, self.reason, self.detail = problem_id, reason, detail
