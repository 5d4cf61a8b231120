"""The two ways in which data can be bad: a whole source that cannot be used, and one problem that is left out."""

from __future__ import annotations

from perception_r1_jax.errors import UserError


class DataError(UserError):
    """A data source that cannot be used at all; the message says what to do."""


DETAIL_SHOWN = 500
"""Characters of a detail: a picture given as base64 where a path belongs must not fill the log."""


class DroppedProblem(Exception):
    """One problem that takes no part in the run. It is counted and named, never cut or scored.

    Args:
        problem_id: the problem, or the place of its row where it has no id.
        reason: what is wrong, in the same words for every problem that shares the fault: counts go by it.
        detail: what is particular to this one (a path, a size, a library's message).
    """

    def __init__(self, problem_id: str, reason: str, detail: str = "") -> None:
        self.problem_id, self.reason, self.detail = problem_id, reason, _printable(detail)
        super().__init__(f"{_printable(problem_id)}: {self.fault}")

    @property
    def fault(self) -> str:
        """Reason and detail, without the problem's name."""
        return f"{self.reason} ({self.detail})" if self.detail else self.reason


def _printable(text: str) -> str:
    """One line for any log: cut to `DETAIL_SHOWN`, what is not Unicode written out."""
    text = " ".join(text.encode("utf-8", "backslashreplace").decode().split())
    return text if len(text) <= DETAIL_SHOWN else f"{text[:DETAIL_SHOWN]}..."
