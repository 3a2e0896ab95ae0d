"""Small building blocks: layers whose initial values are hashes, dropout by hash, feed-forward, LayerScale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from maestro_dist import rng
from maestro_dist.model.convolution import Convolution
from maestro_dist.model.tokenwise import (
    FeedForwardParameters,
    HashedDropout,
    NormParameters,
    compute_type,
    dropout_by_hash,
    feed_forward,
    residual_norm,
)

Key = Callable[[str], int]
"""Maps the name of a module's parameter to the 64-bit key of its initial draws."""


class Linear(nn.Linear):
    """`nn.Linear` whose parameters get their initial values from their names (`Trunk.initialise`)."""

    def reset_parameters(self) -> None:
        """Leave the memory unchanged, and draw nothing from torch's generator."""

    def fill(self, key: Key) -> None:
        """U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
        rng.fill_linear_(self.weight, self.in_features, key("weight"))
        if self.bias is not None:
            rng.fill_linear_(self.bias, self.in_features, key("bias"))


class ByModality(nn.ModuleDict):
    """One module for each modality, under any name.

    Torch's `ModuleDict` refuses names that modules have as attributes (`cpu`, `type`, `items`), because it offers its
    modules as attributes too. Here they are items only, `modules["cpu"]`, so that no name is confused with an attribute
    (`training`, `fill`). The parameters have the same names as in a `ModuleDict`.
    """

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """Add a module under the name of its modality."""
        self._modules[name] = cast(nn.Module, module)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}; modules are items")

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)


class Windowed(Linear):
    """A convolution over time, as matrix products on windows of neighbouring tokens.

    Unlike `nn.Conv1d` it uses the [R, L, C] layout and accepts sequences of length 0.
    """

    def __init__(self, channels: int, outputs: int, kernel: int) -> None:
        self.kernel = kernel
        super().__init__(kernel * channels, outputs)

    def forward(self, x: Tensor, stride: int = 1) -> Tensor:
        """Tokens x [R, L + kernel - 1, C], already padded -> [R, ceil(L / stride), outputs]."""
        parts, device = [x, self.weight, self.bias], x.device.type
        if torch.is_autocast_enabled(device):
            parts = [part.to(torch.get_autocast_dtype(device)) for part in parts]
        out: Tensor = Convolution.apply(*parts, self.kernel, stride)
        return out


def taps(x: Tensor, kernel: int, stride: int) -> list[Tensor]:
    """The `kernel` shifted views of padded x [R, L + kernel - 1, ...] that a convolution reads."""
    length = x.shape[1] - kernel + 1
    return [x[:, offset : offset + length : stride] for offset in range(kernel)]


def dropout(x: Tensor, p: float, row_key: Tensor, numbers: Tensor | None = None) -> Tensor:
    """Inverted dropout of x [..., C]; `row_key` int64 [...] keys the draws of each row.

    `numbers` int64 [C] are the numbers of the columns in the complete row, if x has only some of them.
    """
    numbers = torch.arange(x.shape[-1], device=x.device) if numbers is None else numbers
    return dropout_by_hash(x, p, row_key, rng.lanes(numbers))


class FeedForward(nn.Module):
    """Linear, GELU, Linear on each token. With `tile`, see `tokenwise.feed_forward`."""

    def __init__(self, width: int, hidden: int, tile: int | None = None) -> None:
        super().__init__()
        self.tile = tile
        self.expand = Linear(width, hidden)
        self.contract = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [N, d] -> [N, d]."""
        dtype = compute_type(x)
        parameters = (self.expand.weight, self.expand.bias, self.contract.weight, self.contract.bias)
        cast_parameters = FeedForwardParameters(*(parameter.to(dtype) for parameter in parameters))
        return feed_forward(x.to(dtype), cast_parameters, self.tile)


class ResidualNorm(nn.LayerNorm):
    """LayerNorm of a residual sum with dropout on the branch."""

    def forward(  # type: ignore[override]
        self, x: Tensor, branch: Tensor, scale: Tensor | None, dropout: HashedDropout | None
    ) -> Tensor:
        """LayerNorm(x + scale * dropout(branch)): x, branch [N, d], scale [d]."""
        norm = NormParameters(self.weight, self.bias, self.eps)
        return residual_norm(x, branch.to(x.dtype), scale, norm, dropout)


def checkpointed(recompute: bool, function: Callable[..., Any], *inputs: Any) -> Any:
    """`function(*inputs)`. With `recompute`, it stores nothing inside for the backward, which computes it again.

    All draws are keyed, so the second run gives the same bits, and the state of torch's generators does not matter. The
    second run stops after the last tensor that the backward needs (`early_stop`). ZeRO 3 needs this: it frees the
    parameters of a module at its end, and the backward of the last module follows immediately.
    """
    if not recompute or not torch.is_grad_enabled():
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False, early_stop=True)


class LayerScale(nn.Module):
    """A learned factor for each channel of a residual branch (Touvron et al., 2021)."""

    def __init__(self, width: int, start: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((width,), start))
