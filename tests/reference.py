"""transformers + torch on the same checkpoint: the reference of the live parity tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import transformers

from perception_r1_jax.processing import Processor
from perception_r1_jax.records import Prompt


class Reference:
    """Qwen2.5-VL or a text model by transformers, float32, one prompt at a time."""

    def __init__(self, directory: Path, processor: Processor):
        torch.set_num_threads(1)  # with models as small as these more threads only wait for one another, at full load
        self.is_vl = processor.pictures is not None
        architecture = (
            transformers.Qwen2_5_VLForConditionalGeneration if self.is_vl else transformers.AutoModelForCausalLM
        )
        self.model = architecture.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
        self.processor = processor

    def inputs(self, prompt: Prompt, response: np.ndarray | None = None) -> dict[str, torch.Tensor]:
        """What the model takes, with a response appended where one is given."""
        tokens = prompt.tokens if response is None else np.concatenate([prompt.tokens, response])
        ids = torch.from_numpy(tokens.astype(np.int64))[None]
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if self.is_vl:  # without these transformers 5 silently falls back to plain positions
            inputs["mm_token_type_ids"] = (ids == self.model.config.image_token_id).to(torch.int32)
        if prompt.problem.images:
            cut = [self.processor.pictures(picture) for picture in prompt.problem.images]
            inputs["pixel_values"] = torch.from_numpy(np.concatenate([pixels for pixels, _ in cut]))
            inputs["image_grid_thw"] = torch.from_numpy(np.stack([grid for _, grid in cut]).astype(np.int64))
        return inputs

    def logits(self, prompt: Prompt, response: np.ndarray | None = None) -> torch.Tensor:
        """[T, V], with gradient."""
        return self.model(**self.inputs(prompt, response)).logits[0]

    def greedy(self, prompt: Prompt, new_tokens: int, banned_ids: tuple[int, ...]) -> list[int]:
        """Token ids that `generate` gives greedily, repetition penalty off."""
        out = self.model.generate(
            **self.inputs(prompt),
            max_new_tokens=new_tokens,
            do_sample=False,
            repetition_penalty=1.0,
            suppress_tokens=list(banned_ids),
        )
        return out[0, len(prompt.tokens) :].tolist()

    def blocks(self, prompt: Prompt) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
        """Input and output of every block, recorded during one forward pass: {"decoder": [...], "vision": [...]}."""
        parts = {"decoder": self.model.get_decoder().layers}
        if self.is_vl:
            parts["vision"] = self.model.model.visual.blocks
        record: dict[str, list] = {name: [] for name in parts}
        hooks = []
        for name, layers in parts.items():

            def keep(_, args, kwargs, output, name=name):
                entered = args[0] if args else kwargs["hidden_states"]
                left = output[0] if isinstance(output, tuple) else output
                record[name].append((entered.detach().numpy(), left.detach().numpy()))

            hooks += [layer.register_forward_hook(keep, with_kwargs=True) for layer in layers]
        with torch.no_grad():
            self.model(**self.inputs(prompt))
        for hook in hooks:
            hook.remove()
        return record
