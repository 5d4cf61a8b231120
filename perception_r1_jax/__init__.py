"""Perception-R1 in JAX: GRPO for Qwen2.5-VL with a visual perception reward from a judge on the mesh."""

import os

# That torch is absent is no news to a project that does without it.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
