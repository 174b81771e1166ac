"""F2LLM's training step as its released code does it, on one process, to compare with: not part of the package.

Queries, positives and negatives of a batch are padded to one length and go through the model in one forward, with a mask of
what is not padding; the last token of each is pooled (for an encoder, the mean of them); hard negatives and other rows' positives
have a softmax each; layers are checkpointed; AdamW decays every weight. (F2LLM, run.py and utils.py of its first release.)
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
import transformers

from training.backend import checkpoint_layers

TEMPERATURE = 0.05


class PaddedLoop:
    """One step at a time, on the batches of our own plan."""

    def __init__(
        self,
        folder: str,
        weight_decay: float,
        betas: tuple[float, float],
        clip: float,
        dtype: torch.dtype,
        *,
        pooling: str = "last",
        checkpointing: bool = True,
        device: str = "cpu",
    ) -> None:
        self.model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").to(device)
        if checkpointing:
            checkpoint_layers(self.model)
        self.model.train()
        for module in self.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        self.optimizer = torch.optim.AdamW(self.model.parameters(), weight_decay=weight_decay, betas=betas, fused=True)
        self.clip, self.dtype, self.pooling, self.device = clip, dtype, pooling, device

    def step(self, batch, task: str, lr: float) -> tuple[float, int]:
        """Train on a batch whose rows all have k negatives; return its loss and the tokens that were processed."""
        b, k = batch.negative.shape
        order = np.concatenate([batch.query, batch.positive, batch.negative.ravel()])
        length = int(np.diff(batch.starts)[order].max())
        ids, mask = np.zeros((len(order), length), np.int64), np.zeros((len(order), length), np.int64)
        for row, text in enumerate(order):
            tokens = batch.ids[batch.starts[text] : batch.starts[text + 1]]
            ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
        given, real = torch.from_numpy(ids).to(self.device), torch.from_numpy(mask).to(self.device)
        with torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32):
            states = self.model(input_ids=given, attention_mask=real, use_cache=False).last_hidden_state
        vectors = F.normalize(self._pooled(states, real).float(), dim=-1)
        query, positive, negative = vectors[:b], vectors[b : 2 * b], vectors[2 * b :].view(b, k, -1)
        loss = self._loss(query, positive, negative, task)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.detach()), ids.size

    def _pooled(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if self.pooling == "mean":
            return (states * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
        return states[torch.arange(len(states), device=states.device), mask.sum(1) - 1]

    @staticmethod
    def _loss(query: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor, task: str) -> torch.Tensor:
        candidates = torch.cat([positive[:, None], negative], dim=1)  # (b, 1 + k, dim)
        hard = torch.einsum("bd,bkd->bk", query, candidates) / TEMPERATURE
        loss = F.cross_entropy(hard, torch.zeros(len(query), dtype=torch.long, device=query.device))
        if task == "retrieval":
            loss = loss + F.cross_entropy(query @ positive.T / TEMPERATURE, torch.arange(len(query), device=query.device))
        return loss
