"""sentence-transformers' training step with its MultipleNegativesRankingLoss, to compare with: not part of the package.

A column each for anchors, positives and negatives, as its collator makes them; the loss itself merges the columns of passages
into one padded forward. Dropout stays as the model has it, as its trainer leaves it.
"""

from __future__ import annotations

import numpy as np
import torch

from training.backend import checkpoint_layers
from training.data import Batch


class ColumnLoop:
    """One step at a time, on batches whose rows all have k negatives."""

    def __init__(
        self,
        folder: str,
        weight_decay: float,
        betas: tuple[float, float],
        clip: float,
        dtype: torch.dtype,
        *,
        pooling: str = "last",
        max_tokens: int = 512,
        checkpointing: bool = False,
        device: str = "cpu",
    ) -> None:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
        from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

        transformer = Transformer(folder, max_seq_length=max_tokens)
        mode = {"last": "lasttoken"}.get(pooling, pooling)
        parts = [transformer, Pooling(transformer.get_embedding_dimension(), pooling_mode=mode), Normalize()]
        whole = SentenceTransformer(modules=parts, device=device)
        whole.train()
        self.model = transformer.auto_model
        if checkpointing:
            checkpoint_layers(self.model)
        self.loss = MultipleNegativesRankingLoss(whole)
        self.weights = list(whole.parameters())
        self.optimizer = torch.optim.AdamW(self.weights, weight_decay=weight_decay, betas=betas, fused=True)
        self.clip, self.dtype, self.device = clip, dtype, device

    def step(self, batch: Batch, task: str, lr: float) -> tuple[float, int]:
        """Train on a batch; return its loss and the tokens that were processed: the anchors' columns, the others' together."""
        columns = [batch.query, batch.positive, *batch.negative.T]
        features = [{name: value.to(self.device) for name, value in _padded(batch, column).items()} for column in columns]
        widest = max(feature["input_ids"].shape[1] for feature in features[1:])
        with torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32):
            loss = self.loss(features, None)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights, self.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()
        processed = features[0]["input_ids"].numel() + widest * len(batch.query) * (len(columns) - 1)
        return float(loss.detach()), processed


def _padded(batch: Batch, column: np.ndarray) -> dict[str, torch.Tensor]:
    rows = [torch.from_numpy(batch.ids[batch.starts[text] : batch.starts[text + 1]]) for text in column]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long()}
