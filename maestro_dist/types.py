"""The words that all rooms share.

Shape letters, here and everywhere: B samples of a micro-batch, M modalities (sorted by name), R_j samples that have
modality j, T_j steps, D_j variates, W_j words, L tokens, C outputs, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from torch import Tensor


ReportLine = Callable[[str], None]
"""Shows one line to the person who started the run."""


@dataclass(frozen=True)
class Modality:
    """One sensor stream as the model sees it.

    `steps` is T_j, the length of a full window at `rate_hz` (Hz). `mean` and `std` are those of the training split,
    one number a variate, in `unit`. `always`: what a record always knows (age, say): never taken away, neither by
    modality dropout nor by the masks of an evaluation.
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


@dataclass
class Batch:
    """A micro-batch of raw windows. Only what is observed is carried: a modality's rows are those samples that have it.

    values[j]      float32 [R_j, T_j, D_j], NaN where a step was not observed; R_j may be 0
    rows[j]        int64 [R_j], ascending: which samples of the batch the rows of `values[j]`, or `symbols[j]`, are
    symbols[j]     uint8 [R_j, W_j, D_j] instead of `values[j]` where the data is read as SAX symbols
    present        bool [B, M]: sample b has modality m (M sorted by name); agrees with `rows`
    sample         int64 [B]: number of the sample in its split, in manifest order; keys every random draw
    target         int64 [B] (class) or float32 [B] (regression)
    partner_target [B], as `target`: that of the sample that sample b was mixed with; None without mixup
    mix            float32 [B]: the share of sample b in its mixture; None without mixup
    recording[j]   float32 [R_j, D_j, 2]: mean and std of the recording up to the window's end, where the data has them
    keys           the samples' names, for messages
    views          2 where each sample is there twice: rows 0 .. B/2 - 1 of what is [B] here are whole, the others the
                   same samples in the same order with modalities dropped; `keys` names each once. Else 1
    bad            bad samples skipped here under `data.max_bad_samples`, each as one line that names it and says why
    bad_samples    the numbers of those, as `sample` has them
    last           whether this is the last micro-batch of its global batch
    global_samples samples in the whole global batch, over all ranks and micro-batches (smaller at an epoch's tail)
    position       samples consumed since the start of the run once this global batch is done
    on_host[j]     `rows[j]` as plain integers, kept when a batch goes to another device; None: not known
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
    partner_target: Tensor | None = None
    mix: Tensor | None = None

    def __len__(self) -> int:
        return int(self.sample.shape[0])

    @property
    def samples(self) -> int:
        """Number of samples, each counted once."""
        return len(self) // self.views

    def host_rows(self, names: Sequence[str]) -> list[list[int]] | None:
        """`rows` of the named modalities as plain integers; None where only the device knows them."""
        if self.on_host is not None:
            return [self.on_host[name] for name in names]
        if self.sample.device.type != "cpu":
            return None
        return [self.rows[name].tolist() for name in names]

    def map(self, change: Callable[[Any], Any]) -> Batch:
        """The same batch with each of its tensors changed, in one order."""
        moved: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if hasattr(value, "dtype"):
                moved[item.name] = change(value)
            elif isinstance(value, dict) and item.name != "on_host":
                moved[item.name] = {name: change(tensor) for name, tensor in value.items()}
        return replace(self, **moved)

    def to(self, device: Any) -> Batch:
        """The same batch on another device; pinned memory is copied without waiting."""
        moved = self.map(lambda tensor: tensor.to(device, non_blocking=True))
        known = self.host_rows(list(self.rows)) if moved.sample.device.type != "cpu" else None
        moved.on_host = None if known is None else dict(zip(self.rows, known, strict=True))
        return moved

    def tensors(self) -> Batch:
        """The same batch with tensors where a reader has put numpy's arrays; they share their memory."""
        import torch

        return self.map(torch.from_numpy)

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory (CUDA only)."""
        return self.map(lambda tensor: tensor.pin_memory())


class Output(TypedDict, total=False):
    """What the model returns (a plain dict: DeepSpeed finds the tensors in it).

    logits           [B, C]
    modality_logits  [B, M, C]: those of each modality's own head, 0 where absent (additive head only)
    observed         bool [B, M]: sample b has an observed step of modality m; false also where the modality is there
                     but nothing of it was observed
    budgets          [B, M] detached: u_ij of the last encoder layer, 0 where absent
    queries          [B, M] detached: number of queries n_ij that went with it (real)
    expert_load      int64 [layers, M, E]: tokens sent to each expert, by modality, one slice a cross-modal layer
    expert_load_by_sample int32 [layers, B, E]: the same by sample; with `Batch.present`, by missing set
    masked           [B, 3]: over the hidden symbols that were asked for, sum of their cross-entropies (nats), how many
                     the model got right, how many there are (in pre-training, instead of logits)
    """

    logits: Tensor
    modality_logits: Tensor
    observed: Tensor
    budgets: Tensor
    queries: Tensor
    expert_load: Tensor
    expert_load_by_sample: Tensor
    masked: Tensor
