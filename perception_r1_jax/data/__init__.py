"""Data sets and their formats, and the scan for bad rows. The input pipeline, `data.pipeline`, brings in grain."""

from perception_r1_jax.data.annotations import Annotations, render_annotations
from perception_r1_jax.data.conversations import load_conversations
from perception_r1_jax.data.errors import DataError, DroppedProblem
from perception_r1_jax.data.key_info import format_key_info, parse_key_info
from perception_r1_jax.data.load import load_problems
from perception_r1_jax.data.scan import ScanReport

__all__ = [
    "Annotations",
    "DataError",
    "DroppedProblem",
    "ScanReport",
    "format_key_info",
    "load_conversations",
    "load_problems",
    "parse_key_info",
    "render_annotations",
]
