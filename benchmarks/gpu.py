"""What one NVIDIA GPU gives: the figures of `benchmarks/gpu.sh`, each row appended to results.md in the folder OUT.

    python benchmarks/gpu.py OUT [PART ...]        PART: machine models train minilm encode search profile start

Each part has a time limit; one that fails or takes longer gives a row that says so, and the next part runs.

Models have random weights in the shapes of Qwen3-0.6B and of all-MiniLM-L6-v2; lengths of texts are drawn as in retrieval data.
Ours and the peers do the same work on the same tokens, one after the other in one process. `GPU=0` runs everything with tiny
shapes on the CPU, to show that the script works; it measures nothing then.
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import statistics
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import transformers
from column_loop import ColumnLoop
from f2llm_loop import PaddedLoop

from curation.core.errors import is_out_of_memory
from curation.recipe.settings import Train
from training.backend import Torch
from training.data import Batch
from training.model.compile import compile_layers
from training.model.encode import load_encoder
from training.model.load import load_model
from training.step import PEAKS, add_gradients

ON_GPU = os.environ.get("GPU") != "0"
DEVICE, DTYPE = ("cuda", torch.bfloat16) if ON_GPU else ("cpu", torch.float32)
WORDS = 2_000  # of the synthetic texts; each is one token
SEED, LR = 42, 1e-5
FAILED: list[str] = []  # rows with an error
STEPS = 4 if ON_GPU else 1  # timed, after as many for warming up
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
SHAPES = {  # all in the sizes of their config.json, except the vocabulary of MiniLM's tokenizer
    "qwen3-0.6b": lambda: (
        transformers.Qwen3Config(
            vocab_size=151_936,
            hidden_size=1_024,
            intermediate_size=3_072,
            num_hidden_layers=28,
            num_attention_heads=16,
            num_key_value_heads=8,
            head_dim=128,
            max_position_embeddings=32_768,
            tie_word_embeddings=True,
        )
        if ON_GPU
        else transformers.Qwen3Config(vocab_size=2_100, num_key_value_heads=2, head_dim=8, **SMALL)
    ),
    "minilm": lambda: (
        transformers.BertConfig(
            vocab_size=30_522, hidden_size=384, intermediate_size=1_536, num_hidden_layers=6, num_attention_heads=12
        )
        if ON_GPU
        else transformers.BertConfig(vocab_size=2_100, **SMALL)
    ),
}
POOLING = {"qwen3-0.6b": "last", "minilm": "mean"}
# Tuples of a step: without checkpointing, Qwen3's shape keeps 2.3 MB for each token.
TUPLES = {"qwen3-0.6b": 24, "minilm": 256} if ON_GPU else {"qwen3-0.6b": 4, "minilm": 4}
NEGATIVES = 7
MAX_TOKENS = {"qwen3-0.6b": 512, "minilm": 256} if ON_GPU else {"qwen3-0.6b": 32, "minilm": 32}


def machine(out: Path) -> None:
    """Print versions and the card's two ceilings: matrix products in bfloat16 and bytes copied."""
    versions = [f"torch {torch.__version__}", f"transformers {transformers.__version__}", f"Python {sys.version.split()[0]}"]
    if not ON_GPU:
        return add(out, "machine", "CPU, tiny shapes: shows that the script works and measures nothing", *versions)
    found = torch.cuda.get_device_properties(0)
    left = torch.randn(8192, 8192, device=DEVICE, dtype=DTYPE)
    product = 2 * 8192**3 / seconds_of(lambda: left @ left, 20)
    copied = torch.empty(1 << 32, dtype=torch.uint8, device=DEVICE)
    moved = 2 * (1 << 31) / seconds_of(lambda: copied[1 << 31 :].copy_(copied[: 1 << 31]), 20)
    add(out, "machine", f"{found.name}, {found.total_memory / 2**30:.0f} GiB, capability {found.major}.{found.minor}", *versions)
    add(out, "ceilings", f"{product / 1e12:.0f} TFLOP/s bfloat16 matrix product, {moved / 1e12:.2f} TB/s copied")


def models(out: Path) -> None:
    """Write a folder for each shape: random weights in float32, and a tokenizer that has a token for each word."""
    for name, make in SHAPES.items():
        torch.manual_seed(SEED)
        with torch.device(DEVICE):
            model = transformers.AutoModel.from_config(make())
        model.to("cpu").save_pretrained(folder_of(out, name))
        tokenizer(decoder=POOLING[name] == "last").save_pretrained(folder_of(out, name))


def tokenizer(decoder: bool) -> transformers.PreTrainedTokenizerFast:
    """Return a tokenizer of whole words; a decoder's has an end token, an encoder's [CLS] and [SEP]."""
    from tokenizers import Tokenizer, pre_tokenizers, processors
    from tokenizers import models as kinds

    special = ["<|end|>", "[UNK]"] if decoder else ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = {word: number for number, word in enumerate([*special, *(f"w{n}" for n in range(WORDS))])}
    made = Tokenizer(kinds.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if decoder:
        made.post_processor = processors.TemplateProcessing(single="$A <|end|>", special_tokens=[("<|end|>", 0)])
        return transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>", pad_token="<|end|>")
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **names)


def train(out: Path, shape: str = "qwen3-0.6b") -> None:
    """Compare training steps, with checkpointed layers and without; a trainer that does not fit says so."""
    batches = [batch_of(shape, seed) for seed in range(2)]
    folder = str(folder_of(out, shape))
    rule = Train(model=folder, batch=TUPLES[shape], negatives=NEGATIVES, max_tokens=MAX_TOKENS[shape], lr=LR)
    settings = (folder, rule.weight_decay, rule.betas, rule.clip, DTYPE)
    for checkpointing in (True, False):
        one = rule.model_copy(update={"checkpointing": checkpointing})
        saved = {"pooling": POOLING[shape], "checkpointing": checkpointing, "device": DEVICE}
        trainers: dict[str, Callable[[], Callable]] = {
            "ours": lambda one=one: _our_step(out, shape, one),
            "F2LLM's loop": lambda saved=saved: PaddedLoop(*settings, **saved).step,
            "sentence-transformers": lambda saved=saved: ColumnLoop(*settings, max_tokens=MAX_TOKENS[shape], **saved).step,
        }
        for trainer, make in trainers.items():
            with measured(out, f"train {shape}", f"{trainer}, checkpointing {'yes' if checkpointing else 'no'}") as note:
                step = make()
                for batch in batches:
                    step(batch, batch.task, LR)
                spent = seconds_of(lambda step=step: [step(batch, batch.task, LR) for batch in batches], STEPS)
                tokens = sum(len(batch.ids) for batch in batches)
                note += [f"{tokens / spent:,.0f} useful tokens/s", *mfu(out, shape, tokens / spent)]
            step = None  # the next trainer needs its memory


def encode(out: Path) -> None:
    """Compare encoding from texts to vectors on the host: ours and sentence-transformers, both in bfloat16 and in float32."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    for dtype in (torch.bfloat16, torch.float32):
        for shape, count in {"qwen3-0.6b": 8_000, "minilm": 24_000}.items():
            count = count if dtype == torch.bfloat16 else count // 6
            lengths = lengths_of(np.random.default_rng(SEED), count if ON_GPU else 50, MAX_TOKENS[shape] - 2, 130)
            texts, tokens, folder = texts_of(lengths), int(lengths.sum()), str(folder_of(out, shape))
            name = str(dtype).removeprefix("torch.")
            vectors: dict[str, np.ndarray] = {}
            with measured(out, f"encode {shape}", f"ours, {name}") as note:
                ours = load_encoder(folder, dtype=name, device=DEVICE, max_tokens=MAX_TOKENS[shape], prompt="none")
                ours.prepare_for(10_000_000)
                ours.encode(texts[:1024])
                spent = seconds_of(lambda ours=ours, t=texts, v=vectors: v.update(ours=ours.encode(t)), 1)
                note.append(f"{tokens / spent:,.0f} tokens/s")
            with measured(out, f"encode {shape}", f"sentence-transformers, {name}") as note:
                body = Transformer(folder, max_seq_length=MAX_TOKENS[shape], model_kwargs={"dtype": dtype})
                mode = {"last": "lasttoken"}.get(POOLING[shape], POOLING[shape])
                peer = SentenceTransformer(
                    modules=[body, Pooling(body.get_embedding_dimension(), pooling_mode=mode), Normalize()], device=DEVICE
                )
                peer.encode(texts[:1024], batch_size=128)
                spent = seconds_of(lambda p=peer, t=texts, v=vectors: v.update(peer=p.encode(t, batch_size=128)), 1)
                note.append(f"{tokens / spent:,.0f} tokens/s")
            if len(vectors) == 2:
                cosines = (vectors["ours"] * vectors["peer"]).sum(1)
                said = f"cosines of the two, {name}: lowest {cosines.min():.5f}, median {np.median(cosines):.6f}"
                add(out, f"encode {shape}", said)


def search(out: Path) -> None:
    """Count exact queries per second against 1,000,000 x 1,024 vectors on the GPU, and compare rows with the CPU's."""
    from mining.gpu import OnGpus, find_gpus
    from mining.search import Exact, nearest

    rows, dim, queries, k = (1_000_000, 1_024, 16_384, 100) if ON_GPU else (5_000, 64, 300, 20)
    draw = torch.Generator(device=DEVICE).manual_seed(SEED)
    corpus = torch.nn.functional.normalize(torch.randn(rows, dim, generator=draw, device=DEVICE), dim=1).cpu().numpy()
    asked = torch.nn.functional.normalize(torch.randn(queries, dim, generator=draw, device=DEVICE), dim=1).cpu().numpy()
    gpus = find_gpus("auto" if ON_GPU else "cpu")
    if ON_GPU and not gpus:
        return add(out, "search", "no engine that searches on the GPU was found")
    index = OnGpus(corpus, gpus) if gpus else Exact(corpus)
    copying = seconds_of(lambda: nearest(asked[:64], index, k), 1)
    found: dict[str, np.ndarray] = {}
    with measured(out, "search", f"exact, {rows:,} x {dim:,}, {k} nearest") as note:
        spent = seconds_of(lambda: found.update(ids=nearest(asked, index, k)[0]), 1)
        only = seconds_of(lambda: index.fetch(asked[:4096], k + 16), 1)
        note += [f"{queries / spent:,.0f} queries/s whole", f"{min(4096, queries) / only:,.0f} queries/s of the search alone"]
        note.append(f"{copying:.1f} s for the first (copies the corpus)")
    few = slice(0, 256)
    same = (nearest(asked[few], Exact(corpus), k)[0] == found["ids"][few]).all(axis=1).sum()
    add(out, "search", f"{same} of {len(asked[few])} queries have the rows of the CPU's search")
    if same < len(asked[few]):
        raise ValueError("the GPU's rows are not those of the CPU")


def profile(out: Path) -> None:
    """Print where the time of a training step of Qwen3's shape goes, how long the GPU waits, and what waits for the GPU."""
    batch = batch_of("qwen3-0.6b", 0)
    rule = Train(model=str(folder_of(out, "qwen3-0.6b")), batch=TUPLES["qwen3-0.6b"], max_tokens=512, lr=LR, checkpointing=False)
    step = _our_step(out, "qwen3-0.6b", rule)
    for _ in range(2):
        step(batch, batch.task, LR)
    if ON_GPU:
        torch.cuda.synchronize()
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            step(batch, batch.task, LR)
            torch.cuda.set_sync_debug_mode("default")
        waits = [one for one in waits if "prototype" not in str(one.message)]  # torch's warning about the debug mode itself
        places = sorted({f"{Path(one.filename).name}:{one.lineno}" for one in waits})
        add(out, "profile", f"{len(waits)} waits for the GPU in a step, at {', '.join(places) or 'none'}")
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    kinds = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if ON_GPU else [ProfilerActivity.CPU]
    with profiler(activities=kinds) as found:
        spent = seconds_of(lambda: step(batch, batch.task, LR), 1)
    sort = "self_cuda_time_total" if ON_GPU else "self_cpu_time_total"
    (out / "profile.txt").write_text(found.key_averages().table(sort_by=sort, row_limit=60, max_name_column_width=70), "utf-8")
    if ON_GPU:
        kernels = [event for event in found.events() if str(event.device_type).endswith("CUDA")]
        busy = sum(event.self_device_time_total for event in kernels) / 1e6
        products = [e for e in kernels if any(word in e.name.lower() for word in ("gemm", "nvjet", "cutlass", "xmma"))]
        share = sum(event.self_device_time_total for event in products) / 1e6 / busy
        add(out, "profile", f"{len(kernels):,} kernels a step, GPU busy {busy / spent:.0%}, {share:.0%} of it in matrix products")


def start(out: Path) -> None:
    """Time the import, loading a model with its start-up check, and the first step, in a process of its own."""
    code = (
        "import time; a = time.perf_counter(); import torch; from training.model.load import load_model;"
        "b = time.perf_counter(); m = load_model({folder!r}, max_tokens=512, device={device!r}); c = time.perf_counter();"
        "v = m.embed(torch.arange(2, 66), [0, 32, 64]).sum().item(); d = time.perf_counter();"
        "print(f'{{b - a:.1f}} s import, {{c - b:.1f}} s load_model, {{d - c:.2f}} s first forward')"
    ).format(folder=str(folder_of(out, "qwen3-0.6b")), device=DEVICE)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    add(out, "start", done.stdout.strip())


def batch_of(shape: str, seed: int) -> Batch:
    """Return a batch of distinct texts of drawn lengths, the shortest first."""
    draw, b = np.random.default_rng(seed), TUPLES[shape]
    queries = lengths_of(draw, b, MAX_TOKENS[shape], 18)
    lengths = np.concatenate([queries, lengths_of(draw, b * (1 + NEGATIVES), MAX_TOKENS[shape], 130)])
    order = np.argsort(lengths, kind="stable")
    place = np.argsort(order)
    starts = np.append(0, lengths[order].cumsum()).astype(np.int64)
    return Batch(
        source="drawn",
        task="retrieval",
        in_batch=True,
        rows=np.arange(b),
        ids=draw.integers(5, WORDS, starts[-1], dtype=np.int64),
        starts=starts,
        query=place[:b],
        positive=place[b : 2 * b],
        negative=place[2 * b :].reshape(b, NEGATIVES),
        has_negative=np.ones((b, NEGATIVES), bool),
        shared=np.zeros((b, b), bool),
        teacher=np.full((b, 1 + NEGATIVES), np.nan, np.float32),
        shared_negative=None,
    )


def lengths_of(draw: np.random.Generator, count: int, most: int, median: int) -> np.ndarray:
    """Return so many lengths in tokens, drawn around a median as those of passages are: some long, many short."""
    return np.clip(np.exp(draw.normal(np.log(median), 0.6, count)), 4, most).astype(np.int64)


def texts_of(lengths: np.ndarray) -> list[str]:
    """Return texts of so many words each."""
    words = np.random.default_rng(SEED).integers(0, WORDS, int(lengths.sum()))
    return [" ".join(f"w{word}" for word in part) for part in np.split(words, lengths.cumsum()[:-1])]


def _our_step(out: Path, shape: str, rule: Train) -> Callable:
    backend = Torch(load_model(str(folder_of(out, shape)), max_tokens=MAX_TOKENS[shape], device=DEVICE), rule)
    if ON_GPU:  # as `train` does in runs of more than some hundred steps
        compile_layers(backend.model.backbone)

    def step(batch: Batch, task: str, lr: float) -> None:
        add_gradients(backend, batch, rule)
        backend.step(lr)

    return step


def mfu(out: Path, shape: str, tokens_per_second: float) -> list[str]:
    """Return the share of the GPU's peak that 6 operations for each token and weight, embeddings excluded, come to."""
    with torch.device("meta"):
        model = transformers.AutoModel.from_config(SHAPES[shape]())
    weights = sum(value.numel() for name, value in model.named_parameters() if "embed" not in name)
    peak = next((peak for card, peak in PEAKS.items() if ON_GPU and card in torch.cuda.get_device_name()), None)
    return [f"MFU {6 * weights * tokens_per_second / peak:.3f}"] if peak else []


@contextmanager
def measured(out: Path, part: str, what: str) -> Iterator[list[str]]:
    """Give a list for notes; add a row with them and the highest memory, or with the error, and free the memory."""
    notes: list[str] = []
    gc.collect()  # what a trainer that did not fit has left
    if ON_GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        yield notes
    except Exception as error:  # the other parts are worth having
        if isinstance(error, TimeoutError):
            raise
        notes.append(f"failed: {_first_line(error)}")
        if not is_out_of_memory(error):  # that a trainer does not fit is a result
            FAILED.append(what)
    if ON_GPU:
        notes.append(f"{torch.cuda.max_memory_allocated() / 1e9:.1f} GB")
    add(out, part, what, *notes)


def seconds_of(work: Callable[[], object], rounds: int) -> float:
    """Return the median seconds of a round; the GPU has ended its work when the clock is read."""
    spent = []
    for _ in range(rounds):
        if ON_GPU:
            torch.cuda.synchronize()
        begun = time.perf_counter()
        work()
        if ON_GPU:
            torch.cuda.synchronize()
        spent.append(time.perf_counter() - begun)
    return statistics.median(spent)


def folder_of(out: Path, shape: str) -> Path:
    """Return where the model of a shape is."""
    return out / "models" / shape


def add(out: Path, part: str, *cells: str) -> None:
    """Append a row to results.md, and print it."""
    row = f"| {part} | {' | '.join(cells)} |"
    with (out / "results.md").open("a", encoding="utf-8") as file:
        file.write(row + "\n")
    print(row, flush=True)


def limited(out: Path, part: str, seconds: int) -> bool:
    """Run a part, and return whether it ended well within so many seconds."""

    def too_long(number: int, frame: object) -> None:
        raise TimeoutError(f"took longer than {seconds} s")

    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(seconds)
    begun = time.perf_counter()
    try:
        PARTS[part][0](out)
    except Exception as error:
        traceback.print_exc()
        add(out, part, f"failed after {time.perf_counter() - begun:.0f} s: {_first_line(error)}")
        return False
    finally:
        signal.alarm(0)
        print(f"{part}: {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)
    return True


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:150]}"


PARTS: dict[str, tuple[Callable[[Path], None], int]] = {  # with the most seconds of each
    "machine": (machine, 30),
    "models": (models, 60),
    "train": (train, 90),
    "minilm": (lambda out: train(out, "minilm"), 45),
    "profile": (profile, 45),
    "encode": (encode, 90),
    "search": (search, 60),
    "start": (start, 60),
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    ended = [limited(given.out, part, PARTS[part][1]) for part in given.parts or PARTS]
    sys.exit(bool(FAILED) or not all(ended))
