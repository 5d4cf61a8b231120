"""A script in the place of another environment's Python, which a benchmark's peer would be run by."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest


def put_in_place(script: str, variable: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Has the variable name an executable file of this text, filled in; the file of {kept}."""
    path, kept = folder / "python", folder / "asked.json"
    path.write_text(script.format(python=sys.executable, kept=str(kept)))
    path.chmod(0o755)
    monkeypatch.setenv(variable, str(path))
    return kept
