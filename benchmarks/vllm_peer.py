"""vLLM as a peer: asked over a pipe, since it needs an environment of its own.

`VLLM_PYTHON` names that environment's Python; without it these cases are left out.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np

from benchmarks.pipe import Pipe
from perception_r1_jax.processing import Processor
from perception_r1_jax.records import Prompt

VARIABLE = "VLLM_PYTHON"


class VllmPeer:
    """vLLM on a checkpoint, in float32 and on all cores, in a process that ends with the `with` block."""

    def __init__(self, directory: Path, processor: Processor, length: int):
        """Starts it; `length` is the most tokens of a prompt and its response."""
        python = os.environ[VARIABLE]
        command = [python, str(Path(__file__).with_name("vllm_side.py")), str(directory), str(length)]
        openmp = Path(python).parent.parent / "lib" / "libiomp5.so"
        preload = {"LD_PRELOAD": str(openmp)} if openmp.is_file() else {}  # as vLLM advises for best performance
        self._pipe = Pipe("vLLM", command, preload)
        self._processor = processor
        self._folder = tempfile.TemporaryDirectory()

    def __enter__(self) -> VllmPeer:
        return self

    def __exit__(self, *error: object) -> None:
        self._pipe.__exit__(*error)
        self._folder.cleanup()

    def side(self, prompts: Sequence[Prompt], samples: int, new_tokens: int) -> Callable[[], np.ndarray]:
        """A run: ids [N, G, C] of responses of `new_tokens` tokens each, drawn as ours."""
        asked = {
            "prompts": [self._ids(prompt) for prompt in prompts],
            "images": [self._pictures(prompt, row) for row, prompt in enumerate(prompts)],
            "samples": samples,
            "new_tokens": new_tokens,
            "banned": list(self._processor.banned_ids),
        }
        line = json.dumps(asked)

        def run() -> np.ndarray:
            return np.array(self._pipe.ask(line)).reshape(len(prompts), samples, new_tokens)

        return run

    def _ids(self, prompt: Prompt) -> list[int]:
        """The prompt's tokens with one for each picture, which vLLM repeats itself."""
        runs = groupby(zip(prompt.tokens.tolist(), prompt.image_slots >= 0), key=lambda pair: pair[1])
        tokens = ([token for token, _ in run][: 1 if picture else None] for picture, run in runs)
        return [token for run in tokens for token in run]

    def _pictures(self, prompt: Prompt, row: int) -> list[str]:
        paths = []
        for index, picture in enumerate(prompt.problem.images):
            path = Path(self._folder.name) / f"{row}-{index}.png"
            path.write_bytes(picture)
            paths.append(str(path))
        return paths
