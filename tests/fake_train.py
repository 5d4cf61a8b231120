"""Stands for scripts/train.py: takes the working directory of a finished run from where a test has put it.

FAKE_TRAIN names a folder with `finished/NAME` for each run, where `calls` gets a line for each start and `session` the
session's id. A file there makes the training behave otherwise: `crash`, it ends with status 3; `signal`, it sends the
test SIGTERM, is told to stop and leaves only `run.json`; `signal_late`, likewise, but it is finished before it stops.
"""

import os
import shutil
import signal
import sys
import time
from pathlib import Path


def stop(number, frame):
    """As a training does: what is done is saved, and the status is 0."""
    with (FOLDER / "calls").open("a") as calls:
        calls.write("stopped\n")
    if (FOLDER / "signal_late").exists():
        shutil.copytree(FOLDER / "finished" / WORKDIR.name, WORKDIR, dirs_exist_ok=True)
    sys.exit(0)


FOLDER = Path(os.environ["FAKE_TRAIN"])
WORKDIR = Path(sys.argv[sys.argv.index("--workdir") + 1])
with (FOLDER / "calls").open("a") as calls:
    calls.write(" ".join([WORKDIR.name, *(word for word in sys.argv if word.startswith("--config."))]) + "\n")
(FOLDER / "session").write_text(str(os.getsid(0)))
WORKDIR.mkdir(parents=True, exist_ok=True)
shutil.copy(FOLDER / "finished" / WORKDIR.name / "run.json", WORKDIR)
if (FOLDER / "crash").exists():
    sys.exit(3)
if (FOLDER / "signal").exists() or (FOLDER / "signal_late").exists():
    signal.signal(signal.SIGTERM, stop)
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(30)
shutil.copytree(FOLDER / "finished" / WORKDIR.name, WORKDIR, dirs_exist_ok=True)
