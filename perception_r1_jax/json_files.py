"""JSON objects in files: configs of models, records of runs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perception_r1_jax.errors import UserError


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; empty where there is no file.

    Raises:
        UserError: the file is no JSON, or holds something else.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({error}). Repair or remove the file.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: a {type(content).__name__}, not a JSON object.")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes indented JSON with a line end, as the published files have it: whole, in the place of an older file."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(temporary, path)
