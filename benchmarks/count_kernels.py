"""Count the kernels that a GPU launches for a layer, and the bytes they move: `python benchmarks/count_kernels.py`; needs no GPU.

The layer is that of Qwen3-0.6B. It runs on fake tensors, which have shapes and dtypes but no numbers. An operation is a kernel
unless its result is a view or fresh memory. It moves its operands and results once. Attention is one kernel forward and one
backward. Counts are not speeds: no time is measured. The difference of two numbers of layers, and of two numbers of tokens,
leaves out what does not belong to a layer, and the weights.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.modeling_utils import AttentionInterface

from training.memory import kept_bytes

SHAPE: dict[str, Any] = {
    "hidden_size": 1024, "intermediate_size": 3072, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
    "vocab_size": 1000,
}  # fmt: skip
TOKENS = 1024


@torch.library.custom_op("kernels::attention", mutates_args=())
def attention_kernel(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Stand for a variable-length attention kernel: (T, heads, d) -> (T, heads, d)."""
    return torch.empty_like(query)


@torch.library.custom_op("kernels::attention_backward", mutates_args=())
def attention_backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, attended: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Stand for its backward."""
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


attention_kernel.register_fake(lambda query, key, value: torch.empty_like(query))
attention_backward.register_fake(
    lambda gradient, query, key, value, attended: (torch.empty_like(query), torch.empty_like(key), torch.empty_like(value))
)
attention_kernel.register_autograd(
    lambda ctx, gradient: attention_backward(gradient.contiguous(), *ctx.saved_tensors),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs, output),
)


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **others: Any
) -> tuple[Tensor, None]:
    """Do what `training.model.attention.packed_attention` does around a kernel."""
    query, key, value = (states.to(value.dtype)[0].transpose(0, 1).contiguous() for states in (query, key, value))
    return attention_kernel(query, key, value)[None], None


AttentionInterface.register("kernels", attend)


class Kernels(TorchDispatchMode):
    """Counts kernels and the bytes that they move."""

    def __init__(self) -> None:
        super().__init__()
        self.count = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count one operation."""
        found = func(*args, **(kwargs or {}))
        read = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        written = [one for one in tree_leaves(found) if isinstance(one, Tensor)]
        before = {one.untyped_storage()._cdata for one in read}
        fresh = [one for one in written if one.untyped_storage()._cdata not in before]
        in_place = func._schema.is_mutable
        if (fresh and read and "empty" not in func.__name__) or in_place:
            self.count += 1
            self.bytes += sum(one.numel() * one.element_size() for one in [*read, *(written if in_place else fresh)])
        return found


def measured(layers: int, tokens: int, dtype: torch.dtype, training: bool) -> tuple[int, int]:
    """Return the kernels and bytes of a forward, or of a forward and a backward."""
    config = transformers.Qwen3Config(**SHAPE, num_hidden_layers=layers)
    with torch.device("meta"):
        backbone = transformers.AutoModel.from_config(config, attn_implementation="kernels").eval()
    with FakeTensorMode():
        for module in backbone.modules():
            for own in (module._parameters, module._buffers):
                for name, one in own.items():
                    if one is not None:
                        # In encoding the products have weights in bfloat16 already, as `prepack` leaves them.
                        cast = torch.bfloat16 if not training and isinstance(module, nn.Linear) else one.dtype
                        fake = torch.empty(one.shape, dtype=cast if dtype == torch.bfloat16 else one.dtype)
                        own[name] = nn.Parameter(fake) if own is module._parameters else fake
        ids, positions = torch.zeros(1, tokens, dtype=torch.int64), torch.arange(tokens)[None]
        with Kernels() as kernels, torch.set_grad_enabled(training):
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                states = backbone(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state
            if training:
                states.float().sum().backward()
    return kernels.count, kernels.bytes


def main() -> None:
    """Print a table."""
    print("per layer of Qwen3-0.6B, counted  kernels  kB per token moved  kB per token kept")
    for dtype in (torch.bfloat16, torch.float32):
        for training in (False, True):
            (one, few), (two, more) = (measured(layers, TOKENS, dtype, training) for layers in (1, 2))
            (_, longer), (_, longest) = (measured(layers, 2 * TOKENS, dtype, training) for layers in (1, 2))
            moved = ((longest - longer) - (more - few)) / TOKENS / 1e3
            kept = [kept_bytes(transformers.Qwen3Config(**SHAPE, num_hidden_layers=n), dtype, False).per_token for n in (1, 2)]
            what = f"{str(dtype).removeprefix('torch.')}, {'forward and backward' if training else 'forward'}"
            shown = f"{(kept[1] - kept[0]) / 1e3:>17.1f}" if training else ""
            print(f"{what:<32}  {two - one:>7}  {moved:>18.0f}  {shown}".rstrip())


if __name__ == "__main__":
    main()
