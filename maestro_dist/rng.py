"""Counter-based random numbers: every draw is a pure function of a key and indices.

A *key* is a 64-bit integer, computed on the host from (seed, purpose, epoch, step, layer, ...). A draw hashes a key and
integer indices (sample, head, global token, channel). There is no generator state. Therefore the draws do not
change if a batch or a sequence is split over ranks, or if a run is restarted.

The 64-bit mixer is splitmix64's finalizer (Steele, Lea, Flood, OOPSLA 2014), with identical bits in numpy and torch.
A mask of the size of an activation needs one multiplication per element (`keep_mask`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15
_M1 = 0xBF58476D1CE4E5B9
_M2 = 0x94D049BB133111EB


Keyed = Callable[..., int]
"""Makes a key from parts, such as a layer name; the common parts (seed, ...) are bound."""


def _mix_int(value: int) -> int:
    value = ((value ^ (value >> 30)) * _M1) & _MASK
    value = ((value ^ (value >> 27)) * _M2) & _MASK
    return value ^ (value >> 31)


def key(*parts: int | str) -> int:
    """A 64-bit key from integers and names, in order. `key(seed, "dropout", step, "fusion.0")`."""
    state = 0
    for part in parts:
        if isinstance(part, str):
            number = int.from_bytes(hashlib.blake2b(part.encode(), digest_size=8).digest(), "little")
        else:
            number = int(part) & _MASK
        state = _mix_int((state + _GAMMA + number) & _MASK)
    return state


def _signed(value: int) -> int:
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


# numpy: draws on the host (order, modality dropout)


def bits_np(key: int, *indices: np.ndarray | int) -> np.ndarray:
    """uint64 hash of (key, indices), broadcast over the index arrays."""
    state = np.asarray(np.uint64(key))
    with np.errstate(over="ignore"):
        for index in indices:
            state = state + np.uint64(_GAMMA) + np.asarray(index).astype(np.uint64)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(_M1)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(_M2)
            state = state ^ (state >> np.uint64(31))
    return state


def uniform_np(key: int, *indices: np.ndarray | int) -> np.ndarray:
    """float64 in [0, 1) with 53 random bits."""
    return (bits_np(key, *indices) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normal_np(key: int, *indices: np.ndarray | int) -> np.ndarray:
    """float64 standard normal; equals `normal`. A value does not depend on its position in the array."""
    import torch

    return _quantile(torch.from_numpy(np.atleast_1d(uniform_np(key, *indices)))).numpy()


# torch: draws on the device


def _shift_right(value: Tensor, amount: int) -> Tensor:
    return (value >> amount) & ((1 << (64 - amount)) - 1)  # torch shifts int64 arithmetically


def bits(key: int | Tensor, *indices: Tensor | int) -> Tensor:
    """int64 hash of (key, indices), broadcast over the index tensors; the same bits as `bits_np`.

    `key` may be a result of `bits`, so that a common prefix is hashed once.
    """
    state: int | Tensor = _signed(key) if isinstance(key, int) else key
    for index in indices:
        if isinstance(index, int) and isinstance(state, int):
            state = _signed(_mix_int((state + _GAMMA + index) & _MASK))
            continue
        mixed: Tensor = state + index + _signed(_GAMMA)  # type: ignore[assignment]
        mixed = (mixed ^ _shift_right(mixed, 30)) * _signed(_M1)
        mixed = (mixed ^ _shift_right(mixed, 27)) * _signed(_M2)
        state = mixed ^ _shift_right(mixed, 31)
    if isinstance(state, int):
        raise TypeError("bits() needs at least one tensor among key and indices")
    return state


def uniform(key: int | Tensor, *indices: Tensor | int) -> Tensor:
    """float64 in [0, 1); equals `uniform_np`."""
    import torch

    return _shift_right(bits(key, *indices), 11).to(torch.float64) * 2.0**-53


def normal(key: int | Tensor, *indices: Tensor | int) -> Tensor:
    """float64 standard normal: the inverse distribution function of one uniform draw."""
    return _quantile(uniform(key, *indices))


def _quantile(share: Tensor) -> Tensor:
    import torch

    return torch.special.ndtri(share * (1 - 2.0**-53) + 2.0**-54)


def lanes(numbers: Tensor) -> Tensor:
    """The odd int32 multiplier of each column of a dropout mask, from its index (below 2^32) in the full row."""
    import torch

    lane = numbers.to(torch.int32)
    lane = (lane ^ ((lane >> 16) & 0xFFFF)) * 0x7FEB352D + 0x3C6EF372
    lane = (lane ^ ((lane >> 15) & 0x1FFFF)) * -0x7B935975  # 0x846CA68B as a signed 32-bit number
    return (lane ^ ((lane >> 16) & 0xFFFF)) | 1


def keep_mask(p: float, row_key: Tensor, lane: Tensor) -> Tensor:
    """Dropout mask: float32 [*row_key.shape, C], 0 with probability `p`, else 1.

    `row_key` int64: one hash per row, for example of (sample, token). `lane` [..., C]: column indices in the full
    row (int64), or their multipliers (int32, from `lanes`); leading dimensions broadcast. A slice of the columns
    gets the same draws. A draw compares the product, modulo 2^32, of the row's hash and the column's multiplier with a
    threshold (multiply-shift hashing: Dietzfelbinger et al., 1997). The comparison is in float32, so `p` is exact
    within 2^-24.
    """
    import torch

    multiplier = lane if lane.dtype == torch.int32 else lanes(lane)
    halves = row_key.contiguous().view(torch.int32).view(*row_key.shape, 2)
    row = halves[..., :1] ^ halves[..., 1:]
    return (row * multiplier).to(torch.float32).ge_(min(round(p * 2.0**32), (1 << 32) - 1) - (1 << 31))


def fill_normal_(parameter: Tensor, std: float, key: int) -> Tensor:
    """Fill in place with N(0, std) draws keyed by the flat index."""
    return _fill(parameter, normal(key, _flat(parameter)) * std)


def fill_uniform_(parameter: Tensor, bound: float, key: int, first: int = 0) -> Tensor:
    """Fill in place with U(-bound, bound) draws keyed by the flat index; `first` is the index of the first element."""
    return _fill(parameter, (uniform(key, _flat(parameter) + first) * 2 - 1) * bound)


def fill_linear_(parameter: Tensor, fan_in: int, key: int, first: int = 0) -> Tensor:
    """The default initialization of torch's linear and convolutional layers: U(-1/sqrt(fan_in), 1/sqrt(fan_in)).

    For a slice of a larger tensor, `first` is the flat index of its first element.
    """
    return fill_uniform_(parameter, 1.0 / math.sqrt(max(1, fan_in)), key, first)


def _flat(parameter: Tensor) -> Tensor:
    import torch

    return torch.arange(parameter.numel(), dtype=torch.int64, device=parameter.device)


def _fill(parameter: Tensor, values: Tensor) -> Tensor:
    import torch

    with torch.no_grad():
        return parameter.copy_(values.reshape(parameter.shape))
