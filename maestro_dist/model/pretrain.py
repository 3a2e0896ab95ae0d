"""Masked pre-training on recordings without labels: some words are hidden, and the model predicts their SAX symbols.

A hidden word becomes a gap before anything is computed from it. Its steps become NaN, and all later stages
(symbols, samples, stem, summary, attention) treat it as a word that the sensor did not deliver. Hidden words may be
shorter than the model's words (`task.pretrain.word`); the model's words then have gaps inside.

Letters as in `maestro`; K_j: largest number of words of modality j that are predicted for a sample, Q: their sum over
the modalities.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maestro_dist import rng
from maestro_dist.config.learning import PretrainConfig
from maestro_dist.config.model import ModelConfig
from maestro_dist.config.word_length import hidden_word_length
from maestro_dist.errors import DataError
from maestro_dist.model.attention.kernel import AttendOptions, attend
from maestro_dist.model.attention.variant import AttentionShape, stores_probabilities
from maestro_dist.model.context import ExpertsFactory, SequenceContext
from maestro_dist.model.embedding import Embedding
from maestro_dist.model.layers import ByModality, FeedForward, Key, Linear, ResidualNorm
from maestro_dist.model.layout import TokenLayout, pack_numbers
from maestro_dist.model.maestro import Trunk
from maestro_dist.model.time_code import TimeCode
from maestro_dist.types import Batch, Modality, Output

Memory = tuple[Tensor, TokenLayout]
"""Flat tokens [N, d] that the decoder attends to, and their layout."""


class PredictionTargets(NamedTuple):
    """The words to predict for each sample; the same on all ranks that share its time axis.

    number   int64 [B, Q]: their numbers within their modality, modality after modality; unused entries are arbitrary
    symbols  of each modality int64 [R_j, K_j, D_j]: their true symbols; 0 for a missing variate or an unused entry
    """

    number: Tensor
    symbols: list[Tensor]


def hidden_words(key: int, sample: Tensor, first: int, words: int, *, span: int, share: float) -> Tensor:
    """Which of the words first, first + 1, ... of samples int64 [R] are hidden: bool [R, words].

    Words are grouped in spans of `span` words; their start differs between samples. A span is hidden with probability
    `share`. A draw is keyed by (key, sample, span), so neither the batch nor the slice of the time axis matters.
    """
    number = torch.arange(first, first + words, device=sample.device)
    offset = rng.bits(key, sample, span) % span
    return rng.uniform(key, pack_numbers(sample[:, None], (number + offset[:, None]) // span)) < share


def hidden_sensors(keys: Sequence[int], sample: Tensor, present: Tensor, share: float) -> Tensor:
    """Which modalities of samples int64 [B] are hidden completely: bool [B, M], some of the `present` ones [B, M].

    Each is hidden with probability `share`. If all would be hidden, the one with the largest draw is not. The draw of
    modality j is keyed by keys[j] and the sample, so the batch does not matter.
    """
    draws = torch.stack([rng.uniform(key, sample) for key in keys], 1)
    hidden = present & (draws < share)
    largest = torch.where(present, draws, -1.0).argmax(1, keepdim=True)
    all_hidden = (hidden == present).all(1, keepdim=True)
    return hidden & ~(all_hidden & (torch.arange(len(keys), device=sample.device) == largest))


class CrossAttention(nn.Module):
    """Multi-head attention of a few queries over the observed tokens of their sample."""

    def __init__(self, config: ModelConfig, sequence: SequenceContext) -> None:
        super().__init__()
        width = config.width
        self.heads, self.keep_attention_weights, self.sequence = config.heads, config.keep_attention_weights, sequence
        self.query, self.key = Linear(width, width), Linear(width, width, bias=False)
        self.value, self.output = Linear(width, width), Linear(width, width)

    def forward(self, x: Tensor, tokens: Tensor, layout: TokenLayout) -> Tensor:
        """Queries x [B, Q, d], flat tokens [N, d] -> [B, Q, d]; linear in the tokens in time and memory."""
        key, value = (self._heads(layout.padded(part)) for part in (self.key(tokens), self.value(tokens)))
        query = self._heads(self.query(x) * (x.shape[2] // self.heads) ** -0.5)
        shape = AttentionShape(layout.capacity, x.shape[2], self.heads, 0, x.shape[1])
        store = stores_probabilities(self.keep_attention_weights, shape)
        out, total = attend(query, key, value, AttendOptions(bias=layout.bias, store=store, lengths=layout.ragged))
        assert total is not None
        out = self.sequence.merge_attention(out, total) * (layout.observed > 0).to(out.dtype)[:, None, None, None]
        mixed: Tensor = self.output(out.to(query.dtype).transpose(1, 2).flatten(2))
        return mixed

    def _heads(self, x: Tensor) -> Tensor:
        """[B, n, d] -> [B, H, n, d_h]."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class Decoder(nn.Module):
    """Predicts symbols: one layer of cross attention and a feed-forward, then a linear layer for each modality.

    A query is the time and the modality of the word to predict. It attends to the inputs and to the outputs of the
    cross-modal layers, so that all layers learn.
    """

    def __init__(
        self,
        config: ModelConfig,
        modalities: Sequence[Modality],
        most: Sequence[int],
        memories: int,
        sequence: SequenceContext,
    ) -> None:
        """`most`: K_j of each modality; `memories`: number of sets of tokens to attend to."""
        super().__init__()
        self.most, self.alphabet = list(most), config.alphabet
        self.embedding = nn.Parameter(torch.empty(len(modalities), config.width))
        self.attention = nn.ModuleList(CrossAttention(config, sequence) for _ in range(memories))
        self.attention_norm = ResidualNorm(config.width)
        self.feed = FeedForward(config.width, 2 * config.width)
        self.feed_norm = ResidualNorm(config.width)
        self.outputs = ByModality({m.name: Linear(config.width, m.variates * config.alphabet) for m in modalities})

    def fill(self, key: Key) -> None:
        """N(0, 1): as large as the time code, so that words of two modalities at the same time differ."""
        rng.fill_normal_(self.embedding, 1.0, key("embedding"))

    def forward(self, time: Tensor, memories: Sequence[Memory], rows: Sequence[Tensor]) -> list[Tensor]:
        """Time codes [B, Q, d] of the words to predict -> scores of their symbols [R_j, K_j, D_j, alphabet].

        rows[j] int64 [R_j]: the samples that have modality j.
        """
        counts = zip(self.embedding, self.most, strict=True)
        x = time + torch.cat([embedding.expand(most, -1) for embedding, most in counts])
        # the branch is a sum of attentions, each over its own set of tokens
        attended = sum(attend(x, *memory) for attend, memory in zip(self.attention, memories, strict=True))
        shape, x = x.shape, x.flatten(0, 1)
        x = self.attention_norm(x, cast(Tensor, attended).flatten(0, 1), None, None)
        x = self.feed_norm(x, self.feed(x), None, None).view(shape)
        scores = []
        for output, part, row in zip(self.outputs.values(), x.split(self.most, 1), rows, strict=True):
            scores.append(output(part.index_select(0, row)).unflatten(2, (-1, self.alphabet)))
        return scores


class PretrainModel(Trunk):
    """The model with a decoder instead of its heads. Parameters that it shares with `Maestro` have the same names."""

    def __init__(
        self,
        config: ModelConfig,
        modalities: Sequence[Modality],
        pretrain: PretrainConfig,
        *,
        seed: int,
        sequence: SequenceContext | None = None,
        experts: ExpertsFactory | None = None,
    ) -> None:
        """`seed` keys initial values and masks; the rest as for `Maestro`."""
        super().__init__(config, modalities, seed=seed, sequence=sequence, experts=experts)
        self.pretrain, self.seed = pretrain, seed
        self.steps = [
            hidden_word_length(pretrain, name, word) for name, word in zip(self.names, self.words, strict=True)
        ]
        self.target_time = TimeCode(config.width, self.modalities, self.steps)
        lengths = [-(-m.steps // word) for m, word in zip(self.modalities, self.steps, strict=True)]
        self.spans = [max(1, min(pretrain.span, length // 4)) for length in lengths]
        self.most = [min(pretrain.predict, length) for length in lengths]
        self.decoder = Decoder(config, self.modalities, self.most, 2 if config.fusion_layers else 1, self.sequence)
        self.initialise(seed)

    def forward(self, batch: Batch, step: int = 0) -> Output:
        """`masked` and values to monitor. `step` keys the draws of training; evaluation has fixed draws.

        `masked` has sums over symbols; a sample without words to predict has zeros.
        """
        rows = [batch.rows[name] for name in self.names]
        with torch.no_grad():
            hidden, targets = self.hide(batch, step)
            time = self._time_codes(targets.number)
        tokens = self.encode(hidden, step)
        memories = [(tokens.entering, tokens.joint), (tokens.fused, tokens.final)][: len(self.decoder.attention)]
        scores = self.decoder(time, memories, rows)
        masked = torch.zeros((), device=time.device)
        for part, symbols, row in zip(scores, targets.symbols, rows, strict=True):
            sums = _sums(part, symbols)
            masked = masked + sums.new_zeros(len(batch), 3).index_add(0, row, sums)
        output = Output(masked=masked)
        output.update(tokens.monitored)
        return output

    def hide(self, batch: Batch, step: int) -> tuple[Batch, PredictionTargets]:
        """The batch with gaps where words are hidden, and the words to predict: some of the hidden, observed words."""
        values, symbols = dict(batch.values), dict(batch.symbols)
        purpose: int | str = step if self.training else "evaluation"
        draws = [rng.key(self.seed, "mask sensor", purpose, name) for name in self.names]
        sensors = hidden_sensors(draws, batch.sample, batch.present, self.pretrain.sensor_share)
        true_by_modality, firsts = [], []
        priorities: list[Tensor] = []
        numbers: list[Tensor] = []
        for j, (name, word) in enumerate(zip(self.names, self.steps, strict=True)):
            raw, true_symbols = batch.values.get(name), batch.symbols.get(name)
            if raw is None and word != self.words[j]:
                raise DataError(
                    f"modality {name!r} comes as symbols of words of {self.words[j]} steps; task.pretrain.word {word} "
                    "needs raw windows"
                )
            if true_symbols is None or word != self.words[j]:
                assert raw is not None
                true_symbols = cast(Embedding, self.embeddings[name]).symbolise(raw, batch.recording.get(name), word)
            start, _ = self.sequence.slice(name, true_symbols.shape[1] * word if raw is None else raw.shape[1])
            row, first, count = batch.rows[name], start // word, true_symbols.shape[1]
            sample = batch.sample.index_select(0, row)
            key = rng.key(self.seed, "mask", purpose, name)
            span, share = self.spans[j], self.pretrain.mask_share
            hidden = hidden_words(key, sample, first, count, span=span, share=share)
            hidden |= sensors[:, j].index_select(0, row)[:, None]
            if raw is not None:
                steps = hidden.repeat_interleave(word, 1)[:, : raw.shape[1], None]
                values[name] = raw.masked_fill(steps, math.nan)
            if name in symbols and word == self.words[j]:
                symbols[name] = true_symbols.masked_fill(hidden[..., None], 0)
            else:
                symbols.pop(name, None)
            number = torch.arange(first, first + count, device=sample.device)
            key = rng.key(self.seed, "asked", purpose, name)
            # The priority of all other words is 0.
            priority = rng.uniform(key, pack_numbers(sample[:, None], number)) + 1
            best = (priority * (hidden & (true_symbols > 0).any(2))).topk(min(self.most[j], count), 1)
            true_by_modality.append(true_symbols)
            firsts.append(first)
            for collected, values_found in ((priorities, best.values), (numbers, (best.indices + first).double())):
                padded = F.pad(values_found, (0, self.most[j] - values_found.shape[1]))
                collected.append(padded.new_zeros(len(batch), self.most[j]).index_copy(0, row, padded))
        priority, number = self._best_of_ranks(torch.stack((torch.cat(priorities, 1), torch.cat(numbers, 1))))
        number, is_target = number.long(), priority > 0
        truth = []
        for j, (positions, used) in enumerate(
            zip(number.split(self.most, 1), is_target.split(self.most, 1), strict=True)
        ):
            row = batch.rows[self.names[j]]
            truth.append(self._symbols_at(true_by_modality[j], positions[row] - firsts[j], used[row]))
        return replace(batch, values=values, symbols=symbols), PredictionTargets(number, truth)

    def _best_of_ranks(self, offered: Tensor) -> Tensor:
        """Priorities and numbers [2, B, Q] of this rank's words -> of the best words of all ranks, [2, B, Q]."""
        if self.sequence.size == 1:
            return offered
        gathered = self.sequence.all_gather(offered).unflatten(2, (self.sequence.size, -1))
        best = []
        for part, count in zip(gathered.split(self.most, 3), self.most, strict=True):
            part = part.flatten(2)
            best.append(part.gather(2, part[:1].topk(count, 2).indices.expand(2, -1, -1)))
        return torch.cat(best, 2)

    def _symbols_at(self, symbols: Tensor, position: Tensor, used: Tensor) -> Tensor:
        """Symbols uint8 [R, W, D] of this rank, at positions int64 [R, K] of all ranks -> int64 [R, K, D]."""
        held = used & (position >= 0) & (position < symbols.shape[1])
        result = symbols.new_zeros(*position.shape, symbols.shape[2], dtype=torch.int64)
        if symbols.shape[1]:
            position = position.clamp(0, symbols.shape[1] - 1)[..., None].expand(-1, -1, symbols.shape[2])
            result = symbols.gather(1, position).long() * held[..., None]
        return self.sequence.all_reduce_sum(result)

    def _time_codes(self, number: Tensor) -> Tensor:
        """Codes [B, Q, d] of the times, from the window's start to the centres, of words with these numbers [B, Q]."""
        seconds = [
            (part.double() + 0.5) * (word / modality.rate_hz)
            for part, word, modality in zip(number.split(self.most, 1), self.steps, self.modalities, strict=True)
        ]
        joined = torch.cat(seconds, 1)
        return self.target_time(joined.flatten(), self.unit.dtype).unflatten(0, joined.shape)


def _sums(scores: Tensor, symbols: Tensor) -> Tensor:
    """Scores [R, K, D, alphabet] of symbols int64 [R, K, D] -> [R, 3]: nats, correct ones, count; 0 is no symbol."""
    known = symbols > 0
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    nats = F.cross_entropy(scores.flatten(0, 2), (symbols - 1).clamp_min(0).flatten(), reduction="none")
    correct = scores.argmax(3) + 1 == symbols
    sums = (nats.view(symbols.shape) * known, correct, known)
    return torch.stack([part.to(scores.dtype).sum((1, 2)) for part in sums], 1)
