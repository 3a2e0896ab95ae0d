"""Which tokens exist: the layout of one modality's tokens, or of all modalities together, at one depth of the model.

Tokens are stored *flat*, [N, d]. Only tokens of present modalities exist. Their order is: modality (sorted by name),
then row, then the summary token, then the words by time. Attention needs the tokens of each sample together: `slot`
gives the position of each token in a padded [S, L] array, whose columns are in the canonical order (modality, time).

Depth 0 is the input of the first layer. Each layer that halves the tokens leads to the next depth. The observed masks
depend on the data alone. So the masks and counts of all depths are known, and exchanged between ranks, before the first
parameter is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from maestro_dist import rng
from maestro_dist.model.context import OneProcess, SequenceContext, TokensByRank
from maestro_dist.model.layers import taps

LOWEST = -1e30
"""Added to the scores of missing tokens. It is far below any score, and finite, so that a sample with no observed token
does not produce NaN."""


class ModalityTokens(NamedTuple):
    """How many tokens one modality has at one depth. All fields except `rows` and the bounds count tokens of one row.

    rows           R_j, samples that have the modality
    summary        summary tokens on this rank (0 or 1)
    words          words on this rank
    first_word     global number of the first word on this rank
    summary_total  summary tokens over all ranks (0 or 1)
    words_total    words over all ranks
    word_bounds    global number of each rank's first word, then `words_total`; empty if no rank needs it
    cut            words at the end of the window that do not exist, because no row has an observation there; they are
                   counted in `words_total`, so that the numbers of tokens do not depend on the batch. Only where one
                   rank has the complete time axis
    """

    rows: int
    summary: int
    words: int
    first_word: int
    summary_total: int
    words_total: int
    word_bounds: tuple[int, ...] = ()
    cut: int = 0

    @property
    def length(self) -> int:
        """Tokens of a row on this rank."""
        return self.summary + self.words

    @property
    def length_total(self) -> int:
        """Tokens of a complete row over all ranks."""
        return self.summary_total + self.words_total

    @property
    def length_made(self) -> int:
        """Tokens of a row that exist, over all ranks."""
        return self.length_total - self.cut

    @property
    def length_by_rank(self) -> tuple[int, ...]:
        """Tokens of a row on each rank. Only where `word_bounds` are known."""
        words = [end - start for start, end in zip(self.word_bounds, self.word_bounds[1:], strict=False)]
        return (self.summary_total + words[0], *words[1:])

    def halved(self) -> ModalityTokens:
        """The tokens one depth later: half the words (rounded up), the summary token unchanged.

        Where words were cut off, there is one more if the last word is the left input of a word that begins after it.
        """
        words, first, total, *bounds = (
            -(-n // 2) for n in (self.words, self.first_word, self.words_total, *self.word_bounds)
        )
        if self.cut:
            words = min(total, self.words // 2 + 1)
        cut = total - words if self.cut else 0
        return self._replace(words=words, first_word=first, words_total=total, word_bounds=tuple(bounds), cut=cut)

    def unsharded(self) -> ModalityTokens:
        """The same tokens in one process."""
        return self._replace(summary=self.summary_total, words=self.words_total, first_word=0, word_bounds=())


@dataclass(frozen=True, eq=False)
class TokenLayout:
    """A set of tokens. S samples, L padded columns on this rank, N = sum of rows x length tokens.

    parts      the tokens of each modality
    mask       bool [S, L]: observed tokens
    flat_mask  bool [N]
    slot       int64 [N]: flat position in [S, L]; None if it is the identity (one modality, or one sample)
    observed   int64 [S]: observed tokens over all ranks
    observed_before
               int64 [S, parts]: observed tokens on lower ranks, plus all observed tokens of earlier modalities
    sample     int64 [S]: sample numbers; they key the draws
    token      int64 [L], or [S, L] where samples have different modalities: global canonical number of each column
    part       int64, as `token`: the modality that each column belongs to (its position in sorted order)
    capacity   largest number of columns of a sample over all ranks
    lengths    columns of each sample, if known without a device synchronization; else None
    whole      True if every column is known to be an observed token and all tokens are on this rank. This is known
               without a device synchronization
    unsharded  layout of all ranks' tokens as in one process, where attention sees complete sequences
    """

    parts: tuple[ModalityTokens, ...]
    mask: Tensor
    flat_mask: Tensor
    slot: Tensor | None
    observed: Tensor
    observed_before: Tensor
    sample: Tensor
    token: Tensor
    part: Tensor
    capacity: int
    lengths: tuple[int, ...] | None
    whole: bool
    unsharded: TokenLayout | None = None

    @property
    def tokens_by_rank(self) -> TokensByRank:
        """Rows of each modality, and the tokens of a row on each rank."""
        return [(part.rows, part.length_by_rank) for part in self.parts]

    @property
    def complete_length(self) -> int:
        """Columns, over all ranks, of a sample with all modalities. The same for every batch and on every rank."""
        return sum(part.length_total for part in self.parts)

    @cached_property
    def observed_so_far(self) -> Tensor:
        """int64 [S, L]: observed tokens up to and including this one, in canonical order over all ranks."""
        if len(self.parts) == 1:
            return self.mask.cumsum(1) + self.observed_before
        # A rank holds a slice of each modality: tokens on lower ranks and in earlier modalities are counted too.
        inside = self.mask.cumsum(1)
        samples, part = len(self.mask), self.part.expand(self.mask.shape)
        counts = inside.new_zeros(samples, len(self.parts)).scatter_add_(1, part, self.mask.long())
        return inside + (self.observed_before - (counts.cumsum(1) - counts)).gather(1, part)

    @cached_property
    def ragged(self) -> tuple[int, ...] | None:
        """`lengths` if they differ between samples, else None."""
        return self.lengths if self.lengths is not None and len(set(self.lengths)) > 1 else None

    @cached_property
    def bias(self) -> Tensor | None:
        """float32 [S, L], added to scores: 0 for an observed token, else `LOWEST`. None where all are observed."""
        return None if self.whole else (self.mask.float() - 1) * -LOWEST

    @cached_property
    def token_at(self) -> Tensor | None:
        """int64 [S x L]: flat number of the token in each column (N where there is none). None: the identity."""
        if self.slot is None:
            return None
        number = torch.arange(len(self.slot), device=self.slot.device)
        return self.slot.new_full((self.mask.numel(),), len(self.slot)).index_copy_(0, self.slot, number)

    def draw_keys(self, key: int) -> Tensor:
        """int64 [N]: one hash for each token, from (key, sample number, token number)."""
        return self.flat(rng.bits(key, pack_numbers(self.sample[:, None], self.token)))

    def row(self) -> Tensor:
        """int64 [N]: the row of the batch that each token belongs to."""
        return self.flat(torch.arange(len(self.mask), device=self.mask.device)[:, None])

    def cell(self) -> Tensor:
        """int64 [N]: row x modalities + modality of each token."""
        row = torch.arange(len(self.mask), device=self.mask.device)[:, None]
        return self.flat(row * len(self.parts) + self.part)

    def rows(self, x: Tensor) -> Tensor:
        """[S, L, ...] -> [N, ...]. The inverse of `padded`."""
        x = x.flatten(0, 1)
        return x if self.slot is None else x.index_select(0, self.slot)

    def flat(self, values: Tensor) -> Tensor:
        """[S, L] -> [N]."""
        values = values.expand(self.mask.shape).flatten()
        return values if self.slot is None else values.index_select(0, self.slot)

    def padded(self, x: Tensor) -> Tensor:
        """Tokens [N, c] -> [S, L, c], with zeros where there is no token."""
        shape = (*self.mask.shape, x.shape[1])
        if self.slot is None:
            return x.view(shape)
        return x.new_zeros(self.mask.numel(), x.shape[1]).index_copy(0, self.slot, x).view(shape)


def pack_numbers(sample: Tensor, number: Tensor) -> Tensor:
    """A sample number (below 2^31) and another number (below 2^32) as one int64, so that one hash mixes both."""
    return (sample << 32) + number


def downsample_mask(mask: Tensor, sequence: SequenceContext) -> Tensor:
    """Observed words [R, W] one depth later: an output is observed if any of its three inputs is."""
    left, centre, right = taps(sequence.halo_exchange(mask[..., None], 1)[..., 0], 3, 2)
    return left | centre | right


class EnteringTokens(NamedTuple):
    """The tokens of all modalities at depth 0.

    parts      their numbers, for each modality
    words      words[j] bool [R_j, W_j]: observed words
    summaries  summaries[j] bool [R_j, 0 or 1]: observed summary tokens
    rows       rows[j] int64 [R_j]: the samples that have modality j
    samples    B
    """

    parts: list[ModalityTokens]
    words: list[Tensor]
    summaries: list[Tensor]
    rows: list[Tensor]
    samples: int

    def unsharded(self, sequence: SequenceContext) -> EnteringTokens:
        """The tokens of all ranks, as in one process. Their masks are gathered from the ranks."""
        exchange = sequence.head_exchange
        assert exchange is not None
        held = [torch.cat(both, 1).flatten() for both in zip(self.summaries, self.words, strict=True)]
        mask = exchange.all_gather_mask(torch.cat(held), [(part.rows, part.length_by_rank) for part in self.parts])
        wholes = [part.unsharded() for part in self.parts]
        pieces = mask.split([part.rows * part.length for part in wholes])
        levels = [piece.view(part.rows, part.length) for piece, part in zip(pieces, wholes, strict=True)]
        summaries = [level[:, : part.summary_total] for level, part in zip(levels, wholes, strict=True)]
        words = [level[:, part.summary_total :] for level, part in zip(levels, wholes, strict=True)]
        return EnteringTokens(wholes, words, summaries, self.rows, self.samples)


class DepthPlan(NamedTuple):
    """Masks and counts of all depths.

    masks            masks[j][depth]: bool [R_j, length]
    parts            parts[j][depth]
    observed         int64 [B, M, depths]: observed tokens over all ranks
    observed_before  int64 [B, M, depths]: observed tokens on lower ranks
    unsharded        the plan of all ranks' tokens as in one process, where attention sees complete sequences
    """

    masks: list[list[Tensor]]
    parts: list[list[ModalityTokens]]
    observed: Tensor
    observed_before: Tensor
    unsharded: DepthPlan | None = None


def plan_depths(entering: EnteringTokens, halves: Sequence[bool], sequence: SequenceContext) -> DepthPlan:
    """Masks and counts from depth 0 on. `halves` says for each layer whether it halves the words."""
    masks: list[list[Tensor]] = []
    chains: list[list[ModalityTokens]] = []
    words, samples = entering.words, entering.samples
    local = words[0].new_zeros((samples, len(entering.parts), len(halves) + 1), dtype=torch.int64)
    for j, part in enumerate(entering.parts):
        summary, word_mask, chain = entering.summaries[j], words[j], [part]
        levels = [torch.cat((summary, word_mask), 1)]
        for halve in halves:
            if halve:
                after = chain[-1].halved()
                if after.words > -(-word_mask.shape[1] // 2):
                    word_mask = F.pad(word_mask, (0, 1))
                word_mask = downsample_mask(word_mask, sequence)
                levels.append(torch.cat((summary, word_mask), 1))
                chain.append(after)
            else:
                levels.append(levels[-1])
                chain.append(chain[-1])
        local[:, j].index_copy_(0, entering.rows[j], torch.stack([level.sum(1) for level in levels], 1))
        masks.append(levels)
        chains.append(chain)
    unsharded = None
    if sequence.head_exchange is not None:  # only the masks of depth 0 cross ranks; the rest follows from them
        unsharded = plan_depths(entering.unsharded(sequence), halves, OneProcess())
    return DepthPlan(masks, chains, sequence.all_reduce_sum(local), sequence.exclusive_prefix_sum(local), unsharded)


def layout_of_mask(mask: Tensor) -> TokenLayout:
    """Layout of one modality that all samples have, from its observed words: mask bool [S, L]."""
    samples, words = mask.shape
    rows, none = torch.arange(samples, device=mask.device), mask[:, :0]
    entering = EnteringTokens([ModalityTokens(samples, 0, words, 0, 0, words)], [mask], [none], [rows], samples)
    return modality_layout(plan_depths(entering, [], OneProcess()), 0, 0, rows, rows)


def modality_layout(plan: DepthPlan, j: int, depth: int, rows: Tensor, sample: Tensor) -> TokenLayout:
    """Layout of modality j alone; its rows are the samples. rows int64 [R_j], sample int64 [B]."""
    mask, part = plan.masks[j][depth], plan.parts[j][depth]
    return TokenLayout(
        parts=(part,),
        mask=mask,
        flat_mask=mask.flatten(),
        slot=None,
        observed=plan.observed[:, j, depth].index_select(0, rows),
        observed_before=plan.observed_before[:, j, depth].index_select(0, rows)[:, None],
        sample=sample.index_select(0, rows),
        token=_columns(part, 0, mask.device),
        part=torch.full((part.length,), j, device=mask.device),
        capacity=part.length_made,
        lengths=(part.length,) * part.rows,
        whole=_whole(mask, [part]),
        unsharded=None if plan.unsharded is None else modality_layout(plan.unsharded, j, depth, rows, sample),
    )


def cross_modal_layout(
    plan: DepthPlan, depth: int, rows: list[Tensor], sample: Tensor, host_rows: list[list[int]] | None = None
) -> TokenLayout:
    """Layout of all modalities together. rows[j] int64 [R_j], sample int64 [B].

    `host_rows[j]` are the same rows as plain integers. With them, a sample has columns for its own modalities only;
    without them, for all modalities. Both give the same tokens in the same order.
    """
    parts = [chain[depth] for chain in plan.parts]
    device, samples = sample.device, sample.shape[0]
    ragged = host_rows is not None and any(len(sample_rows) < samples for sample_rows in host_rows)
    lengths, totals = [0] * samples, [0] * samples
    for part, sample_rows in zip(
        parts, host_rows if host_rows is not None else [list(range(samples))] * len(parts), strict=True
    ):
        for row in sample_rows:
            lengths[row] += part.length
            totals[row] += part.length_made
    length = max(lengths) if ragged else sum(part.length for part in parts)
    taken = sample.new_zeros(samples, len(parts))
    for j, part in enumerate(parts):
        taken[:, j].index_fill_(0, rows[j], part.length) if ragged else taken[:, j].fill_(part.length)
    starts = taken.cumsum(1) - taken

    number, columns, slots = 0, [], []
    for j, part in enumerate(parts):
        first = rows[j] * length + starts[:, j].index_select(0, rows[j])
        slots.append((first[:, None] + torch.arange(part.length, device=device)).flatten())
        columns.append(_columns(part, number, device))
        number += part.length_total
    slot = torch.cat(slots)
    flat_mask = torch.cat([levels[depth].flatten() for levels in plan.masks])
    mask = flat_mask.new_zeros(samples * length).index_copy_(0, slot, flat_mask).view(samples, length)
    if ragged:
        # Columns after a sample's end get numbers above all tokens, so that numbers and counts ascend along a row.
        flat = torch.cat([sample_rows.repeat(part.rows) for sample_rows, part in zip(columns, parts, strict=True)])
        token = slot.new_full((samples * length,), number).index_copy_(0, slot, flat).view(samples, length)
        flat = torch.cat([slot.new_full((part.rows * part.length,), j) for j, part in enumerate(parts)])
        modality = slot.new_full((samples * length,), len(parts) - 1).index_copy_(0, slot, flat).view(samples, length)
    else:
        token = torch.cat(columns)
        modality = torch.cat([slot.new_full((part.length,), j) for j, part in enumerate(parts)])
    observed = plan.observed[:, :, depth]
    return TokenLayout(
        parts=tuple(parts),
        mask=mask,
        flat_mask=flat_mask,
        slot=None if samples == 1 and host_rows is not None else slot,
        observed=observed.sum(1),
        observed_before=observed.cumsum(1) - observed + plan.observed_before[:, :, depth],
        sample=sample,
        token=token,
        part=modality,
        capacity=max(totals) if ragged else sum(part.length_made for part in parts),
        lengths=tuple(lengths) if host_rows is not None else None,
        whole=_whole(mask, parts),
        unsharded=None
        if plan.unsharded is None
        else cross_modal_layout(plan.unsharded, depth, rows, sample, host_rows),
    )


def _whole(mask: Tensor, parts: list[ModalityTokens]) -> bool:
    """Whether every column is observed and on this rank. False on a GPU, where the host would have to wait."""
    local = all(part.length == part.length_made for part in parts if part.rows)
    return local and mask.device.type == "cpu" and bool(mask.all())


def _columns(part: ModalityTokens, offset: int, device: torch.device) -> Tensor:
    """Global canonical numbers of a modality's tokens, if the modality starts at `offset`."""
    words = torch.arange(part.words, device=device) + (offset + part.summary_total + part.first_word)
    return torch.cat((torch.arange(offset, offset + part.summary, device=device), words)) if part.summary else words
