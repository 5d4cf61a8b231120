"""A smaller model in the place of the benchmarks' own, for tests that only see that everything runs."""

from __future__ import annotations

from benchmarks.shape import STANDARD, Shape

LAYERS = 3
SMALL = Shape(
    "small",
    STANDARD.family,
    {
        **STANDARD.fields,
        "vocab_size": 4096,
        "num_hidden_layers": LAYERS,
        "vision_config": {**STANDARD.fields["vision_config"], "depth": 2, "fullatt_block_indexes": [1]},
    },
)
