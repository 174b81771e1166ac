"""Turn texts into vectors: the encoder that mining, training and evaluation share.

Texts are sorted by length and packed into batches of a token budget; each batch is one forward without padding. On a CPU
small batches are fastest, because they stay in its cache. A GPU never waits for the host: while it computes a batch, the
host prepares the next one, reads the vectors of the one before, and a thread tokenises the texts that follow.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock

import numpy as np
import torch

from curation.core.errors import ModelError, SetupError, is_out_of_memory
from curation.core.store import digest_of
from training.model.compile import compile_layers, tokens_worth_compiling
from training.model.device import autocast, device_of, dtype_of, float32_products, free_memory, prepack
from training.model.files import VECTORS
from training.model.load import load_model
from training.model.model import Model, Tokens, notes_of
from training.model.prompts import Prompted

TOKENS_PER_BATCH = {"cpu": 2_048, "cuda": 65_536}  # for CPUs the fastest of those measured, with 2 cores
TEXTS_PER_CALL = 8192  # texts given to the tokenizer at once
TEXTS_PER_CHUNK = 4_096  # texts that are sorted at once for a GPU, which waits for the first of them; for a CPU all are
THREADS = 3  # calls of `encode` that a GPU needs at once: one tokenises, one computes, one writes
TOKENS_OF_A_TEXT = 100  # assumed, to know whether compiling the layers is worth it
SHOWN = 60  # characters of a text in an error message


class Encoder(Prompted):
    """A loaded model that turns texts into unit vectors; `fingerprint` is the digest of everything that they depend on."""

    def __init__(self, model: Model, dtype: torch.dtype, prompt: str, training: bool = False) -> None:
        """Take over a model. With bfloat16 its matrices are cast for good, unless `training` leaves the model as it is."""
        self.model, self.prompt, self._dtype = model, prompt, str(dtype).removeprefix("torch.")
        self.dim, self.prompts = model.dim, model.choose(prompt)
        device = model.backbone.device
        # On a GPU the environment can choose TF32 for float32. It is named then; "float32" alone means exact products.
        products = float32_products(device) if dtype == torch.float32 else "exact"
        before = {"query": self.prompts.query, "passage": self.prompts.passage}
        self.described: dict[str, object] = {
            "model": model.name,
            "dtype": self._dtype,
            **({} if products == "exact" else {"float32_products": products}),
            "prompt": self.prompts.used,
            **({"prompts": before} if any(before.values()) else {}),
            "pooling": model.pooling,
            "max_tokens": model.max_tokens,
            **({"end_token": "appended"} if model.appends_eos else {}),
            **({} if model.similarity == "cosine" else {"similarity": model.similarity}),
        }
        # The losses compare by cosine, or by dot product if the model does.
        self.similarity = "cosine" if training and model.similarity != "dot" else model.similarity
        if notes := notes_of(model, prompt):
            self.described["notes"] = notes
        self._budget = TOKENS_PER_BATCH[device.type]
        self.threads = THREADS if device.type == "cuda" else 1  # calls of `encode` at once that make it faster
        self.chunked = device.type == "cuda"  # sort and encode some texts after the other, tokenised ahead, rather than all
        self._tokenising, self._computing = Lock(), Lock()
        if training:
            self.fingerprint = ""
            return
        self.fingerprint = digest_of(
            {
                "format": VECTORS,
                "files": model.files.digests(),
                "settings": {key: self.described[key] for key in ("dtype", "pooling", "max_tokens")},
                **({} if products == "exact" else {"float32_products": products}),
                "end_token": model.appends_eos,
                "normalised": True,
            }
        )
        # With matrices in bfloat16, autocast has nothing to cast again in each batch. Embeddings, norms and the sums between
        # layers stay in float32: three times nearer to float32 than a model entirely in bfloat16, and as fast.
        prepack(model.backbone.eval().requires_grad_(False), dtype, self._budget)

    def prepare_for(self, texts: int) -> None:
        """On a GPU, compile the layers if that is worth it for so many texts. Call it before the first text is encoded.

        The last bits of vectors depend on it, so the number must follow from the work alone, not from how much of it is done.
        """
        backbone = self.model.backbone
        if backbone.device.type != "cuda" or self.model.padded:
            return
        if TOKENS_OF_A_TEXT * texts >= tokens_worth_compiling(backbone.config):
            compile_layers(backbone)

    def encode(self, texts: Sequence[str], advance: Callable[[int], None] = lambda done: None, unit: bool = True) -> np.ndarray:
        """Return unit vectors (n, dim) float32 of rendered texts, in their order.

        With `unit=False` they keep the length that the model gives them, for `similarities`. `advance` is called with the number
        of texts of each finished batch. The result depends on `texts` alone, because the batches do.

        Raises:
            ModelError: a vector has a component that is not a finite number.
            SetupError: the GPU has no memory for the longest text.
        """
        size = TEXTS_PER_CHUNK if self.chunked else max(1, len(texts))
        starts = range(0, len(texts), size)
        vectors = np.empty((len(texts), self.dim), np.float32)
        with ThreadPoolExecutor(1) as pool:
            following: Future[Tokens] | None = None
            for start in starts:
                tokens = following.result() if following else self._tokenise(texts[start : start + size])
                rest = texts[start + size : start + 2 * size]
                following = pool.submit(self._tokenise, rest) if len(rest) else None
                chunk = slice(start, start + size)
                self._embed(texts[chunk], tokens, vectors[chunk], advance, unit)
                if len(tokens.blank):  # texts without tokens, which sentence-transformers pools to zero
                    vectors[chunk][tokens.blank] = self.model.blank(unit)
        return vectors

    def _tokenise(self, texts: Sequence[str]) -> Tokens:
        """Return the tokens of texts; the tokenizer gets some thousand texts at a time."""
        with self._tokenising:
            parts = [self.model.tokenize(texts[first : first + TEXTS_PER_CALL]) for first in range(0, len(texts), TEXTS_PER_CALL)]
        starts = np.concatenate([np.zeros(1, np.int64), *(np.diff(part.starts) for part in parts)]).cumsum()
        blank = [part.blank + number * TEXTS_PER_CALL for number, part in enumerate(parts)]
        return Tokens(np.concatenate([part.ids for part in parts]), starts, np.concatenate(blank))

    def _embed(
        self, texts: Sequence[str], tokens: Tokens, vectors: np.ndarray, advance: Callable[[int], None], unit: bool
    ) -> None:
        """Write the vectors of texts into `vectors` (n, dim), one packed forward per batch."""
        device, lengths = self.model.backbone.device, np.diff(tokens.starts)
        todo = deque(batches(lengths, self._budget))
        computed = deque[tuple[np.ndarray, torch.Tensor, torch.cuda.Event | None]]()  # rows, vectors, whether they are here

        def read() -> None:
            rows, here, copied = computed.popleft()
            if copied:
                copied.synchronize()
            values = here.numpy()
            bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
            if len(bad):
                shown = repr(texts[rows[bad[0]]][:SHOWN])
                raise ModelError(self.model.name, f"gives no numbers for the text {shown}", "are its weights whole? try float32")
            vectors[rows] = values
            advance(len(rows))

        with self._computing:
            while todo:
                rows = todo.popleft()
                held = int(lengths[rows].sum())
                if held > self._budget and len(rows) > 1:  # the budget was halved meanwhile
                    todo.extendleft((rows[len(rows) // 2 :], rows[: len(rows) // 2]))
                    continue
                found = self._forward([tokens.ids[tokens.starts[row] : tokens.starts[row + 1]] for row in rows], unit)
                if found is None:
                    self._budget = halved(self._budget, held, len(rows), device)
                    todo.appendleft(rows)
                elif device.type == "cuda":  # copied while the next batch is computed
                    here = torch.empty(found.shape, dtype=found.dtype, pin_memory=True)
                    here.copy_(found, non_blocking=True)
                    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
                    copied.record(torch.cuda.current_stream(device))
                    computed.append((rows, here, copied))
                    if len(computed) > 1:
                        read()
                else:
                    computed.append((rows, found, None))
                    read()
        while computed:  # another call may use the GPU already
            read()

    def _forward(self, pieces: Sequence[np.ndarray], unit: bool) -> torch.Tensor | None:
        """Return the vectors (n, dim) float32 of the tokens of n texts, on the model's device; None if they do not fit there."""
        bounds = np.cumsum([0, *map(len, pieces)]).tolist()
        try:
            with torch.no_grad(), autocast(self.model.backbone.device, self._dtype):
                flat = torch.from_numpy(np.concatenate(pieces).astype(np.int64))
                return self.model.embed(flat, bounds, unit)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return None


def halved(budget: int, held: int, texts: int, device: torch.device) -> int:
    """Return a smaller budget of tokens after `held` tokens of some texts did not fit; say so the first time.

    Raises:
        SetupError: it was one text.
    """
    torch.cuda.empty_cache()
    if texts == 1:
        what = f"out of memory: a text of {held:,} tokens does not fit ({free_memory(device)})"
        raise SetupError(str(device), what, "set a smaller `max_tokens`, end other programs on the GPU, or use --device cpu")
    if budget == TOKENS_PER_BATCH[device.type]:
        what = "%s: out of memory for a batch of %s tokens (%s); encoding goes on with smaller batches"
        logging.getLogger("tuplesmith").warning(what, device, f"{held:,}", free_memory(device))
    return min(budget, held) // 2


def load_encoder(
    model: str,
    *,
    device: str = "auto",
    dtype: str = "float32",
    max_tokens: int | None = None,
    prompt: str = "auto",
    prompts: Mapping[str, str] | None = None,
) -> Encoder:
    """Load a model for encoding; arguments as for `load_model`, dtype auto, float32 or bfloat16, prompt auto, instruct or none.

    Raises:
        ModelError: as `load_model`, or the prompt is unknown.
        SetupError: the device or dtype is unknown or not available.
    """
    kind = dtype_of(dtype, device_of(device))
    return Encoder(load_model(model, max_tokens=max_tokens, device=device, prompts=prompts), kind, prompt)


def similarities(queries: torch.Tensor, passages: torch.Tensor, similarity: str) -> torch.Tensor:
    """Return the similarity of each of (q, dim) queries to each of (p, dim) passages, (q, p); larger is nearer.

    `similarity` is an encoder's: cosine for unit vectors; dot, euclidean or manhattan for those of `encode(..., unit=False)`.
    """
    if similarity == "euclidean":
        return -torch.cdist(queries, passages, compute_mode="donot_use_mm_for_euclid_dist")
    if similarity == "manhattan":
        return -torch.cdist(queries, passages, p=1.0)
    return queries @ passages.T


def batches(lengths: np.ndarray, budget: int) -> Iterator[np.ndarray]:
    """Yield the row numbers of each batch, longest texts first: at most `budget` tokens, or one longer text alone.

    The longest come first, so that memory runs out at once or never.
    """
    order = np.argsort(-lengths, kind="stable")
    first, ends = 0, np.cumsum(lengths[order])
    while first < len(order):
        before = ends[first - 1] if first else 0
        last = max(int(np.searchsorted(ends, before + budget, side="right")), first + 1)
        yield order[first:last]
        first = last
