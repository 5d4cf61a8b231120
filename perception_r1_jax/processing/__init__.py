"""From a problem to what the model reads: pictures, layout, chat template, positions, and padded batches."""

from perception_r1_jax.processing.batching import (
    batch_prompts,
    bucket_size,
    narrow,
    own_bucket,
    pick_bucket,
    pick_buckets,
    window_bucket,
)
from perception_r1_jax.processing.images import PictureError, PictureProcessor
from perception_r1_jax.processing.layout import lay_out_patches
from perception_r1_jax.processing.packing import Row, first_fit, pack_rows
from perception_r1_jax.processing.positions import rope_positions
from perception_r1_jax.processing.prompts import Processor, PromptTooLong, Seen

__all__ = [
    "PictureError",
    "PictureProcessor",
    "Processor",
    "PromptTooLong",
    "Row",
    "Seen",
    "batch_prompts",
    "bucket_size",
    "first_fit",
    "lay_out_patches",
    "narrow",
    "own_bucket",
    "pack_rows",
    "pick_bucket",
    "pick_buckets",
    "rope_positions",
    "window_bucket",
]
