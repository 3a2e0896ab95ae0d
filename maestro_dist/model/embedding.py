"""From raw windows to the tokens of one modality: symbols, samples, stem and time together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from maestro_dist.config.model import ModelConfig
from maestro_dist.config.word_length import word_length
from maestro_dist.errors import ConfigError, DataError
from maestro_dist.model import sax
from maestro_dist.model.context import OneProcess, SequenceContext
from maestro_dist.model.stem import Stem
from maestro_dist.model.summary import Summary, spectral_bands
from maestro_dist.model.symbol_embedding import SYMBOL_EMBEDDINGS, PatchEmbedding
from maestro_dist.model.time_code import TimeCode
from maestro_dist.types import Modality

_LARGEST_SHARED = 1 << 20
"""Modalities are prepared in one call if their windows have at most this many numbers together."""


def word_steps(config: ModelConfig, name: str) -> int:
    """Steps of a word of modality `name`."""
    return word_length(config.word, name)


class Prepared(NamedTuple):
    """Inputs of one modality's tokens that need no parameters.

    words     symbols and samples
    start     global number of the first step
    features  [R, D, F] of the summary token; None without one
    observed  bool [R, 1]: whether a row has any observation; None without a summary token
    """

    words: sax.SaxWords
    start: int
    features: Tensor | None
    observed: Tensor | None


class Embedding(nn.Module):
    """Raw windows of one modality -> its tokens, which include their time."""

    mean: Tensor
    std: Tensor
    edges: Tensor

    def __init__(self, config: ModelConfig, modality: Modality, time: TimeCode, sequence: SequenceContext) -> None:
        super().__init__()
        self.modality, self.word = modality, word_steps(config, modality.name)
        self.normalize, self.time, self.sequence = config.normalize, time, sequence
        if config.needs_statistics:
            _check_statistics(modality)
        # Stored as the bits of float64 numbers, so that a cast of the whole module does not round them.
        self.register_buffer("edges", sax.breakpoints(config.alphabet).view(torch.int64), persistent=False)
        for name, values, default in (("mean", modality.mean, 0.0), ("std", modality.std, 1.0)):
            numbers = torch.tensor(values or [default] * modality.variates, dtype=torch.float64)
            self.register_buffer(name, numbers.view(torch.int64), persistent=False)
        self.symbols = SYMBOL_EMBEDDINGS[config.embedding](modality.variates, self.word, config.alphabet, config.width)
        self.stem: Stem | None = None
        if config.stem:
            self.stem = Stem(modality.variates, config.stem, self.word, config.width, sequence)
        self.summary: Summary | None = None
        if config.summary != "none":
            bands = spectral_bands(self.word, config.summary_bands)
            given = modality.variates, config.summary, config.width, sequence, config.summary_bins, bands
            self.summary = Summary(*given)

    @property
    def symbols_suffice(self) -> bool:
        """Whether the tokens depend on the symbols alone."""
        return self.stem is None and self.summary is None and not isinstance(self.symbols, PatchEmbedding)

    def forward(
        self,
        values: Tensor | None,
        recording: Tensor | None,
        dtype: torch.dtype,
        symbols: Tensor | None = None,
        prepared: Prepared | None = None,
        kept: int | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens of raw windows, or of symbols if the tokens depend only on symbols.

        values float [R, T, D] or None; recording [R, D, 2] or None; symbols uint8 [R, W, D] as from `symbolise`, or
        None; prepared: the result of `prepare`, if it is computed already; kept: how many words to compute, all by
        default; W then stands for this number.
        Returns the tokens [R, S + W, d] (the summary token first, if it is on this rank), and the observed masks
        bool [R, S] and [R, W].

        Raises:
            DataError: the samples are needed but only symbols are given, or the recording has no statistics.
        """
        if prepared is None and (values is None or (symbols is not None and self.symbols_suffice)):
            if symbols is None or not self.symbols_suffice:
                raise DataError(
                    f"modality {self.modality.name!r} comes without raw windows, but model.embedding patch, model.stem"
                    " and model.summary need them; use embedding ordinal or table alone, or pack the raw windows too"
                )
            words = sax.SaxWords(symbols[:, :kept], None, whole=False)
            start, _ = self.sequence.slice(self.modality.name, symbols.shape[1] * self.word)
            return self._tokens(words, start, dtype), words.observed[:, :0], words.observed
        if prepared is None:
            assert values is not None
            prepared = self.prepare(values, self.reference(recording), dtype, kept)
        words, start, features, summary_observed = prepared
        tokens = self._tokens(words, start, dtype)
        if self.summary is None or features is None or summary_observed is None:
            return tokens, words.observed[:, :0], words.observed
        width = 1 if self.sequence.rank == 0 else 0
        tokens = torch.cat((self.summary(features)[:, None, :][:, :width], tokens), 1)
        return tokens, summary_observed[:, :width], words.observed

    def prepare(
        self, values: Tensor, reference: tuple[Tensor, Tensor] | None, dtype: torch.dtype, kept: int | None = None
    ) -> Prepared:
        """Everything that needs no parameters, from raw windows [R, T, D] and their `reference`; of `kept` words."""
        window = None
        start, steps = self.sequence.slice(self.modality.name, values.shape[1])
        if self.normalize == "window" or self.summary is not None:
            window = sax.window_moments(values, self.sequence, None if kept is None else kept * self.word)
        if kept is not None:
            values = values[:, : kept * self.word]
        word_reference = (
            sax.window_reference(window) if self.normalize == "window" and window is not None else reference
        )
        assert word_reference is not None
        edges = self.edges.view(torch.float64)
        words = sax.words(values, self.word, edges, word_reference, None if self.symbols_suffice else dtype)
        if self.summary is None or window is None or reference is None:
            return Prepared(words, start, None, None)
        samples = (
            words if word_reference is reference else sax.words(values, self.word, edges, reference, dtype)
        ).samples
        assert samples is not None
        mean, unit = reference
        features = self.summary.features(samples, (window.mean - mean) / unit, window, unit, start, steps)
        return Prepared(words, start, features, (window.n > 0).any(1, keepdim=True))

    def symbolise(self, values: Tensor, recording: Tensor | None = None, word: int | None = None) -> Tensor:
        """Symbols uint8 [R, W, D] of `values`; `recording` as in `forward`. `word`: steps of a word, by default the
        model's."""
        reference = None if self.normalize == "window" else self.reference(recording)
        return sax.tokenise(values, word or self.word, self.edges.view(torch.float64), reference, self.sequence)

    def _tokens(self, words: sax.SaxWords, start: int, dtype: torch.dtype) -> Tensor:
        """Tokens [R, W, d]; `start`: global number of the first step."""
        tokens: Tensor = self.symbols(words.symbols, words.samples)
        index = (words.symbols.shape[1], start // self.word, 1)
        tokens = tokens + self.time.of_words(index, self.word, self.modality.rate_hz, dtype, tokens.device)
        if self.stem is not None:
            tokens = tokens + self.stem(words.samples, words.whole)
        return tokens

    def reference(self, recording: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and divisor, float64, of the recordings [R, D, 2] (then [R, D]), or of the training split ([D])."""
        if self.normalize == "recording":
            return sax.given_reference(*self._recording(recording).unbind(-1))
        return sax.given_reference(self.mean.view(torch.float64), self.std.view(torch.float64))

    def _recording(self, recording: Tensor | None) -> Tensor:
        if recording is None:
            raise DataError(
                f"modality {self.modality.name!r} comes without statistics of the recording; pack the data with them,"
                " or set model.normalize to window or dataset"
            )
        return recording


def prepare_together(
    embeddings: Mapping[str, Embedding],
    values: Mapping[str, Tensor],
    recording: Mapping[str, Tensor],
    dtype: torch.dtype,
    kept: Mapping[str, int],
) -> dict[str, Prepared]:
    """`Embedding.prepare` for several modalities together, if their windows, words and `kept` words are alike.

    Many small calls cost more than their arithmetic. Modalities without such a partner, and large windows, are left out
    of the result.
    """
    same_shape: dict[tuple[int, ...], list[str]] = {}
    for name, embedding in embeddings.items():
        if name in values:
            same_shape.setdefault((embedding.word, kept[name], *values[name].shape[1:]), []).append(name)
    prepared = {}
    for names in same_shape.values():
        if len(names) == 1 or sum(values[name].numel() for name in names) > _LARGEST_SHARED:
            continue
        first = embeddings[names[0]]
        rows = [len(values[name]) for name in names]
        references = [
            [part.expand(count, -1) for part in embeddings[name].reference(recording.get(name))]
            for name, count in zip(names, rows, strict=True)
            if first.normalize != "window" or first.summary is not None
        ]
        mean, unit = (torch.cat(parts) for parts in zip(*references, strict=True)) if references else (None, None)
        reference = None if mean is None or unit is None else (mean, unit)
        joined = torch.cat([values[name] for name in names])
        words, start, features, observed = first.prepare(joined, reference, dtype, kept[names[0]])
        arrays = (words.symbols, words.samples, features, observed)
        by_name = (part.split(rows) if part is not None else [None] * len(names) for part in arrays)
        for name, symbols, samples, own_features, own_observed in zip(names, *by_name, strict=True):
            prepared[name] = Prepared(sax.SaxWords(symbols, samples, words.whole), start, own_features, own_observed)
    return prepared


def _check_statistics(modality: Modality) -> None:
    if len(modality.mean) != modality.variates or len(modality.std) != modality.variates:
        raise ConfigError(
            f"modality {modality.name!r} has no training-split mean and std for its {modality.variates} variates;"
            " pack the data again, or set model.normalize to window and model.summary to none"
        )


class SymbolEncoder:
    """The symbols of a model's words, one window at a time. They can be packed with the data."""

    def __init__(self, config: ModelConfig, modalities: Sequence[Modality]) -> None:
        config = config.model_copy(update={"embedding": "table", "stem": None, "summary": "none", "width": 1})
        time = TimeCode(1, modalities, [word_steps(config, modality.name) for modality in modalities])
        self.embeddings = {m.name: Embedding(config, m, time, OneProcess()) for m in modalities}

    def __call__(self, name: str, values: np.ndarray, recording: np.ndarray | None = None) -> np.ndarray:
        """A window float32 [T, D] of modality `name`, and the statistics [D, 2] of its recording -> uint8 [W, D]."""
        statistics = None if recording is None else torch.from_numpy(np.array(recording, np.float32))[None]
        symbols: np.ndarray = (
            self.embeddings[name].symbolise(torch.from_numpy(np.array(values))[None], statistics)[0].numpy()
        )
        return symbols
