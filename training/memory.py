"""How much memory a step takes, counted on fake tensors before it runs, and how many tokens therefore fit into a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import AttentionInterface

from curation.core.errors import SetupError, first_line, is_out_of_memory
from curation.recipe.settings import Train
from training import ranks
from training.backend import Backend, checkpoint_layers
from training.checkpoint import Say
from training.model.device import dtype_of
from training.model.model import quiet

COUNTED_ATTENTION = "counted"  # the name in transformers of an attention that keeps what the kernels of GPUs keep
TOKENS = 512  # of the forwards that are counted
SHARE_OF_FREE = 0.8  # for activations; the rest is for gradients of activations, the loss, and fragments
ADVICE = "use a smaller model, or share them out over several GPUs with `deepspeed: {zero: 2}`"


class Kept(NamedTuple):
    """The bytes that a forward keeps for its backward."""

    per_token: float
    fixed: float  # copies of the weights in bfloat16


class _Kernel(torch.autograd.Function):
    """What attention keeps on a GPU: (T, heads, d) each of queries, keys, values and result, and a number per token and head."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return as many numbers as attention does."""
        attended = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, attended, query.new_empty(query.shape[:2], dtype=torch.float32))
        return attended


def _counted_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **others: Any
) -> tuple[Tensor, None]:
    query, key, value = (states.to(value.dtype)[0].transpose(0, 1).contiguous() for states in (query, key, value))
    if value.dtype == torch.float32:  # the kernel for float32 gets keys and values once per head of the query
        key, value = (states.repeat_interleave(query.shape[1] // states.shape[1], dim=1) for states in (key, value))
    return _Kernel.apply(query, key, value)[None], None  # type: ignore[no-untyped-call]


AttentionInterface.register(COUNTED_ATTENTION, _counted_attention)


def kept_bytes(config: Any, dtype: torch.dtype, checkpointing: bool) -> Kept:
    """Count what a model of transformers keeps on a GPU for the backward; nothing is computed, and no GPU is needed.

    With checkpointing it is what all layers keep, and what one keeps while its backward runs.
    """
    plain, layers = _difference(config, dtype, False)
    if not checkpointing:
        return plain
    short, _ = _difference(config, dtype, True)
    return Kept(short.per_token + plain.per_token / layers, short.fixed + plain.fixed / layers)


def _difference(config: Any, dtype: torch.dtype, checkpointing: bool) -> tuple[Kept, int]:
    """Return what is kept, from the difference of two lengths, and the number of layers."""
    config = deepcopy(config)
    with quiet(), torch.device("meta"):
        backbone = transformers.AutoModel.from_config(config, attn_implementation=COUNTED_ATTENTION, dtype=torch.float32).eval()
    if getattr(backbone, "pooler", None) is not None:
        backbone.pooler = None
    layers = [module for module in backbone.modules() if isinstance(module, GradientCheckpointingLayer)]
    if checkpointing:
        checkpoint_layers(backbone)
        for layer in layers:
            layer.training = True
    with FakeTensorMode():
        for module in backbone.modules():  # autocast does nothing for meta tensors
            for own in (module._parameters, module._buffers):
                for name, one in own.items():
                    if one is not None:
                        fake = torch.empty(one.shape, dtype=one.dtype)
                        own[name] = nn.Parameter(fake) if own is module._parameters else fake
        few, many = (_kept(backbone, tokens, dtype) for tokens in (TOKENS, 2 * TOKENS))
    return Kept((many - few) / TOKENS, max(2 * few - many, 0)), max(len(layers), 1)


def _kept(backbone: Any, tokens: int, dtype: torch.dtype) -> int:
    """Return the bytes of the distinct storages, other than weights, that a forward keeps for its backward."""
    weights = {weight.untyped_storage()._cdata for weight in backbone.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        if (storage := tensor.untyped_storage())._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    ids, positions = torch.zeros(1, tokens, dtype=torch.int64), torch.arange(tokens)[None]
    with (
        torch.enable_grad(),
        torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16),
        saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        states = backbone(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state
    pooled = 0 if states.dtype == torch.float32 else 4 * states.numel()  # the pooling reads the last states in float32
    return sum(storage.nbytes() for storage in kept.values()) + int(pooled)


def with_budget(recipe: Train, backend: Backend, config: Any, first: int, circumstances: dict[str, Any], say: Say) -> Train:
    """Return the recipe with a `token_budget` that fits into the GPU if it has none; on a CPU the recipe unchanged.

    A run that continues keeps the budget that it began with, which is in `circumstances` and saved with them. All processes
    get the same budget.

    Raises:
        SetupError: gradients and optimizer alone do not fit.
    """
    before = circumstances.pop("token_budget", None)
    if backend.device.type != "cuda":
        return recipe
    free, total = torch.cuda.mem_get_info(backend.device)
    free += torch.cuda.memory_reserved(backend.device) - torch.cuda.memory_allocated(backend.device)
    stage = recipe.deepspeed.zero if recipe.deepspeed else 0
    each = (4 if stage < 2 else 4 / backend.world) + (0 if first else 8 if not stage else 8 / backend.world)
    taken = each * sum(getattr(weight, "ds_numel", weight.numel()) for weight in backend.weights.values())
    if not (recipe.deepspeed and recipe.deepspeed.offload) and ranks.largest(taken - free) > 0:
        what = (
            f"out of memory: the gradients and the optimizer alone do not fit; besides the weights they take "
            f"{taken / 1e9:.1f} GB, and {free / 1e9:.1f} of {total / 1e9:.1f} GB are free"
        )
        raise SetupError(str(backend.device), what, ADVICE)
    if recipe.token_budget is not None:
        return recipe
    if before is None:
        try:
            kept = kept_bytes(config, dtype_of(recipe.dtype, backend.device), recipe.checkpointing)
        except Exception as error:  # the count is a help: what it does not support can be trained without
            say(f"token_budget: none, because the memory of a step cannot be counted ({first_line(error)})")
            return recipe
        before = int(-ranks.largest(-tokens_that_fit(free - taken, kept)))
        room = f"{free / 1e9:.1f} GB of the GPU are free and a token takes {kept.per_token / 1e6:.2f} MB"
        say(f"token_budget: {before:,}, chosen because {room}")
    circumstances["token_budget"] = before
    return recipe.model_copy(update={"token_budget": before})


def tokens_that_fit(free: float, kept: Kept) -> int:
    """Return the tokens of a forward and backward that so many free bytes are enough for, at least 1."""
    return max(int((SHARE_OF_FREE * free - kept.fixed) / kept.per_token), 1)


@contextmanager
def explain_without_room(device: torch.device, name: str) -> Iterator[None]:
    """Turn an out-of-memory error outside of forward and backward into one line.

    Raises:
        SetupError: the weights, or the optimizer, do not fit.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not has_no_room(error):
            raise
        what = f"out of memory: the weights of {name}, their gradients and the optimizer alone do not fit (16 bytes per weight)"
        raise SetupError(str(device), what, ADVICE) from None


def has_no_room(error: BaseException) -> bool:
    """Return whether an error says that a GPU, or this machine, has no memory left."""
    return is_out_of_memory(error) or isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error)
