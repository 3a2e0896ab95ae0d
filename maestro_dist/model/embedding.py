"""From raw windows to tokens: symbols, the words' own samples, the convolutional stem, and time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maestro_dist import rng
from maestro_dist.config.model import ModelConfig, StemConfig
from maestro_dist.config.words import word_of
from maestro_dist.errors import ConfigError, DataError
from maestro_dist.model import sax
from maestro_dist.model.context import OneProcess, SequenceContext
from maestro_dist.model.layers import Key, Linear, Windowed
from maestro_dist.model.summary import Summary, spectral_bands
from maestro_dist.types import Modality

_TOGETHER = 1 << 20
"""Most numbers that modalities prepared in one call have together."""

_KEPT, _KEPT_WORDS = 256, 1024
"""Time codes that are kept rather than made again at each step: how many, and of how many words at most."""


def word_steps(config: ModelConfig, name: str) -> int:
    """Steps a word of modality `name`."""
    return word_of(config.word, name)


class TimeCode:
    """Sinusoids of the time from the window's start to a word's centre, in seconds.

    The d/2 periods run geometrically from twice the finest word to four times the longest window. Fixed: no parameters.
    """

    def __init__(self, width: int, modalities: Sequence[Modality], words: Sequence[int]) -> None:
        self.width = width
        finest = min(word / modality.rate_hz for word, modality in zip(words, modalities, strict=True))
        longest = max(modality.seconds for modality in modalities)
        pairs = -(-width // 2)
        low, high = math.log(2 * finest), math.log(max(4 * longest, 2 * finest))
        self._known: dict[Any, Tensor] = {}
        self.frequencies = [
            2 * math.pi * math.exp(-(low + (high - low) * pair / max(1, pairs - 1))) for pair in range(pairs)
        ]
        self._frequencies_on: dict[torch.device, Tensor] = {}

    def __call__(self, seconds: Tensor, dtype: torch.dtype) -> Tensor:
        """Times float64 [L] -> codes [L, d]: sines, then cosines."""
        device = seconds.device
        if device not in self._frequencies_on:  # copied once: each copy from a list would wait for the device
            self._frequencies_on[device] = torch.tensor(self.frequencies, dtype=torch.float64, device=device)
        angles = seconds[:, None] * self._frequencies_on[device]
        # float64 ends here, before the halves are joined: three arrays of the codes' size less at a time
        return torch.cat((angles.sin().to(dtype), angles.cos_().to(dtype)), 1)[:, : self.width]

    def of_words(
        self, index: tuple[int, int, int], word: int, rate_hz: float, dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """Codes [n, d] of the centres of n words; `index`: n, number of the first, how many words they stand apart."""
        key = (index, word, rate_hz, dtype, device)
        if key in self._known:
            return self._known[key]
        words, first, step = index
        number = torch.arange(first, first + words, dtype=torch.float64, device=device)
        code = self((number * (step * word) + word / 2) / rate_hz, dtype)
        if words <= _KEPT_WORDS and len(self._known) < _KEPT and not code.is_inference():
            self._known[key] = code
        return code


def _narrow(linear: Linear, x: Tensor) -> Tensor:
    """`linear` of few inputs: its weight's gradient costs a sixth when it is made transposed."""
    weight = linear.weight.t().clone(memory_format=torch.contiguous_format)
    out = torch.addmm(linear.bias, x.flatten(0, -2), weight)
    return out.view(*x.shape[:-1], out.shape[1])


class OrdinalEmbedding(nn.Module):
    """The symbols of a word's variates as numbers in [0, 1] into a linear layer; missing is 0."""

    def __init__(self, variates: int, word: int, alphabet: int, width: int) -> None:
        super().__init__()
        self.alphabet = alphabet
        self.linear = Linear(variates, width)

    def forward(self, symbols: Tensor, samples: Tensor | None) -> Tensor:
        """Symbols uint8 [R, W, D] -> [R, W, d]."""
        return _narrow(self.linear, symbols.to(self.linear.weight.dtype) / self.alphabet)


class TableEmbedding(nn.Module):
    """A learned row for each (variate, symbol), summed over the variates; row 0 of a variate is missing."""

    def __init__(self, variates: int, word: int, alphabet: int, width: int) -> None:
        super().__init__()
        self.variates, self.rows = variates, alphabet + 1
        self.weight = nn.Parameter(torch.empty(variates * self.rows, width))

    def fill(self, key: Key) -> None:
        """N(0, 1 / D), so that a token starts with variance 1 whatever the number of variates."""
        rng.fill_normal_(self.weight, self.variates**-0.5, key("weight"))

    def forward(self, symbols: Tensor, samples: Tensor | None) -> Tensor:
        """Symbols uint8 [R, W, D] -> [R, W, d]."""
        flat = symbols.reshape(-1, self.variates)
        summed = _EmbeddingSum.apply if symbols.device.type == "cpu" else _summed_rows
        out: Tensor = summed(self.weight, flat, self.rows)
        return out.view(*symbols.shape[:2], out.shape[1])


def _table_rows(symbols: Tensor, rows: int) -> Tensor:
    """int64 [n, D]: the rows of a table of `rows` rows a variate that symbols [n, D] name."""
    return symbols + torch.arange(symbols.shape[1], device=symbols.device) * rows


def _summed_rows(weight: Tensor, symbols: Tensor, rows: int) -> Tensor:
    return F.embedding_bag(_table_rows(symbols, rows), weight, mode="sum")


class _EmbeddingSum(torch.autograd.Function):
    """`embedding_bag` that keeps symbols, not row numbers, and whose backward does not sort them first."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, symbols: Tensor, rows: int) -> Tensor:
        """Weight [D x rows, d], symbols uint8 [n, D] -> [n, d]."""
        ctx.save_for_backward(symbols)
        ctx.rows = rows
        return _summed_rows(weight, symbols, rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Gradient of the weight."""
        (symbols,), gradient = ctx.saved_tensors, gradients[0]
        of_weight = gradient.new_zeros((symbols.shape[1] * ctx.rows, gradient.shape[1]))
        for row in _table_rows(symbols, ctx.rows).unbind(1):
            of_weight.index_add_(0, row, gradient)
        return of_weight, None, None


class PatchEmbedding(nn.Module):
    """`TableEmbedding` plus a linear layer on the word's own z-scored samples and their observed mask."""

    def __init__(self, variates: int, word: int, alphabet: int, width: int) -> None:
        super().__init__()
        self.table = TableEmbedding(variates, word, alphabet, width)
        self.linear = Linear(2 * word * variates, width)

    def forward(self, symbols: Tensor, samples: Tensor | None) -> Tensor:
        """Symbols uint8 [R, W, D], samples [R, W, w, 2 D] of `sax.SaxWords` -> [R, W, d]."""
        assert samples is not None
        table: Tensor = self.table(symbols, samples)
        return table + _narrow(self.linear, samples.flatten(2))


def stem_steps(config: StemConfig, word: int) -> list[int]:
    """Steps a word that enter each convolution of the stem."""
    steps = [word]
    for _ in range(config.layers - 1):
        steps.append(steps[-1] // config.pool if steps[-1] % config.pool == 0 else steps[-1])
    return steps


class Stem(nn.Module):
    """Convolutions over the steps of one modality, averaged into words.

    They see z-scores and the observed mask; a step at which nothing was observed is zero to every convolution and does
    not count in an average.
    """

    def __init__(self, variates: int, config: StemConfig, word: int, width: int, sequence: SequenceContext) -> None:
        super().__init__()
        if config.kernel % 2 == 0:
            raise ConfigError(f"model.stem.kernel is {config.kernel}; choose an odd length")
        self.sequence, self.reach, self.steps = sequence, config.kernel // 2, stem_steps(config, word)
        inputs = [2 * variates] + [config.channels] * (config.layers - 1)
        self.convolutions = nn.ModuleList(Windowed(size, config.channels, config.kernel) for size in inputs)
        self.linear = Linear(config.channels, width)

    def forward(self, samples: Tensor, whole: bool) -> Tensor:
        """Samples [R, W, w, 2 D] of `sax.SaxWords` -> [R, W, d]; `whole` if all steps are known to be observed."""
        rows, words, _, inputs = samples.shape
        x = samples.flatten(1, 2)
        observed = None
        if not whole:
            observed = reduce(torch.maximum, samples[..., inputs // 2 :].unbind(-1)).view(rows, x.shape[1], 1)
        for convolution, here, after in zip(self.convolutions, self.steps, [*self.steps[1:], 1], strict=True):
            x = F.gelu(convolution(self.sequence.halo_exchange(x, self.reach)))
            if here > after:
                x, observed = _averaged(x, observed, here // after)
            elif observed is not None:
                x = x * observed
        out: Tensor = self.linear(x.view(rows, words, x.shape[2]))
        return out


def _averaged(x: Tensor, observed: Tensor | None, size: int) -> tuple[Tensor, Tensor | None]:
    """Means over `size` neighbours of x [R, T, C], of which the observed ones count, and whether there was any such."""
    shape = (len(x), x.shape[1] // size, size, x.shape[2])
    if observed is None:
        return x.view(shape).sum(2) / size, None
    seen = observed.view(*shape[:3], 1)
    return (x.view(shape) * seen).sum(2) / seen.sum(2).clamp_min(1), seen.amax(2)


class Prepared(NamedTuple):
    """What the tokens of one modality's rows are made from; start: global number of the first step; features [R, D, F]
    and there bool [R, 1] (whether a row has any observation) where there is a summary token."""

    words: sax.SaxWords
    start: int
    features: Tensor | None
    there: Tensor | None


_EMBEDDINGS = {"ordinal": OrdinalEmbedding, "table": TableEmbedding, "patch": PatchEmbedding}


class Embedding(nn.Module):
    """Raw windows of one modality -> its tokens, with their time."""

    mean: Tensor
    std: Tensor
    edges: Tensor

    def __init__(self, config: ModelConfig, modality: Modality, time: TimeCode, sequence: SequenceContext) -> None:
        super().__init__()
        self.modality, self.word = modality, word_steps(config, modality.name)
        self.normalize, self.time, self.sequence = config.normalize, time, sequence
        if config.needs_statistics:
            _check_statistics(modality)
        # Kept as the bits of float64 numbers: a cast of the whole module to another float type must not round them.
        self.register_buffer("edges", sax.breakpoints(config.alphabet).view(torch.int64), persistent=False)
        for name, values, default in (("mean", modality.mean, 0.0), ("std", modality.std, 1.0)):
            numbers = torch.tensor(values or [default] * modality.variates, dtype=torch.float64)
            self.register_buffer(name, numbers.view(torch.int64), persistent=False)
        self.symbols = _EMBEDDINGS[config.embedding](modality.variates, self.word, config.alphabet, config.width)
        self.stem: Stem | None = None
        if config.stem:
            self.stem = Stem(modality.variates, config.stem, self.word, config.width, sequence)
        self.summary: Summary | None = None
        if config.summary != "none":
            bands = spectral_bands(self.word, config.summary_bands)
            given = modality.variates, config.summary, config.width, sequence, config.summary_pieces, bands
            self.summary = Summary(*given)

    @property
    def symbols_suffice(self) -> bool:
        """Whether the symbols are all that the tokens are made from."""
        return self.stem is None and self.summary is None and not isinstance(self.symbols, PatchEmbedding)

    def forward(
        self,
        values: Tensor | None,
        recording: Tensor | None,
        dtype: torch.dtype,
        symbols: Tensor | None = None,
        prepared: Prepared | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens of raw windows, or of their symbols where those are known and suffice.

        values float [R, T, D] or None; recording [R, D, 2] or None; symbols uint8 [R, W, D] as of `symbolise`, or None;
        prepared: what `prepare` makes of values and recording, where that is there already.
        Returns the tokens [R, S + W, d] (the summary token first, if it is held here), and the observed masks
        bool [R, S] and [R, W].

        Raises:
            DataError: samples inside the words are needed but only symbols came, or statistics of the recording lack.
        """
        if prepared is None and (values is None or (symbols is not None and self.symbols_suffice)):
            if symbols is None or not self.symbols_suffice:
                raise DataError(
                    f"modality {self.modality.name!r} comes without raw windows, but model.embedding patch, model.stem"
                    " and model.summary need them; use embedding ordinal or table alone, or pack the raw windows too"
                )
            words = sax.SaxWords(symbols, None, whole=False)
            start, _ = self.sequence.slice(self.modality.name, symbols.shape[1] * self.word)
            return self._tokens(words, start, dtype), words.observed[:, :0], words.observed
        if prepared is None:
            assert values is not None
            prepared = self.prepare(values, self.reference(recording), dtype)
        words, start, features, there = prepared
        tokens = self._tokens(words, start, dtype)
        if self.summary is None or features is None or there is None:
            return tokens, words.observed[:, :0], words.observed
        width = 1 if self.sequence.rank == 0 else 0
        tokens = torch.cat((self.summary(features)[:, None, :][:, :width], tokens), 1)
        return tokens, there[:, :width], words.observed

    def prepare(self, values: Tensor, given: tuple[Tensor, Tensor] | None, dtype: torch.dtype) -> Prepared:
        """What tokens of raw windows [R, T, D] are made from; `given`: `reference` of these rows. No parameters."""
        window = None
        if self.normalize == "window" or self.summary is not None:
            window = sax.window_moments(values, self.sequence)
        own = sax.window_reference(window) if self.normalize == "window" and window is not None else given
        assert own is not None
        edges = self.edges.view(torch.float64)
        words = sax.words(values, self.word, edges, own, None if self.symbols_suffice else dtype)
        start, steps = self.sequence.slice(self.modality.name, values.shape[1])
        if self.summary is None or window is None or given is None:
            return Prepared(words, start, None, None)
        samples = (words if own is given else sax.words(values, self.word, edges, given, dtype)).samples
        assert samples is not None
        mean, unit = given
        features = self.summary.features(samples, (window.mean - mean) / unit, window, unit, start, steps)
        return Prepared(words, start, features, (window.n > 0).any(1, keepdim=True))

    def symbolise(self, values: Tensor, recording: Tensor | None = None, word: int | None = None) -> Tensor:
        """Symbols uint8 [R, W, D] that the tokens of `values` are made from; `recording` as in `forward`. With `word`,
        those of words of so many steps."""
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
) -> dict[str, Prepared]:
    """`Embedding.prepare` of modalities whose windows and words are alike, in one call: it has no parameters, no row of
    it looks at another, and many small calls cost more than what they compute. Modalities that stand alone, or whose
    windows are large enough to be worth a call each, are left to themselves.
    """
    alike: dict[tuple[int, ...], list[str]] = {}
    for name, embedding in embeddings.items():
        if name in values:
            alike.setdefault((embedding.word, *values[name].shape[1:]), []).append(name)
    prepared = {}
    for names in alike.values():
        if len(names) == 1 or sum(values[name].numel() for name in names) > _TOGETHER:
            continue
        first = embeddings[names[0]]
        rows = [len(values[name]) for name in names]
        given = [
            [part.expand(count, -1) for part in embeddings[name].reference(recording.get(name))]
            for name, count in zip(names, rows, strict=True)
            if first.normalize != "window" or first.summary is not None
        ]
        mean, unit = (torch.cat(parts) for parts in zip(*given, strict=True)) if given else (None, None)
        reference = None if mean is None or unit is None else (mean, unit)
        words, start, features, there = first.prepare(torch.cat([values[name] for name in names]), reference, dtype)
        pieces = (words.symbols, words.samples, features, there)
        cut = (part.split(rows) if part is not None else [None] * len(names) for part in pieces)
        for name, symbols, samples, own, seen in zip(names, *cut, strict=True):
            prepared[name] = Prepared(sax.SaxWords(symbols, samples, words.whole), start, own, seen)
    return prepared


def _check_statistics(modality: Modality) -> None:
    if len(modality.mean) != modality.variates or len(modality.std) != modality.variates:
        raise ConfigError(
            f"modality {modality.name!r} has no training-split mean and std for its {modality.variates} variates;"
            " pack the data again, or set model.normalize to window and model.summary to none"
        )


class SymbolEncoder:
    """The symbols that a model's embeddings are made from, one window at a time, to be packed with the data."""

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
