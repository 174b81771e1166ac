"""Load a reranker: a cross-encoder, or a language model tuned to say whether a passage answers a query."""

from __future__ import annotations

from training.model.causal_reranker import load_causal_reranker
from training.model.cross_encoder import CrossEncoder, load_cross_encoder
from training.model.files import find_model


def load_reranker(model: str, *, device: str = "auto", dtype: str = "float32") -> CrossEncoder:
    """Load a model that gives a pair of texts one score, from a folder, a Hub id or `package:NAME`.

    Raises:
        ModelError: there is no such model, a part of it is missing, or it gives no score or several.
        SetupError: the device or dtype is unknown or not there.
    """
    load = load_causal_reranker if find_model(model).causal() else load_cross_encoder
    return load(model, device=device, dtype=dtype)
