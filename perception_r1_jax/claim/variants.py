"""The variants of a run that the ablation compares: each sets a few fields of the config otherwise."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

FULL, PLAIN = "visual", "accuracy_only"
"""The two that the claim is about."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """One variant.

    Attributes:
        about: what it is, in words.
        fields: dotted names of config fields and their values.
        seeds: of its runs; runs of one seed see the same problems in the same order.
    """

    about: str
    fields: Mapping[str, Any]
    seeds: tuple[int, ...] = (0, 1)


VARIANTS = {
    FULL: Variant("the full recipe", {}, (0, 1, 2, 3, 4)),
    PLAIN: Variant("no visual reward and no judge", {"reward.visual_weight": 0.0, "judge.path": ""}, (0, 1, 2, 3, 4)),
    "no_repetition": Variant("no repetition penalty", {"reward.repetition_weight": 0.0}),
    "gamma_0.3": Variant("weight 0.3 on the visual reward", {"reward.visual_weight": 0.3}),
    "gamma_0.7": Variant("weight 0.7 on the visual reward", {"reward.visual_weight": 0.7}),
    "flipped_20": Variant("20% of the judge's verdicts turned round at random", {"judge.flip_probability": 0.2}),
}


def changed_fields(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that a variant sets otherwise than a config (dotted names); none where the two are the same run."""
    return {field: value for field, value in VARIANTS[name].fields.items() if config[field] != value}
