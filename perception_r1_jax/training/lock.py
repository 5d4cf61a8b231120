"""A folder in which one process works at a time."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import TextIO

from perception_r1_jax.errors import UserError


def lock_folder(folder: Path, name: str) -> TextIO:
    """Takes a folder for this process, until the file that it returns is closed or the process ends.

    A child that inherits the file's descriptor has the folder as well. So one that outlives this process, as after a
    kill, keeps others from it.

    Args:
        folder: made where it does not exist.
        name: of the setting that says it, for the message.

    Raises:
        UserError: another process has the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / ".lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise UserError(
            f"another process is training in {folder}. Wait for its end or stop it, or choose another {name}."
        ) from error
    except OSError:
        pass  # network storage may know no locks: there nothing keeps a second process out
    return file
