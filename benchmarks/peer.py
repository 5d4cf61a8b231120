"""The peer: transformers and torch on the same checkpoint, in float32 and on all cores, as its users run it."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import DynamicCache

from perception_r1_jax.processing import Processor
from perception_r1_jax.records import Prompt


class Peer:
    """Qwen2.5-VL by transformers, with torch's fused attention."""

    def __init__(self, directory: Path, processor: Processor):
        torch.set_num_threads(os.cpu_count())
        transformers.utils.logging.disable_progress_bar()
        model = transformers.Qwen2_5_VLForConditionalGeneration
        self.model = model.from_pretrained(directory, dtype=torch.float32, attn_implementation="sdpa").eval()
        self.processor = processor

    def inputs(self, prompts: Sequence[Prompt]) -> dict[str, torch.Tensor]:
        """What the model takes, prompts padded on the left."""
        longest = max(len(prompt.tokens) for prompt in prompts)
        ids = torch.full((len(prompts), longest), self.processor.pad_id)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt.tokens) :] = torch.from_numpy(prompt.tokens.astype(np.int64))
            mask[row, longest - len(prompt.tokens) :] = 1
        inputs = {"input_ids": ids, "attention_mask": mask}
        # Without these transformers 5 silently falls back to plain positions.
        inputs["mm_token_type_ids"] = (ids == self.model.config.image_token_id).to(torch.int32)
        cut = [self.processor.pictures(picture) for prompt in prompts for picture in prompt.problem.images]
        if cut:
            inputs["pixel_values"] = torch.from_numpy(np.concatenate([pixels for pixels, _ in cut]))
            inputs["image_grid_thw"] = torch.from_numpy(np.stack([grid for _, grid in cut]).astype(np.int64))
        return inputs

    @torch.inference_mode()
    def generate(
        self, inputs: dict[str, torch.Tensor], samples: int, new_tokens: int, temperature: float = 1.0, **more
    ) -> np.ndarray:
        """Exactly `new_tokens` token ids [N * samples, T] of each sample, drawn as ours: no cut, no penalty."""
        out = self.model.generate(
            **inputs,
            **more,
            num_return_sequences=samples,
            do_sample=True,
            temperature=temperature,
            top_k=0,
            top_p=1.0,
            repetition_penalty=1.0,
            suppress_tokens=list(self.processor.banned_ids),
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            eos_token_id=list(self.processor.stop_ids),
            pad_token_id=self.processor.pad_id,
        )
        return out[:, inputs["input_ids"].shape[1] :].numpy()

    @torch.inference_mode()
    def generate_shared(
        self, inputs: dict[str, torch.Tensor], samples: int, new_tokens: int, temperature: float = 1.0
    ) -> np.ndarray:
        """As `generate`, but each prompt is prefilled once, by hand, and its cache repeated for the samples.

        The last token of a prompt is left to `generate`, which needs one to start from.
        """
        texts = {name: inputs[name] for name in ("input_ids", "attention_mask", "mm_token_type_ids")}
        before_last = {name: x[:, :-1] for name, x in texts.items()}
        cache = self.model(**{**inputs, **before_last}, use_cache=True, logits_to_keep=1).past_key_values
        cache.batch_repeat_interleave(samples)
        return self.generate(texts, samples, new_tokens, temperature, past_key_values=cache)

    @torch.inference_mode()
    def prefix(self, inputs: dict[str, torch.Tensor], shared: int) -> DynamicCache:
        """The cache of the first `shared` tokens, which all of these texts begin with."""
        before = {name: x[:1, :shared] for name, x in inputs.items()}
        return self.model(**before, use_cache=True, logits_to_keep=1).past_key_values

    @torch.inference_mode()
    def generate_behind(
        self, inputs: dict[str, torch.Tensor], prefix: DynamicCache, new_tokens: int, temperature: float = 1.0
    ) -> np.ndarray:
        """As `generate` with texts of one length that begin with what `prefix` has, which stays as it is."""
        cache = copy.deepcopy(prefix)
        cache.batch_repeat_interleave(len(inputs["input_ids"]))
        return self.generate(inputs, 1, new_tokens, temperature, past_key_values=cache)
