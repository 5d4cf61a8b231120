"""A SentencePiece tokenizer (arXiv 1808.06226), read from `tokenizer.model`: that of the Mistral and Llama families.

It answers to the part of a Hugging Face tokenizer's interface that this project uses. Text never becomes a control
token here: only `added_tokens_encoder` names those, and what writes one does so by its id.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from sentencepiece import SentencePieceProcessor
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from perception_r1_jax.errors import UserError

_PIECE = ModelProto.SentencePiece


class PieceTokenizer:
    """The pieces of a `tokenizer.model`, and the tokens that a fine-tuned model has added past them.

    Attributes:
        added_tokens_encoder: control token -> id: the control pieces, the symbols that the model's authors defined
            (text that spells one stays text), and the added tokens.
        leading_space: " " where a space is put in front of every text that is encoded, as SentencePiece does unless its
            model says otherwise; else "".
        special_tokens: what a chat template knows by name, such as `bos_token`.
    """

    def __init__(self, model: bytes, added: Mapping[str, int], named: Mapping[str, str]) -> None:
        """Takes the content of `tokenizer.model`.

        Args:
            model: its content.
            added: tokens past the pieces, and their ids; pieces among them are ignored.
            named: special tokens by name, such as {"pad_token": "<pad>"}; those not named are the model's own.

        Raises:
            DecodeError: no SentencePiece model.
            KeyError: a named token that there is not.
        """
        proto = ModelProto.FromString(model)
        for piece in proto.pieces:
            if piece.type == _PIECE.USER_DEFINED:
                piece.type = _PIECE.CONTROL
        self._pieces = SentencePieceProcessor(model_proto=proto.SerializeToString())
        control = {
            piece.piece: index
            for index, piece in enumerate(proto.pieces)
            if piece.type in (_PIECE.CONTROL, _PIECE.UNKNOWN)
        }
        past = {token: index for token, index in added.items() if index >= len(proto.pieces)}
        self.added_tokens_encoder = control | past
        self.leading_space = " " if proto.normalizer_spec.add_dummy_prefix else ""
        names = {"bos": self._pieces.bos_id(), "eos": self._pieces.eos_id(), "unk": self._pieces.unk_id()}
        names |= {"pad": self._pieces.pad_id()}
        own = {f"{name}_token": proto.pieces[index].piece for name, index in names.items() if index >= 0}
        self.special_tokens = own | dict(named)
        self._ids = {name: self.added_tokens_encoder[token] for name, token in self.special_tokens.items()}

    def __len__(self) -> int:
        return 1 + max(len(self._pieces) - 1, *self.added_tokens_encoder.values())

    @property
    def eos_token_id(self) -> int:
        """The id that ends a response."""
        return self._ids["eos_token"]

    @property
    def pad_token_id(self) -> int:
        """The id that fills rows; that of the end where there is no other, as these families mostly have none."""
        return self._ids.get("pad_token", self.eos_token_id)

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Token ids of text, control tokens spelled out. There are no special tokens to add: templates write them."""
        return self._pieces.encode(text)

    def decode(
        self,
        token_ids: Sequence[int] | np.ndarray,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool = False,
    ) -> str:
        """Text of token ids, as it is; ids that are no token, which a model's vocabulary may have, are left out."""
        control = {index: token for token, index in self.added_tokens_encoder.items()}
        known = (int(index) for index in token_ids if index < len(self._pieces) or int(index) in control)
        texts = []
        for is_control, run in itertools.groupby(known, lambda index: index in control):
            if not is_control:
                texts.append(self._pieces.decode(list(run)))
            elif not skip_special_tokens:
                texts += [control[index] for index in run]
        return "".join(texts)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        chat_template: str,
        tokenize: bool = False,
        add_generation_prompt: bool = False,
    ) -> str:
        """The rendered template. Raises `jinja2.TemplateError`."""
        from transformers.utils.chat_template_utils import render_jinja_template

        rendered, _ = render_jinja_template(
            [list(messages)],
            chat_template=chat_template,
            add_generation_prompt=add_generation_prompt,
            **self.special_tokens,
        )
        return rendered[0]


def read_pieces(path: Path, added: Mapping[str, int], named: Mapping[str, str]) -> PieceTokenizer:
    """The tokenizer in a `tokenizer.model`. Arguments as of `PieceTokenizer`; raises `UserError` naming the file."""
    try:
        return PieceTokenizer(path.read_bytes(), added, named)
    except (DecodeError, RuntimeError) as error:
        raise UserError(f"{path} is no SentencePiece model ({error}). Download it again.") from error
    except KeyError as error:
        raise UserError(f"{path}: special token {error} of tokenizer_config.json is no token of it.") from error
