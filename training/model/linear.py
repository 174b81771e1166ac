"""Linear layers of an encoder on a CPU, by oneDNN and with their weights laid out for it once.

torch itself multiplies float32 matrices by MKL, which is slower on processors that are not Intel's, and lays bfloat16
weights out again at every call. The operators are those that torch.compile puts in the place of a linear layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Prepacked(nn.Module):
    """A linear layer without a backward: (..., in) of any float dtype -> (..., out) of the weight's."""

    def __init__(self, linear: nn.Linear, rows: int) -> None:
        """Take a layer over; `rows` is about how many are multiplied at once."""
        super().__init__()
        packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), rows)
        self.weight, self.bias = nn.Parameter(packed, requires_grad=False), linear.bias

    def forward(self, states: Tensor) -> Tensor:
        """Return the products, and the bias where there is one."""
        found: Tensor = torch.ops.mkldnn._linear_pointwise(states.to(self.weight.dtype), self.weight, self.bias, "none", [], "")
        return found


def prepack(model: nn.Module, dtype: torch.dtype, rows: int) -> None:
    """Cast a model's linear layers to float32 or bfloat16 for good, and prepack them where this processor and torch can."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            module.to(dtype)
            if type(module) is nn.Linear and _can_prepack(module.weight):
                parent, _, own = name.rpartition(".")
                setattr(model.get_submodule(parent), own, Prepacked(module, rows))


def _can_prepack(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return weight.dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
