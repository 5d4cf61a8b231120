"""A SentencePiece tokenizer trained on the spot, with the settings of Mistral's."""

from __future__ import annotations

import functools
import io
from pathlib import Path

from sentencepiece import SentencePieceTrainer

from perception_r1_jax.data.geometry_world.conversations import judge_case
from perception_r1_jax.judge.prompts import load_prompt

CONTROL = ("[INST]", "[/INST]")
SYMBOL = "[REFERENCE_DOC_0]"


@functools.cache
def trained(control: bool = False, symbol: bool = False) -> bytes:
    """The content of a `tokenizer.model`: byte-pair encoding with bytes to fall back on, text kept as it is.

    Args:
        control: with `CONTROL` as pieces, as the third of Mistral's tokenizers has them; the first spells them out.
        symbol: with `SYMBOL` as a symbol that text matches, as the third has some.
    """
    cases = [judge_case(index) for index in range(200)]
    lines = [line for case in cases for line in (*case.annotations, *case.response.split("\n"))]
    content = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter([*lines, *load_prompt().system.split("\n")]),
        model_writer=content,
        model_type="bpe",
        vocab_size=600,
        byte_fallback=True,
        split_digits=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        control_symbols=list(CONTROL) if control else [],
        user_defined_symbols=[SYMBOL] if symbol else [],
        num_threads=1,
        minloglevel=2,
    )
    return content.getvalue()


def write_tokenizer(folder: Path, content: bytes) -> Path:
    """A directory with nothing but a `tokenizer.model`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(content)
    return folder
