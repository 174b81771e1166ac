"""Load a model: its files read and checked, its weights, and its vectors of packed texts compared with those of each alone."""

from __future__ import annotations

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

from curation.core.errors import ModelError, UserError, first_line, listed
from training.model.attention import NAME, CannotPack, attends_causally
from training.model.device import device_of
from training.model.files import ModelFiles, find_model
from training.model.model import NO_LIMIT, Model, _ids, quiet
from training.model.pooling import POOLINGS, Unit, head_of

# Shorter ones follow longer ones: what a recurrent layer carries from one text into the next fades within some tokens.
CHECK_TEXTS = ("the longest of them: 1, 2, 3, 4, 5, 6, 7, 8, 9", "one", "a text of a few words", "two")
CHECK_TOKENS = 514  # the row of the check has more tokens than the model has positions, where these are at most so many
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}  # per component of unit vectors; leaks of real models are above 0.1

UNREADABLE = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError, SafetensorError)
COUNTED = ("layer", "expert", "block")  # words of config.json's keys for what a model has so many of
MOST_COUNTED = 1_000  # where the weights do not tell how many there are
SAFE = {"local_files_only": True, "trust_remote_code": False}
SPARE = 1 << 26  # numbers that a model may hold beside its weights: positions, masks, a pooler that is not used


def load_model(
    name: str,
    *,
    pooling: str = "auto",
    max_tokens: int | None = None,
    device: str = "auto",
    weights: bool = True,
    prompts: Mapping[str, str] | None = None,
) -> Model:
    """Load a model in float32 from a folder, a Hub id or `package:NAME`, and check that it can be packed.

    Args:
        name: a folder (transformers or sentence-transformers), a Hub id, or `package:NAME`.
        pooling: mean, cls or last; auto = the model's own, else last for decoders and mean for encoders.
        max_tokens: longer texts are cut to this, special tokens included; None = the model's own limit.
        device: cpu, cuda, cuda:1, ...; auto = cuda where there is one.
        weights: no = an outline of it, which tokenises and tells sizes but cannot embed.
        prompts: what to put before texts instead of the model's own prompts, by `query` and `passage`.

    Raises:
        ModelError: there is no such model, a part of it is missing, or it cannot do what is asked.
    """
    files, place = find_model(name, weights), device_of(device)
    said = files.sentence
    _check_embeds(name, files)
    if not torch.cuda.is_available():  # transformers loads DeepSpeed where it is installed, which else warns of the lack
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    with quiet():
        backbone, tokenizer = _read(name, files) if weights else _outline(name, files)
    if getattr(backbone.config, "is_encoder_decoder", False):
        raise ModelError(name, "is an encoder-decoder model", "only encoders and decoders are supported")
    is_decoder = any(attends_causally(module) for module in backbone.modules())
    own = said.pooling if said else None
    chosen = pooling if pooling != "auto" else own or ("last" if is_decoder else "mean")
    if not set(chosen.split("+")) <= set(POOLINGS):
        raise ModelError(name, f"unknown pooling '{chosen}'", f"use one of {listed(('auto', *POOLINGS))}")
    first, room, fixed = positions_of(backbone)
    size = int(backbone.config.hidden_size) * len(chosen.split("+"))
    # Another pooling than the model's own is another model: what follows it there would be of no use.
    modules = said.modules[1:] if said and chosen == own else ()
    head, dim = head_of(name, modules, size) if weights else (torch.nn.Sequential(), size)
    truncate = said.truncate if said and chosen == own else None
    model = Model(
        name=name,
        files=files,
        backbone=backbone.to(place).eval() if weights else backbone,
        tokenizer=tokenizer,
        pooling=chosen,
        prompts=dict(said.prompts) if said else {},
        max_tokens=limit_of(name, files, tokenizer, room, fixed, max_tokens),
        dim=min(dim, truncate or dim),
        is_decoder=is_decoder,
        first_position=first,
        appends_eos=is_decoder and said is None and _lacks_end(name, tokenizer),
        given=prompts,
        head=head.to(place),
        truncate=truncate,
        similarity=said.similarity if said else "cosine",
        trained_prompt=said.trained_prompt if said else None,
    )
    _check_kinds(name, tokenizer)
    _check_rotations(model)
    if weights:
        check_numbers(name, backbone, model.head)
        with quiet():
            check_packing(model)
    return model


def check_numbers(name: str, *modules: torch.nn.Module) -> None:
    """Refuse weights that are not all numbers.

    Raises:
        ModelError: a weight is NaN or infinite; its tensor is named.
    """
    for module in modules:
        for tensor, weight in module.named_parameters():
            # The sum is one pass without new memory; it may overflow where every number is finite.
            if not torch.isfinite(weight.detach().sum()) and not torch.isfinite(weight.detach()).all():
                what = "NaN" if torch.isnan(weight.detach()).any() else "infinity"
                advice = "was the file damaged, or the model trained to no number?"
                raise ModelError(name, f"its weights contain {what}: {tensor}", advice)


def _check_embeds(name: str, files: ModelFiles) -> None:
    """Refuse a folder whose modules make something else than one vector of a text."""
    said = files.sentence
    if said is None:
        return
    if said.kind != "SentenceTransformer":
        raise ModelError(name, f"is a {said.kind}, which gives no vectors", "name an embedding model")
    if said.task != "feature-extraction":
        raise ModelError(name, f"its transformer is one for {said.task}", "name an embedding model")
    if said.chat:
        raise ModelError(name, "puts texts into a chat template", "only models that read plain texts are supported")
    if said.pooling is None:
        raise ModelError(name, "modules.json does not have Pooling after the Transformer", "there is no vector without it")


def check_trains(model: Model) -> None:
    """Refuse to train a model whose folder says more than `export` can write.

    Raises:
        ModelError: there is a module besides pooling and normalising, or dimensions are cut off.
    """
    if others := [type(step).__name__ for step in model.head if not isinstance(step, Unit)]:
        kinds = "Dense" if "Projection" in others else others[0]
        raise ModelError(model.name, f"has {kinds} after its pooling, which is not trained", "name a model without")
    if model.truncate is not None:
        raise ModelError(model.name, f"cuts its vectors to {model.truncate} dimensions", "take truncate_dim out to train it")


def _check_kinds(name: str, tokenizer: Any) -> None:
    """Refuse a tokenizer that marks the tokens of a single text with another segment than the first."""
    if "token_type_ids" in tokenizer.model_input_names and any(map(any, tokenizer(["a text"])["token_type_ids"])):
        raise ModelError(name, "its tokenizer puts a single text into the second segment", "that is not supported")


def _check_rotations(model: Model) -> None:
    """Refuse rotary positions that change for all texts of a batch where one of them is long.

    Raises:
        ModelError: texts may be that long.
    """
    config = model.backbone.config
    said = getattr(config, "rope_parameters", None) or {}
    for rotation in (said, *(one for one in said.values() if isinstance(one, dict))):
        kind = str(rotation.get("rope_type"))
        room = rotation.get("original_max_position_embeddings") or getattr(config, "max_position_embeddings", None)
        if (kind == "longrope" or "dynamic" in kind) and room and model.max_tokens > room:
            what = f"its vectors of texts of up to {room} tokens depend on longer ones in their batch (rope_type: {kind})"
            raise ModelError(model.name, what, f"give `max_tokens: {room}` or less")


def _outline(name: str, files: ModelFiles) -> tuple[Any, Any]:
    """Return a backbone without numbers in its weights, and the tokenizer."""
    config = config_of(name, files)
    _check_counts(name, config, MOST_COUNTED)
    return _empty(name, files, transformers.AutoModel, config), tokenizer_of(name, files)


def config_of(name: str, files: ModelFiles) -> Any:
    """Return transformers' config; code of the folder is never run.

    Raises:
        ModelError: it cannot be read.
    """
    arguments = dict(files.sentence.config_arguments) if files.sentence else {}
    with _loading(name, files):
        return transformers.AutoConfig.from_pretrained(str(files.transformer), **arguments, **SAFE)


def tokenizer_of(name: str, files: ModelFiles) -> Any:
    """Return the tokenizer as the folder asks for it; code of the folder is never run.

    Raises:
        ModelError: it cannot be read.
    """
    said = files.sentence
    with _loading(name, files):
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            str(files.transformer), **(said.tokenizer_arguments if said else {}), **SAFE
        )
        if said and said.lower_case:
            _lower(tokenizer)
        tokenizer(["a text"], truncation=True, max_length=8)  # what is wrong with its settings shows at the first text
        if not isinstance(tokenizer.model_max_length, int | float):
            what = f"its tokenizer's model_max_length is {tokenizer.model_max_length!r}, no number"
            raise ModelError(name, what, "mend its tokenizer_config.json")
        return tokenizer


def _lower(tokenizer: Any) -> None:
    """Lower the case of texts first, where no step of the tokenizer is just that."""
    if not tokenizer.is_fast:
        tokenizer.do_lower_case = True
        return
    before: Any = tokenizer.backend_tokenizer.normalizer
    several: Any = before if isinstance(before, normalizers.Sequence) else [before] if before else []
    steps = list(several)
    if not any(isinstance(step, normalizers.Lowercase) for step in steps):
        tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *steps])


def read(name: str, files: ModelFiles, kind: Any, **options: Any) -> tuple[Any, Any, list[str]]:
    """Read a model (float32) by one of transformers' Auto classes, and its tokenizer; return also which weights it lacks.

    Raises:
        ModelError: it cannot be read, needs code of its own, or its config asks for more than its weights hold.
    """
    config = config_of(name, files)
    _check_size(name, files, kind, config)
    with _loading(name, files):
        model, loading = kind.from_pretrained(
            str(files.transformer), config=config, dtype=torch.float32, output_loading_info=True, **SAFE, **options
        )
    return model, tokenizer_of(name, files), sorted(loading["missing_keys"])


@contextmanager
def _loading(name: str, files: ModelFiles) -> Iterator[None]:
    """Say in one line what is wrong with a folder, whatever another library raises over it."""
    try:
        with warnings.catch_warnings(action="ignore"):  # what matters of them is raised
            yield
    except UserError:
        raise
    except Exception as error:
        if files.own_code() and "trust_remote_code" in str(error):
            what = "needs code of its own (auto_map in its config.json), which is never run"
            raise ModelError(name, what, "name a model that transformers knows") from error
        if isinstance(error, KeyError) and error.args == (NAME,):
            raise ModelError(name, "its attention is its own, which cannot be packed", "name a model of another kind") from error
        raise ModelError(name, f"cannot be loaded ({first_line(error)})") from error


def _check_size(name: str, files: ModelFiles, kind: Any, config: Any) -> None:
    """Refuse a config that asks for more than the weights hold, before anything of that size is made."""
    held, tensors = 0, 0
    with _loading(name, files):
        for path in files.weights():
            if path.suffix == ".safetensors":
                with safe_open(path, framework="pt") as file:
                    shapes = [file.get_slice(key).get_shape() for key in file.keys()]  # noqa: SIM118 - no mapping
                held, tensors = held + sum(math.prod(shape) for shape in shapes), tensors + len(shapes)
            else:
                held, tensors = held + path.stat().st_size, tensors + MOST_COUNTED
    _check_counts(name, config, max(tensors, MOST_COUNTED))
    empty = _empty(name, files, kind, config)
    asked = sum(part.numel() for part in chain(empty.parameters(), empty.buffers()))
    if asked > 2 * held + SPARE:
        what = f"config.json asks for {asked:,} numbers, its weights hold {held:,}"
        raise ModelError(name, what, "is config.json the one of these weights?")


def _check_counts(name: str, config: Any, most: int) -> None:
    for key, value in config.to_dict().items():
        if isinstance(value, int) and value > most and any(word in key for word in COUNTED):
            raise ModelError(name, f"config.json sets {key} to {value:,}", "is config.json the one of these weights?")


def _empty(name: str, files: ModelFiles, kind: Any, config: Any) -> Any:
    """Return the model without numbers in its weights."""
    with _loading(name, files), torch.device("meta"):
        return kind.from_config(config, trust_remote_code=False)


def _read(name: str, files: ModelFiles) -> tuple[Any, Any]:
    """Read backbone and tokenizer, and refuse weights that do not fill the architecture."""
    backbone, tokenizer, missing = read(name, files, transformers.AutoModel, attn_implementation=NAME)
    if getattr(backbone, "pooler", None) is not None:
        backbone.pooler.requires_grad_(False)  # the embedding does not use it; it is kept so that the export is whole
        if any(key.startswith("pooler.") for key in missing):
            backbone.pooler = None
            missing = [key for key in missing if not key.startswith("pooler.")]
    if missing:
        raise ModelError(name, f"its weights lack {listed(missing, 3)}", "is config.json the one of these weights?")
    return backbone, tokenizer


def positions_of(backbone: Any) -> tuple[int, int | None, bool]:
    """Return the first position, how many there are (None = no limit is known), and whether a text can have no more.

    RoBERTa and its kin count from padding_idx + 1, which their table of positions tells. Rotary positions have no table.
    """
    room, fixed = getattr(backbone.config, "max_position_embeddings", None), False
    for name, module in backbone.named_modules():
        if isinstance(module, torch.nn.Embedding) and name.endswith("position_embeddings"):
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            return first, module.num_embeddings - first, True
        fixed = fixed or (isinstance(module, torch.nn.Embedding) and name.endswith(("wpe", "embed_positions")))
    return 0, room if isinstance(room, int) and room > 0 else None, fixed


def limit_of(name: str, files: ModelFiles, tokenizer: Any, room: int | None, fixed: bool, wanted: int | None) -> int:
    """Return max_tokens: what is wanted, else the model's own limit; `room` as of `positions_of`, and `fixed` too."""
    if wanted is not None:
        least = 1 + len(_ids(tokenizer, [""])[0])
        if room is not None and wanted > room:
            raise ModelError(name, f"max_tokens is {wanted}, but the model has {room} positions", f"give {room} or less")
        if wanted < least:
            raise ModelError(name, f"max_tokens is {wanted}, which leaves no room for text", f"give {least} or more")
        return wanted
    said = files.sentence.max_tokens if files.sentence else None
    own = said or tokenizer.model_max_length
    # sentence-transformers takes its own word even where the config says less, which rotary positions allow.
    limits = [own] if said and not fixed else [own, room]
    known = [limit for limit in limits if limit is not None and limit < NO_LIMIT]
    if not known:
        raise ModelError(name, "does not say how many tokens it can read", "give max_tokens")
    if min(known) < 1 + len(_ids(tokenizer, [""])[0]):
        raise ModelError(name, f"reads {min(known)} tokens, which leaves no room for text", "mend its max_seq_length")
    return int(min(known))


def _lacks_end(name: str, tokenizer: Any) -> bool:
    """Tell whether the tokenizer leaves the end of a text unmarked; what it appends itself is kept, whatever it is."""
    with_end, bare = _ids(tokenizer, ["a"])[0], _ids(tokenizer, ["a"], add_special_tokens=False)[0]
    if with_end[-1:] != bare[-1:]:
        return False
    if tokenizer.eos_token_id is None:
        raise ModelError(name, "its tokenizer has no end-of-text token, which a decoder is pooled at", "set eos_token in it")
    return True


def check_packing(model: Model) -> None:
    """Compare a few texts packed with the same texts one at a time through the model's own eager attention.

    Raises:
        ModelError: they differ, or the architecture does not hand segments to its attention.
    """
    advice = "its architecture cannot be trained or encoded without padding"
    on_cuda = model.backbone.device.type == "cuda"  # where float32 and bfloat16 take different kernels
    for dtype in (torch.float32, torch.bfloat16) if on_cuda else (torch.float32,):
        try:
            difference = _packing_difference(model, dtype)
        except CannotPack as error:
            raise ModelError(model.name, str(error), advice) from None
        except UserError:
            raise
        except Exception as error:  # an architecture that takes no positions or keeps its states elsewhere, or odd sizes
            what = f"its {type(model.backbone).__name__} cannot encode texts packed together ({first_line(error)})"
            raise ModelError(model.name, what, advice) from error
        if not difference <= TOLERANCE[dtype]:
            what = f"texts packed together get other vectors than alone (they differ by {difference:.2g})"
            raise ModelError(model.name, what, advice)


def _packing_difference(model: Model, dtype: torch.dtype) -> float:
    """Return how far the vectors of `CHECK_TEXTS`, packed, are from those of each alone in transformers' eager attention."""
    backbone, tokens = model.backbone, model.tokenize(CHECK_TEXTS)
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
