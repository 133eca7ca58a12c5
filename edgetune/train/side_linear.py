"""One frozen linear under several adapters at once: each adapter's tokens pass the same product, then its own branch.

The frozen weight is dequantised once forward and once backward for all adapters, and its products are one large matrix
product in place of many small ones. What a branch computes is train/fused.py's, adapter by adapter.
Source: the batched LoRA of mLoRA, arXiv:2312.02515, section 4.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from edgetune.train.fused import draw_kept, frozen_weight, masked


@dataclass
class Sharing:
    """How the tokens of a pass belong to adapters; one for all linears of a model."""

    tokens: int = 0
    """Of each adapter: its are those after the adapters' before it. What comes after the last are pads."""
    padded: int = 0
    """Tokens of an adapter that is trained alone, pads included: so many masks it draws."""
    generators: list[torch.Generator] = field(default_factory=list)
    """Of each adapter's dropout."""
    is_dropping: bool = True
    active: slice = field(default_factory=lambda: slice(None))
    """The adapters that take part in the pass."""


@dataclass(frozen=True)
class SideBranch:
    """One adapter's part in a linear: y += scaling * dropout(x) A^T B^T."""

    a: nn.Parameter
    b: nn.Parameter
    scaling: float
    rate: float


def lora_layers(model: Any) -> Iterator[tuple[str, Any]]:
    """Path and module of every linear of a transformers model that PEFT has put a LoRA on."""
    from peft.tuners.lora import LoraLayer

    return ((name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer))


def branch_of(layer: Any) -> SideBranch:
    """The branch that PEFT has put on a linear: its active adapter's matrices, scaling and dropout."""
    name = layer.active_adapters[0]
    drop = layer.lora_dropout[name]
    rate = float(drop.p) if isinstance(drop, torch.nn.Dropout) else 0.0
    return SideBranch(layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name], rate)


class SideLinear(nn.Module):
    """x (1, adapters * tokens + pads, in) -> (1, the same, out)."""

    def __init__(self, base: nn.Module, branches: Sequence[SideBranch], sharing: Sharing) -> None:
        super().__init__()
        self.base_layer, self.branches, self.sharing = base, tuple(branches), sharing

    def forward(self, x: Tensor) -> Tensor:
        """The frozen linear's output with each adapter's branch on its own tokens, in the compute type."""
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        branches = self.branches[self.sharing.active]
        weights = [weight for branch in branches for weight in (branch.a, branch.b)]
        made: Tensor = _SideProduct.apply(x.to(dtype), self, branches, *weights)
        return made


class _SideProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: SideLinear, branches: tuple[SideBranch, ...], *_: Tensor) -> Tensor:
        rows, sharing, base = x.reshape(-1, x.shape[-1]), layer.sharing, layer.base_layer
        generators = sharing.generators[sharing.active]
        weight = frozen_weight(base, rows.dtype)
        y = rows @ weight.t() if base.bias is None else torch.addmm(base.bias.to(rows.dtype), rows, weight.t())
        kept_parts, inners, scales = [], [], []
        for number, branch in enumerate(branches):
            mine = slice(number * sharing.tokens, (number + 1) * sharing.tokens)
            kept, share = None, 1.0
            if branch.rate and sharing.is_dropping:
                shape = torch.Size((sharing.padded, rows.shape[1]))
                kept, share = draw_kept(shape, branch.rate, rows.device, generators[number])
                kept = kept[: sharing.tokens]
            inner = masked(rows[mine], kept) @ branch.a.to(rows.dtype).t()
            y[mine].addmm_(inner, branch.b.to(rows.dtype).t(), alpha=branch.scaling / share)
            kept_parts.append(kept)
            inners.append(inner)
            scales.append(branch.scaling / share)
        ctx.save_for_backward(rows, *inners)
        ctx.base, ctx.branches, ctx.kept, ctx.scales, ctx.tokens = base, branches, kept_parts, scales, sharing.tokens
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        rows, *inners = ctx.saved_tensors
        shape = gradients[0].shape
        gradient = gradients[0].reshape(-1, shape[-1])
        grad_x = gradient @ frozen_weight(ctx.base, gradient.dtype) if ctx.needs_input_grad[0] else None
        found = []
        for number, (branch, inner, kept, scale) in enumerate(
            zip(ctx.branches, inners, ctx.kept, ctx.scales, strict=True)
        ):
            mine = slice(number * ctx.tokens, (number + 1) * ctx.tokens)
            low_a, low_b = branch.a.to(gradient.dtype), branch.b.to(gradient.dtype)
            grad_inner = (gradient[mine] @ low_b).mul_(scale)
            found += [grad_inner.t() @ masked(rows[mine], kept), (gradient[mine].t() @ inner).mul_(scale)]
            if grad_x is not None:
                if kept is None:
                    grad_x[mine].addmm_(grad_inner, low_a)
                else:
                    grad_x[mine] += masked(grad_inner @ low_a, kept)
        return (None if grad_x is None else grad_x.view(*shape[:-1], -1)), None, None, *found
