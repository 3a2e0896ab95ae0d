"""Which tokens there are: the layout of one modality's tokens, or of all, at one depth of the model.

Tokens are kept *flat*, [N, d], and only those of present modalities exist: modality after modality (sorted by name),
row after row, the summary token first, then words by time. Attention needs them by sample: `slot` says where each token
lies in a padded [S, L] array, whose columns are in the canonical order (modality, time).

Depth 0 is what enters the first layer; each distilling layer leads to the next depth. The observed masks depend on the
data alone, so masks and counts of all depths are known, and exchanged, before the first parameter is used.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from maestro_dist import rng
from maestro_dist.model.context import SequenceContext
from maestro_dist.model.layers import taps


class Part(NamedTuple):
    """The tokens of one modality at one depth. All but `rows` in tokens.

    rows     R_j, samples that have the modality
    summary  summary tokens held here (0 or 1)
    words    words held here
    first    global number of the first word held here
    lead     summary tokens over all ranks (0 or 1)
    total    words over all ranks
    """

    rows: int
    summary: int
    words: int
    first: int
    lead: int
    total: int

    @property
    def length(self) -> int:
        """Tokens a row held here."""
        return self.summary + self.words

    def distilled(self) -> Part:
        """The same part one depth on: words halved (rounded up), summary untouched."""
        return self._replace(words=-(-self.words // 2), first=-(-self.first // 2), total=-(-self.total // 2))


class Layout(NamedTuple):
    """A set of tokens. S samples, L padded columns held here, N = sum of rows x length tokens.

    parts     the modalities' parts
    mask      bool [S, L]: observed tokens
    flat_mask bool [N]
    slot      int64 [N]: flat position in [S, L]; None where it is the identity (one modality)
    observed  int64 [S]: observed tokens over all ranks
    order     int64 [S, L]: observed tokens up to and including this one, in canonical order over all ranks
    sample    int64 [S]: sample numbers, key of draws
    token     int64 [L]: global canonical number of each column
    part      int64 [L]: the modality that each column belongs to (its position in sorted order)
    capacity  padded columns over all ranks
    """

    parts: tuple[Part, ...]
    mask: Tensor
    flat_mask: Tensor
    slot: Tensor | None
    observed: Tensor
    order: Tensor
    sample: Tensor
    token: Tensor
    part: Tensor
    capacity: int

    def draw_keys(self, key: int) -> Tensor:
        """int64 [N]: one hash a token from (key, sample number, token number)."""
        return self.flat(rng.bits(key, pack(self.sample[:, None], self.token)))

    def row(self) -> Tensor:
        """int64 [N]: the row of the batch that each token belongs to."""
        return self.flat(torch.arange(len(self.mask), device=self.mask.device)[:, None])

    def cell(self) -> Tensor:
        """int64 [N]: row x modalities + modality of each token."""
        row = torch.arange(len(self.mask), device=self.mask.device)[:, None]
        return self.flat(row * len(self.parts) + self.part)

    def flat(self, values: Tensor) -> Tensor:
        """[S, L] -> [N]."""
        values = values.expand(self.mask.shape).flatten()
        return values if self.slot is None else values.index_select(0, self.slot)


def pack(sample: Tensor, number: Tensor) -> Tensor:
    """Sample number (below 2^31) and another number (below 2^32) as one int64, so that a draw mixes them at once."""
    return (sample << 32) + number


def distil_mask(mask: Tensor, sequence: SequenceContext) -> Tensor:
    """Observed words [R, W] one depth on: any of the three inputs of an output (kernel 3, stride 2)."""
    left, centre, right = taps(sequence.halo(mask[..., None], 1)[..., 0], 3, 2)
    return left | centre | right


class Plan(NamedTuple):
    """Masks and counts of all depths.

    masks    masks[j][depth]: bool [R_j, length]
    parts    parts[j][depth]
    total    int64 [B, M, depths]: observed tokens over all ranks
    before   int64 [B, M, depths]: those on lower ranks
    """

    masks: list[list[Tensor]]
    parts: list[list[Part]]
    total: Tensor
    before: Tensor


def plan(
    parts: list[Part],
    words: list[Tensor],
    summaries: list[Tensor],
    rows: list[Tensor],
    samples: int,
    distils: list[bool],
    sequence: SequenceContext,
) -> Plan:
    """Masks and counts from depth 0 on.

    words[j] bool [R_j, W_j], summaries[j] bool [R_j, 0 or 1], rows[j] int64 [R_j]; `distils` says for each layer
    whether it halves the words.
    """
    masks: list[list[Tensor]] = []
    chains: list[list[Part]] = []
    local = words[0].new_zeros((samples, len(parts), len(distils) + 1), dtype=torch.int64)
    for j, part in enumerate(parts):
        word_mask, chain, levels = words[j], [part], [torch.cat((summaries[j], words[j]), 1)]
        for halve in distils:
            if halve:
                word_mask = distil_mask(word_mask, sequence)
                levels.append(torch.cat((summaries[j], word_mask), 1))
                chain.append(chain[-1].distilled())
            else:
                levels.append(levels[-1])
                chain.append(chain[-1])
        local[:, j].index_copy_(0, rows[j], torch.stack([level.sum(1) for level in levels], 1))
        masks.append(levels)
        chains.append(chain)
    return Plan(masks, chains, sequence.sum(local), sequence.before(local))


def modality_layout(plan: Plan, j: int, depth: int, rows: Tensor, sample: Tensor) -> Layout:
    """Layout of modality j alone, its rows being the samples. rows int64 [R_j], sample int64 [B]."""
    mask, part = plan.masks[j][depth], plan.parts[j][depth]
    order = mask.cumsum(1) + plan.before[:, j, depth].index_select(0, rows)[:, None]
    return Layout(
        parts=(part,),
        mask=mask,
        flat_mask=mask.flatten(),
        slot=None,
        observed=plan.total[:, j, depth].index_select(0, rows),
        order=order,
        sample=sample.index_select(0, rows),
        token=_columns(part, 0, mask.device),
        part=torch.full((part.length,), j, device=mask.device),
        capacity=part.lead + part.total,
    )


def joint_layout(plan: Plan, depth: int, rows: list[Tensor], sample: Tensor) -> Layout:
    """Layout of all modalities together. rows[j] int64 [R_j], sample int64 [B]."""
    parts = [chain[depth] for chain in plan.parts]
    masks = [levels[depth] for levels in plan.masks]
    device, samples, length = sample.device, sample.shape[0], sum(part.length for part in parts)
    tokens, slots, shifts = [], [], []
    starts, capacity, ahead = 0, 0, sample.new_zeros(samples)
    for j, part in enumerate(parts):
        columns = torch.arange(starts, starts + part.length, device=device)
        slots.append((rows[j][:, None] * length + columns).flatten())
        tokens.append(_columns(part, capacity, device))
        shifts.append((ahead + plan.before[:, j, depth])[:, None].expand(-1, part.length))
        ahead = ahead + plan.total[:, j, depth]
        starts += part.length
        capacity += part.lead + part.total
    slot = torch.cat(slots)
    flat_mask = torch.cat([mask.flatten() for mask in masks])
    mask = flat_mask.new_zeros(samples * length).index_copy_(0, slot, flat_mask).view(samples, length)
    inside = torch.cat([block.cumsum(1) for block in mask.split([part.length for part in parts], 1)], 1)
    return Layout(
        parts=tuple(parts),
        mask=mask,
        flat_mask=flat_mask,
        slot=slot,
        observed=ahead,
        order=inside + torch.cat(shifts, 1),
        sample=sample,
        token=torch.cat(tokens),
        part=torch.cat([torch.full((part.length,), j, device=device) for j, part in enumerate(parts)]),
        capacity=capacity,
    )


def _columns(part: Part, offset: int, device: torch.device) -> Tensor:
    """Global canonical numbers of a part's tokens when its modality starts at `offset`."""
    words = torch.arange(part.words, device=device) + (offset + part.lead + part.first)
    return torch.cat((torch.arange(offset, offset + part.summary, device=device), words)) if part.summary else words
