"""Softmax attention of a few selected queries over very many keys: in tiles, or by torch's fused kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from maestro_dist.config.attention import KERNEL_ABILITIES
from maestro_dist.model.attention.tiles import DropFactors, TiledAttention, TileOptions, compute_dtype
from maestro_dist.model.layout import LOWEST


class AttendOptions(NamedTuple):
    """Options of `attend`.

    bias        [S, L]: 0 for an observed key, `LOWEST` for a missing one; None: all are observed
    drop        gives dropout factors for the first rows of the probabilities
    store       store the probabilities for the backward, which takes u x L numbers per head, or compute them again
    fused       use torch's kernel
    lengths     columns that each sample really has; the others are not read, and their gradient is 0
    """

    bias: Tensor | None = None
    drop: DropFactors | None = None
    store: bool = True
    fused: bool = False
    lengths: Sequence[int] | None = None


def uses_fused(kernel: str, device: torch.device, *, drops: bool, shares_sequence: bool) -> bool:
    """Whether `model.attention_kernel` means torch's fused kernel; auto uses it on a GPU if it supports the rest."""
    fused = KERNEL_ABILITIES["fused"]
    supported = (fused.drops_probabilities or not drops) and (fused.shares_sequence or not shares_sequence)
    return kernel == "fused" or (kernel == "auto" and supported and device.type != "cpu")


def attend(
    query: Tensor, key: Tensor, value: Tensor | None = None, options: AttendOptions | None = None
) -> tuple[Tensor, Tensor | None]:
    """softmax(query key^T + bias) value, and for each row the log-sum-exp of its scores (None from the fused kernel).

    query [S, H, u, c], already scaled; key [S, H, L, c]; value [S, H, L, c'], or None: the keys are also the values.
    Any strides are allowed. Returns [S, H, u, c'] in float32 (float64 for float64) and [S, H, u].
    """
    options = AttendOptions() if options is None else options
    values = key if value is None else value
    if options.fused:
        mask = None
        if options.bias is not None:
            mask = options.bias[:, None, None].to(query.dtype).expand(-1, 1, query.shape[2], -1)
        return F.scaled_dot_product_attention(query, key, values, attn_mask=mask, scale=1.0), None
    if key.shape[2] == 0:
        nothing = query.sum() * 0 + key.sum() * 0 + values.sum() * 0  # every input gets a gradient
        dtype = compute_dtype(query)
        out = nothing + query.new_zeros((*query.shape[:3], values.shape[3]), dtype=dtype)
        return out, nothing + query.new_full(query.shape[:3], LOWEST, dtype=dtype)
    tiles = TileOptions(options.bias, options.drop, options.store, options.lengths)
    result: tuple[Tensor, Tensor] = TiledAttention.apply(query, key, value, tiles)
    return result
