"""The records that flow from a problem to a parameter update, in order.

Dimensions, the legend for every shape in this project:

    N prompts in a batch          G responses per prompt (a group)     B = N * G
    L prompt tokens (bucket)      C response tokens (bucket)           T any run of tokens
    W vision windows (bucket)     P numbers in a flattened patch       S = 64 * W patch slots
    M annotations of a problem    V vocabulary                         D hidden size
    H size of a head              R rows of packed conversations

`Problem` and `Prompt` are host records; `PromptBatch` and `TrainBatch` are pytrees of arrays that a
jitted function takes; `Rollout`, `Scores` and `GroupAdvantages` are numpy arrays beside their texts.
Supervised training has a shorter way: `Conversation`, `Example`, `PackedBatch`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

if TYPE_CHECKING:  # inference builds on this module
    from perception_r1_jax.inference.stats import GenerationStats

WINDOW_PATCHES = 64
"""Patches in a full attention window: 112 pixels a side at 14 pixels a patch."""

MERGE_UNIT = 4
"""Patches (2 x 2) that the merger turns into one image token."""

WINDOW_TOKENS = WINDOW_PATCHES // MERGE_UNIT
"""Image tokens that a full window yields."""

IMAGE_MARKER = "<image>"
"""Stands in a question where a picture belongs."""

ImageSource = bytes | Path
"""An encoded picture (PNG, JPEG, ...) or the path of one."""

AnyArray = jax.Array | np.ndarray
"""What a function takes that runs on the records as they come from the host, and inside `jit` alike."""


Leaf = Any
"""An array in a record that jit takes; jax puts shapes, shardings and the like in its place."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem as a data set holds it.

    Attributes:
        problem_id: unique within the data set; random keys and samples files refer to it.
        question: the text, with one `<image>` marker where each picture belongs. Without markers the
            pictures stand before the text.
        images: encoded pictures, or their paths; empty for a text-only problem.
        answer: the ground truth, as written in the data set.
        annotations: M visual facts in words; empty where there are none.
        row: the source row with all its columns, for rewards of the user's own.
    """

    problem_id: str
    question: str
    images: tuple[ImageSource, ...]
    answer: str
    annotations: tuple[str, ...] = ()
    row: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class VisionLayout:
    """The pictures of one prompt, cut into patches and laid out window by window (numpy).

    A window holds up to 8 x 8 neighbouring patches of one picture. Its slots are filled from the front
    and each run of four slots is one 2 x 2 merge unit, so window attention is a reshape and the merger
    another. Windows at a picture's right and lower edge may be partly empty; none crosses two pictures.

    Attributes:
        patches: float32 [W, 64, P], normalised pixels, 0 in empty slots.
        patch_positions: int32 [W, 64, 2], row and column of the patch in its picture.
        patch_valid: bool [W, 64].
        image_ids: int32 [W], which picture of the prompt a window belongs to; -1 for padding.
        token_slots: int32 [K], for each of the prompt's K image tokens in the order of the prompt, the
            merge-unit slot in [0, 16 * W) that its feature comes from.
    """

    patches: np.ndarray
    patch_positions: np.ndarray
    patch_valid: np.ndarray
    image_ids: np.ndarray
    token_slots: np.ndarray


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A problem as the model reads it (numpy, no padding).

    Attributes:
        problem: where it came from.
        tokens: int32 [L], chat template applied, one image-pad id per image token.
        positions: int32 [3, L], M-RoPE positions (temporal, height, width).
        next_position: the position, on all three axes, of the first response token.
        image_slots: int32 [L], slot of the token's image feature in `vision`, -1 at text tokens.
        vision: the pictures, with W = 0 for a text-only prompt.
    """

    problem: Problem
    tokens: np.ndarray
    positions: np.ndarray
    next_position: int
    image_slots: np.ndarray
    vision: VisionLayout


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PromptBatch:
    """N prompts padded to one bucket (L, W). Prompts are padded on the right.

    Attributes:
        tokens: int32 [N, L], pad id after each prompt's end.
        lengths: int32 [N], tokens of each prompt; 0 marks a row that only fills the batch.
        positions: int32 [N, 3, L].
        next_position: int32 [N].
        image_slots: int32 [N, L], as in `Prompt`; -1 at text and padding.
        prompt_ids: uint32 [N], a hash of the problem's id, for random keys.
        patches: float32 [N, W, 64, P].
        patch_positions: int32 [N, W, 64, 2].
        patch_valid: bool [N, W, 64].
        image_ids: int32 [N, W], -1 for padding windows.
    """

    tokens: AnyArray
    lengths: AnyArray
    positions: AnyArray
    next_position: AnyArray
    image_slots: AnyArray
    prompt_ids: AnyArray
    patches: AnyArray
    patch_positions: AnyArray
    patch_valid: AnyArray
    image_ids: AnyArray


FINISH_STOP, FINISH_LENGTH = "stop", "length"


@dataclasses.dataclass(frozen=True)
class Rollout:
    """G responses to each of N prompts (numpy).

    Attributes:
        tokens: int32 [N, G, C], pad id after each response's end.
        mask: bool [N, G, C], true on the tokens of the response, its first stop token included.
        logps: float32 [N, G, C], log-probability of each token under the policy that sampled it, at the
            training temperature and before top-k and top-p; 0 outside the mask.
        finish_reasons: [N][G] of "stop" or "length".
        texts: [N][G] decoded responses without special tokens.
        stats: what drawing them took; None for a rollout that was replayed.
    """

    tokens: np.ndarray
    mask: np.ndarray
    logps: np.ndarray
    finish_reasons: list[list[str]]
    texts: list[list[str]]
    stats: GenerationStats | None = None


@dataclasses.dataclass(frozen=True)
class Scores:
    """The rewards of a rollout (numpy).

    Attributes:
        total: float32 [N, G], weighted sum of the terms; 0 where not valid.
        terms: name -> float32 [N, G], unweighted; NaN where a term has no value for a response.
        valid: bool [N, G], false for a response that takes no part in the update.
        judge_status: [N][G] of a judgement's status ("ok", a failure's reason, or "none" where nothing was asked).
        verdicts: [N][G] of a judgement's verdicts, None where there is none.
        probabilities: [N][G] of the probabilities of a 1, None where the judge did not choose between digits.
        counts: totals over the batch worth logging, by name (failures by reason, time-outs, ...).
    """

    total: np.ndarray
    terms: Mapping[str, np.ndarray]
    valid: np.ndarray
    judge_status: list[list[str]]
    verdicts: list[list[tuple[float, ...] | None]]
    probabilities: list[list[tuple[float, ...] | None]]
    counts: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class GroupAdvantages:
    """Advantages [N, G] float32, and [N] bool: groups whose rewards are all equal and so teach nothing."""

    advantages: np.ndarray
    no_signal: np.ndarray


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainBatch:
    """What one optimizer step consumes.

    Attributes:
        prompts: N prompts; each is used by the G responses of its group.
        responses: int32 [N, G, C].
        mask: bool [N, G, C], tokens that the loss counts; all false for an invalid response.
        advantages: float32 [N, G].
        old_logps: float32 [N, G, C] log-probs before this batch's first update, or None when the batch is
            used for exactly one update: the step's own, stopped, are then the same numbers.
        reference_logps: float32 [N, G, C] under the reference policy, or None without a KL term.
        rollout_logps: float32 [N, G, C] as the sampler reported them, or None; for the correction and the mismatch.
    """

    prompts: PromptBatch
    responses: AnyArray
    mask: AnyArray
    advantages: AnyArray
    old_logps: AnyArray | None = None
    reference_logps: AnyArray | None = None
    rollout_logps: AnyArray | None = None


@dataclasses.dataclass(frozen=True)
class Message:
    """One turn of a conversation: `role` is system, user or assistant; `content` may hold `<image>` markers."""

    role: str
    content: str


@dataclasses.dataclass(frozen=True)
class Conversation:
    """What supervised training learns from: every assistant turn is a response to imitate.

    Attributes:
        conversation_id: unique within the data set.
        images: encoded pictures, or their paths, in the order of the `<image>` markers in the user turns. Without
            markers they stand before the text of the first user turn.
        messages: the turns, a system turn first or none.
    """

    conversation_id: str
    images: tuple[ImageSource, ...]
    messages: tuple[Message, ...]


@dataclasses.dataclass(frozen=True)
class Example:
    """A conversation as the model reads it (numpy, no padding).

    Attributes:
        conversation_id: where it came from.
        tokens: int32 [T], chat template applied, one image-pad id per image token.
        positions: int32 [3, T], M-RoPE positions (temporal, height, width).
        image_slots: int32 [T], slot of the token's image feature in `vision`, -1 at text tokens.
        loss_mask: bool [T], true on the tokens of each assistant turn, the `<|im_end|>` that ends it included.
        vision: the pictures, with W = 0 for a conversation without any.
    """

    conversation_id: str
    tokens: np.ndarray
    positions: np.ndarray
    image_slots: np.ndarray
    loss_mask: np.ndarray
    vision: VisionLayout


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PackedBatch:
    """R rows of T tokens and W windows, several conversations (segments) in each, one after the other.

    Attributes:
        tokens: int32 [R, T], pad id after the last segment's end.
        segment_ids: int32 [R, T], which conversation of the row a token belongs to, from 0; -1 for padding.
        positions: int32 [R, 3, T], from 0 in each segment.
        image_slots: int32 [R, T], slot of the token's image feature among the row's; -1 at text and padding.
        loss_mask: bool [R, T], true on the tokens whose log-probability the loss counts.
        patches: float32 [R, W, 64, P].
        patch_positions: int32 [R, W, 64, 2].
        patch_valid: bool [R, W, 64].
        image_ids: int32 [R, W], which picture of the row a window belongs to, -1 for padding windows.
    """

    tokens: AnyArray
    segment_ids: AnyArray
    positions: AnyArray
    image_slots: AnyArray
    loss_mask: AnyArray
    patches: AnyArray
    patch_positions: AnyArray
    patch_valid: AnyArray
    image_ids: AnyArray
