"""Which tokens there are: the layout of one modality's tokens, or of all, at one depth of the model.

Tokens are kept *flat*, [N, d], and only those of present modalities exist: modality after modality (sorted by name),
row after row, the summary token first, then words by time. Attention needs them by sample: `slot` says where each token
lies in a padded [S, L] array, whose columns are in the canonical order (modality, time).

Depth 0 is what enters the first layer; each distilling layer leads to the next depth. The observed masks depend on the
data alone, so masks and counts of all depths are known, and exchanged, before the first parameter is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from maestro_dist import rng
from maestro_dist.model.context import Blocks, OneProcess, SequenceContext, Swap
from maestro_dist.model.layers import taps

LOWEST = -1e30
"""Added to the scores of missing tokens: far below any score, and finite, so that nothing observed makes no NaN."""


class Part(NamedTuple):
    """The tokens of one modality at one depth. All but `rows` in tokens.

    rows     R_j, samples that have the modality
    summary  summary tokens held here (0 or 1)
    words    words held here
    first    global number of the first word held here
    lead     summary tokens over all ranks (0 or 1)
    total    words over all ranks
    bounds   global number of each rank's first word, and `total`; empty where no rank needs to know
    """

    rows: int
    summary: int
    words: int
    first: int
    lead: int
    total: int
    bounds: tuple[int, ...] = ()

    @property
    def length(self) -> int:
        """Tokens a row held here."""
        return self.summary + self.words

    @property
    def shares(self) -> tuple[int, ...]:
        """Tokens a row that each rank holds, where `bounds` are known."""
        words = [end - start for start, end in zip(self.bounds, self.bounds[1:], strict=False)]
        return (self.lead + words[0], *words[1:])

    def distilled(self) -> Part:
        """The same part one depth on: words halved (rounded up), summary untouched."""
        words, first, total, *bounds = (-(-n // 2) for n in (self.words, self.first, self.total, *self.bounds))
        return self._replace(words=words, first=first, total=total, bounds=tuple(bounds))

    def joined(self) -> Part:
        """The same part in one process."""
        return self._replace(summary=self.lead, words=self.total, first=0, bounds=())


@dataclass(frozen=True, eq=False)
class Layout:
    """A set of tokens. S samples, L padded columns held here, N = sum of rows x length tokens.

    parts     the modalities' parts
    mask      bool [S, L]: observed tokens
    flat_mask bool [N]
    slot      int64 [N]: flat position in [S, L]; None where it is the identity (one modality, or one sample)
    observed  int64 [S]: observed tokens over all ranks
    ahead     int64 [S, parts]: observed tokens on lower ranks and in the modalities before, over all ranks
    sample    int64 [S]: sample numbers, key of draws
    token     int64 [L], or [S, L] where samples have different modalities: global canonical number of each column
    part      int64, as `token`: the modality that each column belongs to (its position in sorted order)
    capacity  most columns that a sample has over all ranks
    lengths   columns that each sample really has, known without asking the device; None: not known
    whole     known without asking the device: every column is an observed token and all are held here
    joined    layout of all ranks' tokens, as one process has it, where attention is given whole sequences
    """

    parts: tuple[Part, ...]
    mask: Tensor
    flat_mask: Tensor
    slot: Tensor | None
    observed: Tensor
    ahead: Tensor
    sample: Tensor
    token: Tensor
    part: Tensor
    capacity: int
    lengths: tuple[int, ...] | None
    whole: bool
    joined: Layout | None = None

    @property
    def blocks(self) -> Blocks:
        """Rows of each modality, and the tokens a row that each rank holds."""
        return [(part.rows, part.shares) for part in self.parts]

    @property
    def complete(self) -> int:
        """Columns, over all ranks, of a sample that lacks no modality: the same for every batch and on every rank."""
        return sum(part.lead + part.total for part in self.parts)

    @cached_property
    def order(self) -> Tensor:
        """int64 [S, L]: observed tokens up to and including this one, in canonical order over all ranks."""
        if len(self.parts) == 1:
            return self.mask.cumsum(1) + self.ahead
        # Shards hold a slice of each modality: what lower ranks hold of it, and all that comes before, is counted too.
        inside = self.mask.cumsum(1)
        samples, part = len(self.mask), self.part.expand(self.mask.shape)
        counts = inside.new_zeros(samples, len(self.parts)).scatter_add_(1, part, self.mask.long())
        return inside + (self.ahead - (counts.cumsum(1) - counts)).gather(1, part)

    @cached_property
    def ragged(self) -> tuple[int, ...] | None:
        """`lengths`, where they differ."""
        return self.lengths if self.lengths is not None and len(set(self.lengths)) > 1 else None

    @cached_property
    def bias(self) -> Tensor | None:
        """float32 [S, L] to add to scores: 0 for an observed token, else `LOWEST`; None where all are observed."""
        return None if self.whole else (self.mask.float() - 1) * -LOWEST

    @cached_property
    def place(self) -> Tensor | None:
        """int64 [S x L]: flat number of the token in each column (N where there is none); None: the identity."""
        if self.slot is None:
            return None
        number = torch.arange(len(self.slot), device=self.slot.device)
        return self.slot.new_full((self.mask.numel(),), len(self.slot)).index_copy_(0, self.slot, number)

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

    def rows(self, x: Tensor) -> Tensor:
        """[S, L, ...] -> [N, ...]: the other way round than `padded`."""
        x = x.flatten(0, 1)
        return x if self.slot is None else x.index_select(0, self.slot)

    def flat(self, values: Tensor) -> Tensor:
        """[S, L] -> [N]."""
        values = values.expand(self.mask.shape).flatten()
        return values if self.slot is None else values.index_select(0, self.slot)

    def padded(self, x: Tensor) -> Tensor:
        """Tokens [N, c] -> [S, L, c], zeros where there is none."""
        shape = (*self.mask.shape, x.shape[1])
        if self.slot is None:
            return x.view(shape)
        return x.new_zeros(self.mask.numel(), x.shape[1]).index_copy(0, self.slot, x).view(shape)


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
    joined   the plan of all ranks' tokens, as one process has it, where attention is given whole sequences
    """

    masks: list[list[Tensor]]
    parts: list[list[Part]]
    total: Tensor
    before: Tensor
    joined: Plan | None = None


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
    joined = _joined_plan(parts, words, summaries, rows, samples, distils, sequence.swap) if sequence.swap else None
    return Plan(masks, chains, sequence.sum(local), sequence.before(local), joined)


def _joined_plan(
    parts: list[Part],
    words: list[Tensor],
    summaries: list[Tensor],
    rows: list[Tensor],
    samples: int,
    distils: list[bool],
    swap: Swap,
) -> Plan:
    """The plan of one process: masks of the first depth cross ranks, all else follows from them."""
    held = [torch.cat(both, 1).flatten() for both in zip(summaries, words, strict=True)]
    mask = swap.join(torch.cat(held), [(part.rows, part.shares) for part in parts])
    wholes = [part.joined() for part in parts]
    pieces = mask.split([part.rows * part.length for part in wholes])
    levels = [piece.view(part.rows, part.length) for piece, part in zip(pieces, wholes, strict=True)]
    ahead = [level[:, : part.lead] for level, part in zip(levels, wholes, strict=True)]
    behind = [level[:, part.lead :] for level, part in zip(levels, wholes, strict=True)]
    return plan(wholes, behind, ahead, rows, samples, distils, OneProcess())


def plain_layout(mask: Tensor) -> Layout:
    """Layout of one modality that all samples have, its observed words being given: mask bool [S, L]."""
    samples, words = mask.shape
    rows, none = torch.arange(samples, device=mask.device), mask[:, :0]
    made = plan([Part(samples, 0, words, 0, 0, words)], [mask], [none], [rows], samples, [], OneProcess())
    return modality_layout(made, 0, 0, rows, rows)


def modality_layout(plan: Plan, j: int, depth: int, rows: Tensor, sample: Tensor) -> Layout:
    """Layout of modality j alone, its rows being the samples. rows int64 [R_j], sample int64 [B]."""
    mask, part = plan.masks[j][depth], plan.parts[j][depth]
    return Layout(
        parts=(part,),
        mask=mask,
        flat_mask=mask.flatten(),
        slot=None,
        observed=plan.total[:, j, depth].index_select(0, rows),
        ahead=plan.before[:, j, depth].index_select(0, rows)[:, None],
        sample=sample.index_select(0, rows),
        token=_columns(part, 0, mask.device),
        part=torch.full((part.length,), j, device=mask.device),
        capacity=part.lead + part.total,
        lengths=(part.length,) * part.rows,
        whole=_whole(mask, [part]),
        joined=None if plan.joined is None else modality_layout(plan.joined, j, depth, rows, sample),
    )


def joint_layout(
    plan: Plan, depth: int, rows: list[Tensor], sample: Tensor, having: list[list[int]] | None = None
) -> Layout:
    """Layout of all modalities together. rows[j] int64 [R_j], sample int64 [B].

    `having[j]` are the same rows as plain integers: with them a sample has columns for its own modalities only, without
    them for all. Both hold the same tokens in the same order.
    """
    parts = [chain[depth] for chain in plan.parts]
    device, samples = sample.device, sample.shape[0]
    ragged = having is not None and any(len(own) < samples for own in having)
    lengths, wholes = [0] * samples, [0] * samples
    for part, own in zip(parts, having if having is not None else [list(range(samples))] * len(parts), strict=True):
        for row in own:
            lengths[row] += part.length
            wholes[row] += part.lead + part.total
    length = max(lengths) if ragged else sum(part.length for part in parts)
    place = sample.new_zeros(samples, len(parts))
    for j, part in enumerate(parts):
        place[:, j].index_fill_(0, rows[j], part.length) if ragged else place[:, j].fill_(part.length)
    starts = place.cumsum(1) - place

    number, columns, slots = 0, [], []
    for j, part in enumerate(parts):
        first = rows[j] * length + starts[:, j].index_select(0, rows[j])
        slots.append((first[:, None] + torch.arange(part.length, device=device)).flatten())
        columns.append(_columns(part, number, device))
        number += part.lead + part.total
    slot = torch.cat(slots)
    flat_mask = torch.cat([levels[depth].flatten() for levels in plan.masks])
    mask = flat_mask.new_zeros(samples * length).index_copy_(0, slot, flat_mask).view(samples, length)
    if ragged:
        # Columns past a sample's own end come after all tokens, so that numbers and counts ascend along a row.
        flat = torch.cat([own.repeat(part.rows) for own, part in zip(columns, parts, strict=True)])
        token = slot.new_full((samples * length,), number).index_copy_(0, slot, flat).view(samples, length)
        flat = torch.cat([slot.new_full((part.rows * part.length,), j) for j, part in enumerate(parts)])
        of = slot.new_full((samples * length,), len(parts) - 1).index_copy_(0, slot, flat).view(samples, length)
    else:
        token = torch.cat(columns)
        of = torch.cat([slot.new_full((part.length,), j) for j, part in enumerate(parts)])
    total = plan.total[:, :, depth]
    return Layout(
        parts=tuple(parts),
        mask=mask,
        flat_mask=flat_mask,
        slot=None if samples == 1 and having is not None else slot,
        observed=total.sum(1),
        ahead=total.cumsum(1) - total + plan.before[:, :, depth],
        sample=sample,
        token=token,
        part=of,
        capacity=max(wholes) if ragged else sum(part.lead + part.total for part in parts),
        lengths=tuple(lengths) if having is not None else None,
        whole=_whole(mask, parts),
        joined=None if plan.joined is None else joint_layout(plan.joined, depth, rows, sample, having),
    )


def _whole(mask: Tensor, parts: list[Part]) -> bool:
    """Every column observed, and none elsewhere; on other devices than a CPU to ask would be to wait for them."""
    here = all(part.length == part.lead + part.total for part in parts if part.rows)
    return here and mask.device.type == "cpu" and bool(mask.all())


def _columns(part: Part, offset: int, device: torch.device) -> Tensor:
    """Global canonical numbers of a part's tokens when its modality starts at `offset`."""
    words = torch.arange(part.words, device=device) + (offset + part.lead + part.first)
    return torch.cat((torch.arange(offset, offset + part.summary, device=device), words)) if part.summary else words
