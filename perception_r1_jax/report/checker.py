"""What the report asks of the run's checker, which neither policy nor judge ever sees."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

from perception_r1_jax.errors import UserError
from perception_r1_jax.evaluation import checker
from perception_r1_jax.report.workdir import MissingData, Workdir


def load_checker(workdir: Workdir, functions: Sequence[str] = ("reflected",)) -> ModuleType:
    """The module that `config.evaluation.checker` names, which can say what an ideal judge would: `reflected`.

    Args:
        workdir: of the run.
        functions: what the module must have.

    Raises:
        MissingData: it names none, or one that cannot be used.
    """
    name = workdir.setting("evaluation.checker")
    if not name:
        raise MissingData("This run had no checker beside the judge: its config.evaluation.checker is empty.")
    try:
        return checker.load_checker(name, functions)
    except UserError as error:
        raise MissingData(str(error)) from error
