"""A small model with MAESTRO's pattern of calls, ragged batches for it, and plain torch as the oracle of the engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from maestro_dist.types import Batch, Output

VARIATES = {"acc": 3, "eda": 1}
STEPS = 6
WIDTH = 320  # WIDTH^2 > 1e5: below that, ZeRO 3 keeps a parameter whole on every rank
CLASSES = 3


class Toy(nn.Module):
    """Two encoders on the present rows only, scattered back, a big hidden layer, a head; one buffer."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(
            {name: nn.Sequential(nn.Linear(STEPS * d, WIDTH), nn.Tanh()) for name, d in VARIATES.items()}
        )
        self.hidden = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)
        self.register_buffer("selection_bias", torch.arange(4, dtype=torch.float32))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if "norm" not in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.06)

    def forward(self, batch: Batch, step: int = 0) -> Output:
        z = torch.zeros(len(batch), WIDTH)
        for name, encoder in self.encoders.items():
            rows, values = batch.rows[name], batch.values[name]
            z = z.index_add(0, rows, encoder(values.flatten(1)).to(z.dtype))
        return Output(logits=self.head(torch.tanh(self.norm(z + self.hidden(z)))))


def losses(output: Output, batch: Batch) -> Tensor:
    return nn.functional.cross_entropy(output["logits"], batch.target, reduction="none")


def make_batch(present: Tensor, seed: int) -> Batch:
    """A global batch with this presence [B, 2] (acc, eda)."""
    generator = torch.Generator().manual_seed(seed)
    samples = present.shape[0]
    values, rows = {}, {}
    for index, (name, variates) in enumerate(VARIATES.items()):
        whole = torch.randn(samples, STEPS, variates, generator=generator)
        rows[name] = present[:, index].nonzero().flatten()
        values[name] = whole[rows[name]]
    target = torch.randint(0, CLASSES, (samples,), generator=generator)
    return Batch(values, rows, present, torch.arange(samples), target, global_samples=samples)


def select(batch: Batch, chosen: Tensor) -> Batch:
    """The samples `chosen` of a batch as a batch of their own."""
    place = torch.full((len(batch),), -1)
    place[chosen] = torch.arange(chosen.numel())
    values, rows, recording = {}, {}, {}
    for name, where in batch.rows.items():
        kept = place[where] >= 0
        values[name], rows[name] = batch.values[name][kept], place[where][kept]
        if name in batch.recording:
            recording[name] = batch.recording[name][kept]
    return replace(
        batch, values=values, rows=rows, recording=recording, present=batch.present[chosen],
        sample=batch.sample[chosen], target=batch.target[chosen],
    )  # fmt: skip


def micro_batches(batch: Batch, rank: int, ranks: int, accumulation: int) -> Iterator[Batch]:
    """This rank's share (every `ranks`-th sample) in `accumulation` micro-batches, some of them perhaps empty."""
    mine = torch.arange(len(batch))[rank::ranks]
    size = -(-len(batch) // (ranks * accumulation))
    for index in range(accumulation):
        yield replace(select(batch, mine[index * size : (index + 1) * size]), last=index == accumulation - 1)


def stream(seed: int) -> list[tuple[Batch, int]]:
    """Five global batches with their accumulation: every way in which ranks can differ (two ranks in mind)."""
    full = torch.ones(8, 2, dtype=torch.bool)
    odd_lacks = full.clone()
    odd_lacks[1::2, 1] = False
    none = full.clone()
    none[:, 1] = False
    ragged = full.clone()
    ragged[0, 0] = ragged[3, 1] = ragged[4, 0] = ragged[5, 1] = False
    presences = [
        (odd_lacks, 1),  # eda on rank 0 only
        (none, 1),  # eda on no rank
        (ragged, 2),  # accumulation
        (full[:3], 1),  # an uneven tail: 2 samples and 1
        (ragged[:1], 2),  # rank 1 is empty, and so is rank 0's second micro-batch
    ]
    return [
        (make_batch(present, seed + index), accumulation) for index, (present, accumulation) in enumerate(presences)
    ]
