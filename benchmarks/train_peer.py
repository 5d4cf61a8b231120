"""The peer of the train step: the same GRPO update by transformers and torch, a row for each response."""

from __future__ import annotations

import numpy as np
import torch
from ml_collections import ConfigDict

from benchmarks.peer import Peer
from perception_r1_jax.records import Prompt


class TrainPeer:
    """One update after another of the whole model.

    Args:
        peer: the model.
        config: the run's that ours has.
        fused: AdamW as one kernel.
    """

    def __init__(self, peer: Peer, config: ConfigDict, *, fused: bool):
        self.peer, self.config = peer, config
        self.model = peer.model.train()
        optimizer = config.optimizer
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=optimizer.learning_rate,
            betas=(optimizer.b1, optimizer.b2),
            eps=optimizer.eps,
            weight_decay=optimizer.weight_decay,
            fused=fused,
        )

    def batch(self, prompts: list[Prompt], responses: np.ndarray, advantages: np.ndarray) -> dict[str, torch.Tensor]:
        """Rows of prompt and response, and the advantages; responses [N, G, C] have their full length."""
        n, g, c = responses.shape
        rows = self.peer.inputs([prompt for prompt in prompts for _ in range(g)])
        rows["input_ids"] = torch.cat(
            [rows["input_ids"], torch.from_numpy(responses.reshape(n * g, c).astype(np.int64))], 1
        )
        for name in ("attention_mask", "mm_token_type_ids"):
            more = torch.full((n * g, c), int(name == "attention_mask"), dtype=rows[name].dtype)
            rows[name] = torch.cat([rows[name], more], 1)
        return rows | {"advantages": torch.from_numpy(advantages.reshape(-1, 1))}

    def step(self, batch: dict[str, torch.Tensor]) -> float:
        """One update with the clipped loss, each response's tokens averaged; the loss."""
        rows = {name: x for name, x in batch.items() if name != "advantages"}
        advantages, grpo = batch["advantages"], self.config.grpo
        count = self.config.rollout.response_buckets[-1]
        logits = self.model(**rows, use_cache=False, logits_to_keep=count + 1).logits[:, :-1]
        targets = rows["input_ids"][:, -count:]
        logps = torch.log_softmax(logits.float(), -1).gather(-1, targets[..., None])[..., 0]
        ratio = torch.exp(logps - logps.detach())
        clipped = ratio.clamp(1 - grpo.clip_low, 1 + grpo.clip_high)
        loss = torch.maximum(-advantages * ratio, -advantages * clipped).mean()
        loss.backward()
        self.norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimizer.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())
