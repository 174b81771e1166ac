"""Load an embedding model: find and check its files, read its weights, and compare packed vectors with unpacked ones."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, pairwise
from typing import Any

import numpy as np
import torch
import transformers
from safetensors import SafetensorError, safe_open
from tokenizers import normalizers
from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES

from curation.core.errors import ModelError, UserError, first_line, listed
from training.model.attention import (
    BY_TEXT,
    PACKED,
    CannotPack,
    attends_causally,
    avoid_kernel,
    avoided_kernels,
    head_size_of,
    kernel_of,
)
from training.model.device import device_of, dtype_of
from training.model.files import ModelFiles, find_model
from training.model.model import NO_LIMIT, Model, quiet, token_ids
from training.model.pooling import POOLINGS, head_of, layer_mix
from training.model.sentence_folder import Sentence

# Shorter texts follow longer ones: what a recurrent layer carries from one text into the next fades within some tokens.
CHECK_TEXTS = ("the longest of them: 1, 2, 3, 4, 5, 6, 7, 8, 9", "one", "a text of a few words", "two")
PADDED_TEXTS = ("one: 1, 2, 3, 4, 5, 6", "one: 1, 2, 3, 4, 5, 6.")  # of nearly equal length, so one is padded to the other's
# If the model has at most this many positions, the check packs more tokens than that into one row.
CHECK_TOKENS = 514
# Largest difference per component of unit vectors. Where texts of real models see each other, it is above 0.1.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}

UNREADABLE = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError, SafetensorError)
COUNTED = ("layer", "expert", "block")  # config.json keys with these words say how many of something a model has
MOST_COUNTED = 1_000  # the largest such count that is accepted, unless the weights have more tensors
SAFE = {"local_files_only": True, "trust_remote_code": False}
SPARE = 1 << 26  # numbers that a model may have besides its weights: positions, masks, an unused pooler
ENCODERS = ("t5", "mt5", "umt5")  # encoder-decoders whose encoder makes embeddings
SAME_MODEL = "does config.json belong to these weights?"


def load_model(
    name: str,
    *,
    pooling: str = "auto",
    max_tokens: int | None = None,
    device: str = "auto",
    weights: bool = True,
    prompts: Mapping[str, str] | None = None,
    bidirectional: bool = False,
) -> Model:
    """Load a model in float32 from a folder, a Hub id or `package:NAME`, and check that it gives right vectors when packed.

    Args:
        name: a folder (transformers or sentence-transformers), a Hub id, or `package:NAME`.
        pooling: mean, cls or last; auto = the model's own, else last for decoders and mean for encoders.
        max_tokens: longer texts are cut to this length, special tokens included; None = the model's own limit.
        device: cpu, cuda, cuda:1, ...; auto = cuda if available.
        weights: False = read only config and tokenizer. Such a model tokenises and knows its sizes, but cannot embed.
        prompts: texts to put before `query` and `passage`, instead of the model's own prompts.
        bidirectional: whether the tokens of a decoder attend to those after them too, as in LLM2Vec (arXiv 2404.05961).

    Raises:
        ModelError: there is no such model, a part of it is missing, or it does not support what is asked.
    """
    # Find the files, and refuse what does not make one vector per text.
    files, place = find_model(name, weights), device_of(device)
    sentence = files.sentence
    _check_embeds(name, sentence)

    # Read config, weights and tokenizer.
    if not torch.cuda.is_available():  # transformers imports DeepSpeed if it is installed, which warns if it finds no GPU
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    with quiet():
        if weights:
            backbone, tokenizer = _read_backbone(name, files)
        else:
            config = _config(name, files)
            _check_counts(name, config, MOST_COUNTED)
            backbone, tokenizer = _empty(name, files, transformers.AutoModel, config), _tokenizer(name, files)
    # Choose the pooling, and read the modules that follow it.
    is_decoder = any(attends_causally(module) for module in backbone.modules())
    if bidirectional:
        _attend_both_ways(name, backbone, is_decoder)
    own = sentence.pooling if sentence else None
    chosen = pooling if pooling != "auto" else own or ("last" if is_decoder else "mean")
    if not set(chosen.split("+")) <= set(POOLINGS):
        raise ModelError(name, f"unknown pooling '{chosen}'", f"use one of {listed(('auto', *POOLINGS))}")
    size = int(backbone.config.hidden_size) * len(chosen.split("+"))
    # With a pooling other than the model's own, the modules after the model's own pooling make no sense.
    modules = list(sentence.modules) if sentence else []
    mixing = modules.pop(0) if modules and modules[0].kind == "WeightedLayerPooling" else None
    head, dim = head_of(name, modules[1:] if chosen == own else (), size) if weights else (torch.nn.Sequential(), size)
    if mixing and weights and getattr(backbone.config, "output_hidden_states", False):  # else it does nothing
        head.insert(0, layer_mix(name, mixing, int(backbone.config.num_hidden_layers)).requires_grad_(False))
    truncate = sentence.truncate if sentence and chosen == own else None

    first, room, fixed = positions_of(backbone)
    model = Model(
        name=name,
        files=files,
        backbone=backbone.to(place).eval() if weights else backbone,
        tokenizer=tokenizer,
        pooling=chosen,
        prompts=dict(sentence.prompts) if sentence else {},
        max_tokens=max_tokens_of(name, files, tokenizer, room, fixed, max_tokens),
        dim=min(dim, truncate or dim),
        is_decoder=is_decoder,
        first_position=first,
        appends_eos=is_decoder and sentence is None and _lacks_end(name, tokenizer),
        given=prompts,
        head=head.to(place),
        truncate=truncate,
        similarity=sentence.similarity if sentence else "cosine",
        trained_prompt=sentence.trained_prompt if sentence else None,
    )

    _check_vectors(model, weights)
    return model


def _check_vectors(model: Model, weights: bool) -> None:
    """Refuse a model whose vectors would be wrong in silence; note special tokens that have a segment of their own."""
    name, tokenizer = model.name, model.tokenizer
    if "token_type_ids" in tokenizer.model_input_names:
        sample = tokenizer("a text")
        model.segment_of = {
            token: segment for token, segment in zip(sample["input_ids"], sample["token_type_ids"], strict=True) if segment
        }
        if not set(model.segment_of) <= set(tokenizer.all_special_ids):
            raise ModelError(name, "its tokenizer puts a single text into the second segment", "that is not supported")
        if model.segment_of:
            model.padded = "it reads special tokens in a segment of their own"

    # Rotary positions that change for all texts of a batch if one of them is long.
    config = model.backbone.config
    parameters = getattr(config, "rope_parameters", None) or {}
    for rotation in (parameters, *(one for one in parameters.values() if isinstance(one, dict))):
        kind = str(rotation.get("rope_type"))
        room = rotation.get("original_max_position_embeddings") or getattr(config, "max_position_embeddings", None)
        if (kind == "longrope" or "dynamic" in kind) and room and model.max_tokens > room:
            what = f"its vectors of texts of up to {room} tokens depend on longer ones in their batch (rope_type: {kind})"
            raise ModelError(name, what, f"give `max_tokens: {room}` or less")

    if weights:
        check_numbers(name, model.backbone, model.head)
        with quiet():
            check_attention(model)


def _attend_both_ways(name: str, backbone: Any, is_decoder: bool) -> None:
    """Let the tokens of a decoder attend to those after them too; transformers reads `is_causal` of config.json for its masks."""
    if getattr(backbone.config, "is_causal", None) is False:
        return  # it does already
    if not is_decoder:
        raise ModelError(name, "is an encoder, whose attention is bidirectional already", "remove `bidirectional: yes`")
    for module in backbone.modules():
        if hasattr(module, "config"):
            module.config.is_causal = False


def _check_embeds(name: str, sentence: Sentence | None) -> None:
    """Refuse a sentence-transformers folder whose modules compute something else than one vector per text."""
    if sentence is None:
        return
    if sentence.kind != "SentenceTransformer":
        raise ModelError(name, f"is a {sentence.kind}, which gives no vectors", "name an embedding model")
    if sentence.task != "feature-extraction":
        raise ModelError(name, f"its transformer is one for {sentence.task}", "name an embedding model")
    if sentence.chat:
        raise ModelError(name, "puts texts into a chat template", "only models that read plain texts are supported")
    if sentence.pooling is None:
        raise ModelError(name, "modules.json does not have Pooling after the Transformer", "without it there is no vector")


def check_trains(model: Model) -> None:
    """Refuse to train a model that `export` could not write completely.

    Raises:
        ModelError: it truncates its vectors.
    """
    if model.truncate is not None:
        raise ModelError(model.name, f"cuts its vectors to {model.truncate} dimensions", "remove truncate_dim to train it")


# Reading files. Code in a model's folder is never run.


def read_model(name: str, files: ModelFiles, kind: Any, **options: Any) -> tuple[Any, Any, list[str]]:
    """Read a model in float32 with one of transformers' Auto classes; return (model, tokenizer, names of missing weights).

    Raises:
        ModelError: it cannot be read, needs code of its own, or its config asks for more than its weights contain.
    """
    config = _config(name, files)
    kind = _kind_of(name, kind, config)
    _check_size(name, files, kind, config)
    with _one_line_errors(name, files):
        given = {"config": config, "dtype": torch.float32, "output_loading_info": True, **SAFE, **options}
        try:
            model, loading = kind.from_pretrained(str(files.transformer), **given)
        except KeyError as error:
            if error.args != (PACKED,) or "attn_implementation" not in options:
                raise
            given["attn_implementation"] = "eager"  # its own classes of attention, which cannot be packed
            model, loading = kind.from_pretrained(str(files.transformer), **given)
    return model, _tokenizer(name, files), sorted(loading["missing_keys"])


def _read_backbone(name: str, files: ModelFiles) -> tuple[Any, Any]:
    """Return the transformer without a head, with packed attention, and its tokenizer; refuse missing weights."""
    backbone, tokenizer, missing = read_model(name, files, transformers.AutoModel, attn_implementation=PACKED)
    if getattr(backbone, "pooler", None) is not None:
        backbone.pooler.requires_grad_(False)  # the embedding does not use it; it is kept so that the export is complete
        if any(key.startswith("pooler.") for key in missing):
            backbone.pooler = None
            missing = [key for key in missing if not key.startswith("pooler.")]
    if missing:
        raise ModelError(name, f"its weights lack {listed(missing, 3)}", SAME_MODEL)
    return backbone, tokenizer


def _kind_of(name: str, kind: Any, config: Any) -> Any:
    """Return the class to load with: for T5 and its relatives the encoder alone, as sentence-transformers does."""
    if kind is not transformers.AutoModel:
        return kind
    if config.model_type in ENCODERS:
        return getattr(transformers, MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES[config.model_type])
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(name, "is an encoder-decoder model", "only encoders and decoders are supported")
    return kind


def _config(name: str, files: ModelFiles) -> Any:
    """Return transformers' config of the model."""
    arguments = dict(files.sentence.config_arguments) if files.sentence else {}
    kind = files.config().get("model_type")
    if isinstance(kind, str) and kind not in transformers.CONFIG_MAPPING and not files.own_code():
        what = f"is of a family that transformers {transformers.__version__} does not know (model_type '{kind}' in config.json)"
        raise ModelError(name, what, "update transformers, or name another model")
    with _one_line_errors(name, files):
        return transformers.AutoConfig.from_pretrained(str(files.transformer), **arguments, **SAFE)


def _tokenizer(name: str, files: ModelFiles) -> Any:
    """Return the tokenizer with the settings of the model's folder."""
    sentence = files.sentence
    with _one_line_errors(name, files):
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            str(files.transformer), **(sentence.tokenizer_arguments if sentence else {}), **SAFE
        )
        if sentence and sentence.lower_case and not tokenizer.is_fast:
            tokenizer.do_lower_case = True
        elif sentence and sentence.lower_case:
            # Lower the case first, unless a step of the normalizer does it already.
            before: Any = tokenizer.backend_tokenizer.normalizer
            several: Any = before if isinstance(before, normalizers.Sequence) else [before] if before else []
            steps = list(several)
            if not any(isinstance(step, normalizers.Lowercase) for step in steps):
                tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *steps])
        tokenizer(["a text"], truncation=True, max_length=8)  # wrong settings show at the first text
        if not isinstance(tokenizer.model_max_length, int | float):
            what = f"its tokenizer's model_max_length is {tokenizer.model_max_length!r}, not a number"
            raise ModelError(name, what, "correct its tokenizer_config.json")
        return tokenizer


@contextmanager
def _one_line_errors(name: str, files: ModelFiles) -> Iterator[None]:
    """Turn whatever another library raises about a folder into one line."""
    try:
        with warnings.catch_warnings(action="ignore"):  # what matters is raised
            yield
    except UserError:
        raise
    except Exception as error:
        if files.own_code() and "trust_remote_code" in str(error):
            what = "needs code of its own (auto_map in its config.json), which is never run"
            raise ModelError(name, what, "name a model that transformers knows") from error
        raise ModelError(name, f"cannot be loaded ({first_line(error)})") from error


def _empty(name: str, files: ModelFiles, kind: Any, config: Any) -> Any:
    """Return the model on the meta device: all shapes, no numbers."""
    kind = _kind_of(name, kind, config)
    with _one_line_errors(name, files), torch.device("meta"):
        return kind.from_config(config, trust_remote_code=False) if hasattr(kind, "from_config") else kind(config)


# Properties of a model that its files say in several ways.


def positions_of(backbone: Any) -> tuple[int, int | None, bool]:
    """Return (first position, number of positions or None if unlimited, whether the number is fixed by a table).

    RoBERTa and similar models count from padding_idx + 1, as their table of positions shows. Rotary positions have no table.
    """
    room, fixed = getattr(backbone.config, "max_position_embeddings", None), False
    for name, module in backbone.named_modules():
        if isinstance(module, torch.nn.Embedding) and name.endswith("position_embeddings"):
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            return first, module.num_embeddings - first, True
        fixed = fixed or (isinstance(module, torch.nn.Embedding) and name.endswith(("wpe", "embed_positions")))
    return 0, room if isinstance(room, int) and room > 0 else None, fixed


def max_tokens_of(name: str, files: ModelFiles, tokenizer: Any, room: int | None, fixed: bool, wanted: int | None) -> int:
    """Return `wanted`, else the model's own limit; `room` and `fixed` are as `positions_of` returns them."""
    least = 1 + len(token_ids(tokenizer, [""])[0])
    if wanted is not None:
        if room is not None and wanted > room:
            raise ModelError(name, f"max_tokens is {wanted}, but the model has {room} positions", f"give {room} or less")
        if wanted < least:
            raise ModelError(name, f"max_tokens is {wanted}, which leaves no room for text", f"give {least} or more")
        return wanted
    configured = files.sentence.max_tokens if files.sentence else None
    own = configured or tokenizer.model_max_length
    # sentence-transformers uses its own setting even if the config has fewer positions, which rotary positions allow.
    limits = [own] if configured and not fixed else [own, room]
    known = [limit for limit in limits if limit is not None and limit < NO_LIMIT]
    if not known:
        raise ModelError(name, "does not say how many tokens it can read", "give max_tokens")
    if min(known) < least:
        raise ModelError(name, f"reads {min(known)} tokens, which leaves no room for text", "correct its max_seq_length")
    return int(min(known))


def _lacks_end(name: str, tokenizer: Any) -> bool:
    """Return whether the tokenizer appends nothing to a text; whatever it appends itself is kept."""
    with_end, bare = token_ids(tokenizer, ["a"])[0], token_ids(tokenizer, ["a"], add_special_tokens=False)[0]
    if with_end[-1:] != bare[-1:]:
        return False
    if tokenizer.eos_token_id is None:
        raise ModelError(name, "its tokenizer has no end-of-text token, which a decoder is pooled at", "set its eos_token")
    return True


# Checks.


def check_numbers(name: str, *modules: torch.nn.Module) -> None:
    """Refuse weights that are not finite numbers.

    Raises:
        ModelError: a weight is NaN or infinite; the tensor is named.
    """
    for module in modules:
        for tensor, weight in module.named_parameters():
            # The sum is one pass without new memory; it may overflow although every number is finite.
            if not torch.isfinite(weight.detach().sum()) and not torch.isfinite(weight.detach()).all():
                what = "NaN" if torch.isnan(weight.detach()).any() else "infinity"
                advice = "was the file damaged, or did the training diverge?"
                raise ModelError(name, f"its weights contain {what}: {tensor}", advice)


def _check_size(name: str, files: ModelFiles, kind: Any, config: Any) -> None:
    """Refuse a config that asks for more than the weights contain, before anything of that size is allocated."""
    held, tensors = 0, 0
    with _one_line_errors(name, files):
        for path in files.weights():
            if path.suffix == ".safetensors":
                with safe_open(path, framework="pt") as file:
                    shapes = [file.get_slice(key).get_shape() for key in file.keys()]  # noqa: SIM118 - not a mapping
                held, tensors = held + sum(math.prod(shape) for shape in shapes), tensors + len(shapes)
            else:
                held, tensors = held + path.stat().st_size, tensors + MOST_COUNTED
    _check_counts(name, config, max(tensors, MOST_COUNTED))
    empty = _empty(name, files, kind, config)
    asked = sum(part.numel() for part in chain(empty.parameters(), empty.buffers()))
    if asked > 2 * held + SPARE:
        raise ModelError(name, f"config.json asks for {asked:,} numbers, its weights have {held:,}", SAME_MODEL)


def _check_counts(name: str, config: Any, most: int) -> None:
    """Refuse a config with absurdly many layers, which transformers would create one by one even without numbers."""
    for key, value in config.to_dict().items():
        if isinstance(value, int) and value > most and any(word in key for word in COUNTED):
            raise ModelError(name, f"config.json sets {key} to {value:,}", SAME_MODEL)


def check_attention(model: Model) -> None:
    """Choose how texts share a forward: packed; else padded; else, if padding changes vectors too, with texts of equal length.

    Raises:
        ModelError: vectors of texts together differ from those of each text alone in every one of these ways.
    """
    implementation = model.backbone.config._attn_implementation
    if not model.padded and implementation == PACKED:
        try:
            return check_packing(model)
        except ModelError as error:
            model.padded, cause = error.what, error
    else:
        model.padded, cause = model.padded or "it has its own kind of attention, which cannot be packed", None
    for module in model.backbone.modules():  # `set_attn_implementation` leaves some architectures as they are, without masks
        if hasattr(module, "config"):
            module.config._attn_implementation = "eager"
    for equal in (False, True):
        model.equal = equal
        if _packing_fault(model, torch.float32) is None:
            return None
    what = f"{model.padded}, and padded texts get other vectors than alone"
    raise ModelError(model.name, what, "its architecture is not supported") from cause


def check_packing(model: Model) -> None:
    """Compare a few texts packed with the same texts one at a time through the model's own eager attention.

    An attention kernel of a GPU that fails or gives other vectors is not used again for these heads; a warning says so.

    Raises:
        ModelError: the vectors differ, or the architecture does not pass segments on to its attention.
    """
    advice = "its architecture cannot be trained or encoded without padding"
    device = model.backbone.device
    # On a GPU float32 and bfloat16 use different kernels, and older ones do not compute bfloat16.
    dtypes = {torch.float32, dtype_of("auto", device)} if device.type == "cuda" else {torch.float32}
    for dtype in sorted(dtypes, key=str):
        size = head_size_of(model.backbone.config) if device.type == "cuda" else 0
        failed: list[str] = []
        while (fault := _packing_fault(model, dtype)) is not None:
            kernel = kernel_of(device, dtype, size)
            if kernel == BY_TEXT:  # the fault is the model's own, not that of a kernel
                for kernel in failed:
                    avoid_kernel(kernel, device, dtype, size, None)
                what, cause = fault
                raise ModelError(model.name, what, advice) from cause
            avoid_kernel(kernel, device, dtype, size, fault[0])
            failed.append(kernel)
        for line in avoided_kernels(device, dtype, size):
            logging.getLogger("tuplesmith").warning(line)


def _packing_fault(model: Model, dtype: torch.dtype) -> tuple[str, Exception | None] | None:
    """Return what is wrong with a model's packed vectors, in one line, and the exception behind it; None if they are right."""
    try:
        difference = _packing_difference(model, dtype)
    except CannotPack as error:
        return str(error), None
    except UserError:
        raise
    except Exception as error:  # an architecture that takes no positions or keeps its states elsewhere, or odd sizes
        return f"its {type(model.backbone).__name__} cannot encode texts packed together ({first_line(error)})", error
    if difference <= TOLERANCE[dtype]:
        return None
    return f"texts packed together get other vectors than alone (they differ by {difference:.2g})", None


def _packing_difference(model: Model, dtype: torch.dtype) -> float:
    """Return the largest difference between vectors of `CHECK_TEXTS` packed and of each text alone in eager attention."""
    backbone, tokens = model.backbone, model.tokenize(CHECK_TEXTS + PADDED_TEXTS if model.padded else CHECK_TEXTS)
    ids, starts = torch.from_numpy(tokens.ids.astype(np.int64)), tokens.starts.tolist()
    room = getattr(backbone.config, "max_position_embeddings", None) or 0
    times = 1 + room // len(ids) if 0 < room <= CHECK_TOKENS else 1
    row = [0, *(start + turn * len(ids) for turn in range(times) for start in starts[1:])]
    implementation = backbone.config._attn_implementation
    try:
        with torch.no_grad(), torch.autocast(backbone.device.type, dtype, enabled=dtype != torch.float32):
            packed = model.embed(ids.repeat(times), row)
            backbone.set_attn_implementation("eager")
            alone = [model.embed(ids[start:end], [0, end - start]) for start, end in pairwise(starts)]
    finally:
        backbone.set_attn_implementation(implementation)
    return float((packed - torch.cat(alone).repeat(times, 1)).abs().max())
