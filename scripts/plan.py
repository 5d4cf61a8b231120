"""Says whether a run fits on a machine and what it costs there, before anybody rents it.

    python scripts/plan.py --config configs/NAME.py --topology v5e:4x4 [--json OUT] [--config.a.b=VALUE ...]

Compiles every program of the run from shapes alone, for a TPU topology (v5e:4x4, v6e:4x4, v5p:2x2x2, ...) that need not
be there, or for the devices of this machine (local). Exits with status 0 if all of it fits, and with 2 if it does not.
Models need not be there either: a folder with a config.json, or a published name, is enough. `--only train` compiles
the programs alone whose names begin so.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from absl import app, flags
from ml_collections import config_flags

from perception_r1_jax.command_line import flags_parser

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file; --config.a.b=VALUE overrides a field of it.")
TOPOLOGY = flags.DEFINE_string("topology", None, "v5e:4x4, v6e:4x4, v5p:2x2x2, ... or local: this machine.")
JSON = flags.DEFINE_string("json", None, "File for all numbers.")
ONLY = flags.DEFINE_string("only", "", "Compile only the programs whose names begin so: train, rollout/decode, ...")
flags.mark_flags_as_required(["config", "topology"])

NOT_FITTING = 2
"""Exit status."""


def main(argv: list[str]) -> None:
    """Plans, prints and exits."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; set fields as --config.a.b=VALUE")
    if JSON.value and not Path(JSON.value).absolute().parent.is_dir():
        raise SystemExit(f"error: --json {JSON.value}: its folder does not exist; make it, or name another")
    if TOPOLOGY.value != "local":
        os.environ["JAX_PLATFORMS"] = "cpu"  # compile for a TPU, and touch none
    from perception_r1_jax.config import resolve
    from perception_r1_jax.errors import UserError
    from perception_r1_jax.plan.make import make_plan
    from perception_r1_jax.plan.report import as_json, as_text

    def tell(measured):
        print(f"compiled {measured.name} in {measured.compile_seconds:.0f} s", file=sys.stderr, flush=True)

    try:
        plan = make_plan(resolve(CONFIG.value, paths=False), TOPOLOGY.value, tell, only=ONLY.value)
    except (UserError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    print(as_text(plan))
    if JSON.value:
        Path(JSON.value).write_text(json.dumps(as_json(plan), indent=2) + "\n")
    sys.exit(0 if plan.fits else NOT_FITTING)


if __name__ == "__main__":
    app.run(main, flags_parser=flags_parser("perception_r1_jax/config.py"))
