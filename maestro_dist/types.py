"""Types that all parts of the package share.

Shape letters, here and in most modules (attention has its own, see `model/attention/variant.py`): B samples of a
micro-batch, M modalities (sorted by name), R_j samples that have modality j, T_j steps, D_j variates, W_j words,
L tokens, C outputs, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

MULTILABEL = "multilabel"
"""The task whose samples have any number of labels."""
_LOOK = 64
"""Steps that are looked at together for the last observed one; then twice as many, and so on."""


def label_bits(sets: np.ndarray, labels: int) -> np.ndarray:
    """Which labels each set has, bool [N, labels]. A set is a whole number, to which label k adds 2^k: int64 [N]."""
    return (sets[:, None] >> np.arange(labels, dtype=np.int64) & 1).astype(bool)


@dataclass(frozen=True)
class Modality:
    """One sensor stream.

    steps      T_j, the length of a full window at `rate_hz` (Hz)
    mean, std  statistics of the training split in `unit`, one number per variate
    always     the modality is known for every sample (such as age): modality dropout and the masks of an evaluation
               never remove it
    """

    name: str
    variates: int
    rate_hz: float
    steps: int
    unit: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    always: bool = False

    @property
    def seconds(self) -> float:
        """Duration of a full window."""
        return self.steps / self.rate_hz


@dataclass(frozen=True)
class TargetScale:
    """One of several targets of a regression: its name, and its mean and standard deviation in the training split."""

    name: str
    mean: float = 0.0
    std: float = 1.0


@dataclass(frozen=True)
class HeadShape:
    """What a model predicts: C `numbers`, for the sample or for each of its `steps` parts of `every_s` seconds."""

    numbers: int
    steps: int = 1
    every_s: float = 0.0


@dataclass
class Batch:
    """A micro-batch of raw windows. It contains only observed data: a modality has rows for the samples that have it.

    values[j]      float32 [R_j, T_j, D_j], NaN where a step was not observed; R_j may be 0
    rows[j]        int64 [R_j], ascending: the sample of each row of `values[j]` or `symbols[j]`
    symbols[j]     uint8 [R_j, W_j, D_j] instead of `values[j]` if the data is read as SAX symbols
    present        bool [B, M]: sample b has modality m (M sorted by name); agrees with `rows`
    sample         int64 [B]: index of the sample in its split, in manifest order; part of the key of every random draw
    target         int64 [B] (class) or float32 [B] (regression); of K targets float32 [B, K], of S labels
                   over time float32 [B, S] (or [B, S K]), NaN where one is unknown
    partner_target [B], as `target`: target of the sample that b was mixed with; None without mixup
    mix            float32 [B]: weight of sample b in its mixture; None without mixup
    recording[j]   float32 [R_j, D_j, 2]: mean and std of the recording up to the end of the window, if given
    keys           names of the samples, for messages
    views          2 if each sample occurs twice: rows 0 .. B/2 - 1 of a [B] tensor are complete, the others are
                   the same samples in the same order with modalities dropped; `keys` has each once. Else 1
    bad            bad samples that were skipped (`data.max_bad_samples`): one line each with name and reason
    bad_samples    their indices, as in `sample`
    last           whether this is the last micro-batch of its global batch
    global_samples samples in the complete global batch, over all ranks and micro-batches (fewer at an epoch's end)
    position       samples consumed since the start of the run, with this global batch
    on_host[j]     `rows[j]` as plain integers, kept if the batch is copied to another device; None: not known
    ends[j]        steps of `values[j]` (without values: words of `symbols[j]`) up to the last observed one of any row,
                   kept if the batch is copied to another device; None: not known
    epoch, step    0-based epoch and 0-based optimizer step that this micro-batch belongs to
    """

    values: dict[str, Tensor]
    rows: dict[str, Tensor]
    present: Tensor
    sample: Tensor
    target: Tensor
    recording: dict[str, Tensor] = field(default_factory=dict)
    symbols: dict[str, Tensor] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    bad_samples: list[int] = field(default_factory=list)
    views: int = 1
    last: bool = True
    global_samples: int = 0
    position: int = 0
    epoch: int = 0
    step: int = 0
    on_host: dict[str, list[int]] | None = None
    ends: dict[str, int] | None = None
    partner_target: Tensor | None = None
    mix: Tensor | None = None

    def __len__(self) -> int:
        return int(self.sample.shape[0])

    @property
    def samples(self) -> int:
        """Number of samples, each counted once."""
        return len(self) // self.views

    def host_rows(self, names: Sequence[str]) -> list[list[int]] | None:
        """`rows` of the named modalities as plain integers; None if they are only on the device."""
        if self.on_host is not None:
            return [self.on_host[name] for name in names]
        if self.sample.device.type != "cpu":
            return None
        return [self.rows[name].tolist() for name in names]

    def host_ends(self, names: Sequence[str]) -> list[int] | None:
        """`ends` of the named modalities; None if they are only on the device."""
        if self.ends is not None:
            return [self.ends[name] for name in names]
        if self.sample.device.type != "cpu":
            return None
        return [_observed_end(self.values[name] if name in self.values else self.symbols[name]) for name in names]

    def map(self, change: Callable[[Any], Any]) -> Batch:
        """The same batch with `change` applied to each tensor, in a fixed order."""
        moved: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if hasattr(value, "dtype"):
                moved[item.name] = change(value)
            elif isinstance(value, dict) and item.name not in ("on_host", "ends"):
                moved[item.name] = {name: change(tensor) for name, tensor in value.items()}
        return replace(self, **moved)

    def to(self, device: Any) -> Batch:
        """The same batch on another device; pinned memory is copied asynchronously."""
        moved = self.map(lambda tensor: tensor.to(device, non_blocking=True))
        names = list(self.rows)
        on_device = moved.sample.device.type != "cpu"
        known, ends = (self.host_rows(names), self.host_ends(names)) if on_device else (None, None)
        moved.on_host = None if known is None else dict(zip(names, known, strict=True))
        moved.ends = None if ends is None else dict(zip(names, ends, strict=True))
        return moved

    def tensors(self) -> Batch:
        """The same batch with tensors instead of numpy arrays; they share memory."""
        import torch

        return self.map(torch.from_numpy)

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory (CUDA only)."""
        return self.map(lambda tensor: tensor.pin_memory())


def _observed_end(x: Tensor) -> int:
    """Steps of windows [R, T, D] (not finite: not observed), or of symbols (0: missing), up to the last observed one of
    any row; T without rows."""
    rows, end = x.shape[:2]
    look = 1
    while rows and end:
        start = max(0, end - look)
        part = x[:, start:end]
        seen = part.isfinite() if part.is_floating_point() else part > 0
        if bool(seen.any()):
            return start + int(seen.any(2).any(0).nonzero()[-1]) + 1
        end, look = start, max(_LOOK, 2 * look)
    return end


class Output(TypedDict, total=False):
    """The output of the model (a plain dict, in which DeepSpeed finds the tensors).

    logits           [B, C]; over time [B, S C]: those of the first part, then those of the next
    modality_logits  [B, M, C] or [B, M, S C]: logits of each modality's own head, 0 if absent (additive head only)
    observed         bool [B, M]: sample b has an observed step of modality m; false also if the modality is present
                     without any observed step
    budgets          [B, M] detached: u_ij of the last encoder layer, 0 if absent
    queries          [B, M] detached: the number of queries n_ij of this budget (real-valued)
    expert_load      int64 [layers, M, E]: tokens sent to each expert by modality, one slice per cross-modal layer
    expert_load_by_sample int32 [layers, B, E]: these tokens by sample; with `Batch.present`, by missing set
    masked           [B, 3], in pre-training instead of logits: over the masked symbols to predict, the sum of their
                     cross-entropies (nats), the number of correct predictions, their number
    """

    logits: Tensor
    modality_logits: Tensor
    observed: Tensor
    budgets: Tensor
    queries: Tensor
    expert_load: Tensor
    expert_load_by_sample: Tensor
    masked: Tensor
