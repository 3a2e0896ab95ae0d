"""From raw windows to tokens: symbols, the words' own samples, the convolutional stem, and time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maestro_dist import rng
from maestro_dist.config.schema import ModelConfig, StemConfig
from maestro_dist.errors import ConfigError, DataError
from maestro_dist.model import sax
from maestro_dist.model.context import SequenceContext
from maestro_dist.model.layers import Key, Linear, Windowed
from maestro_dist.model.sax import Words
from maestro_dist.model.summary import Summary
from maestro_dist.types import Modality


def word_steps(config: ModelConfig, name: str) -> int:
    """Steps a word of modality `name`."""
    if isinstance(config.word, int):
        return config.word
    if name not in config.word:
        raise ConfigError(f"model.word has no entry for modality {name!r}; add it, or give one number for all")
    return config.word[name]


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
        self.frequencies = [
            2 * math.pi * math.exp(-(low + (high - low) * pair / max(1, pairs - 1))) for pair in range(pairs)
        ]

    def __call__(self, seconds: Tensor) -> Tensor:
        """Times float64 [L] -> codes float64 [L, d]: sines, then cosines."""
        angles = seconds[:, None] * torch.tensor(self.frequencies, dtype=torch.float64, device=seconds.device)
        return torch.cat((angles.sin(), angles.cos()), 1)[:, : self.width]


def word_times(words: int, first: int, step: int, word: int, rate_hz: float, device: torch.device) -> Tensor:
    """Centres in seconds, float64 [words], of words first, first + 1, ... when each stands `step` words apart."""
    index = torch.arange(first, first + words, dtype=torch.float64, device=device)
    return (index * (step * word) + word / 2) / rate_hz


class Ordinal(nn.Module):
    """The symbols of a word's variates as numbers in [0, 1] into a linear layer; missing is 0."""

    def __init__(self, variates: int, word: int, alphabet: int, width: int) -> None:
        super().__init__()
        self.alphabet = alphabet
        self.linear = Linear(variates, width)

    def forward(self, symbols: Tensor, z: Tensor, steps: Tensor) -> Tensor:
        """Symbols [R, W, D] -> [R, W, d]."""
        out: Tensor = self.linear(symbols.to(z.dtype) / self.alphabet)
        return out


class Table(nn.Module):
    """A learned row for each (variate, symbol), summed over the variates; row 0 of a variate is missing."""

    def __init__(self, variates: int, word: int, alphabet: int, width: int) -> None:
        super().__init__()
        self.variates, self.rows = variates, alphabet + 1
        self.weight = nn.Parameter(torch.empty(variates * self.rows, width))

    def fill(self, key: Key) -> None:
        """N(0, 1 / D), so that a token starts with variance 1 whatever the number of variates."""
        rng.fill_normal_(self.weight, self.variates**-0.5, key("weight"))

    def forward(self, symbols: Tensor, z: Tensor, steps: Tensor) -> Tensor:
        """Symbols [R, W, D] -> [R, W, d]."""
        rows = symbols + torch.arange(self.variates, device=symbols.device) * self.rows
        out = F.embedding_bag(rows.reshape(-1, self.variates), self.weight, mode="sum")
        return out.view(*symbols.shape[:2], out.shape[1])


class Patch(nn.Module):
    """`Table` plus a linear layer on the word's own z-scored samples and their observed mask."""

    def __init__(self, variates: int, word: int, alphabet: int, width: int) -> None:
        super().__init__()
        self.table = Table(variates, word, alphabet, width)
        self.linear = Linear(2 * word * variates, width)

    def forward(self, symbols: Tensor, z: Tensor, steps: Tensor) -> Tensor:
        """Symbols [R, W, D], z [R, W, w, D], steps bool [R, W, w, D] -> [R, W, d]."""
        samples = torch.cat((z, steps.to(z.dtype)), -1).flatten(2)
        out: Tensor = self.table(symbols, z, steps) + self.linear(samples)
        return out


class Stem(nn.Module):
    """Convolutions over the steps of one modality, averaged into words.

    They see z-scores and the observed mask; a step at which nothing was observed is zero to every convolution and does
    not count in a word's average.
    """

    def __init__(self, variates: int, config: StemConfig, width: int, sequence: SequenceContext) -> None:
        super().__init__()
        if config.kernel % 2 == 0:
            raise ConfigError(f"model.stem.kernel is {config.kernel}; choose an odd length")
        self.sequence, self.reach = sequence, config.kernel // 2
        inputs = [2 * variates] + [config.channels] * (config.layers - 1)
        self.convolutions = nn.ModuleList(Windowed(size, config.channels, config.kernel) for size in inputs)
        self.linear = Linear(config.channels, width)

    def forward(self, z: Tensor, steps: Tensor) -> Tensor:
        """Z-scores z and steps [R, W, w, D] -> [R, W, d]."""
        rows, words, word, variates = z.shape
        observed = steps.any(-1).to(z.dtype)
        mask = observed.view(rows, words * word, 1)
        x = torch.cat((z, steps.to(z.dtype)), -1).view(rows, words * word, 2 * variates)
        for convolution in self.convolutions:
            x = F.gelu(convolution(self.sequence.halo(x, self.reach))) * mask
        count = observed.sum(2, keepdim=True).clamp_min(1)
        out: Tensor = self.linear(x.view(rows, words, word, x.shape[2]).sum(2) / count)
        return out


_EMBEDDINGS = {"ordinal": Ordinal, "table": Table, "patch": Patch}


class Embedding(nn.Module):
    """Raw windows of one modality -> its tokens, with their time."""

    mean: Tensor
    std: Tensor
    edges: Tensor

    def __init__(self, config: ModelConfig, modality: Modality, time: TimeCode, sequence: SequenceContext) -> None:
        super().__init__()
        self.modality, self.word = modality, word_steps(config, modality.name)
        self.normalize, self.time, self.sequence = config.normalize, time, sequence
        if config.normalize == "dataset" or (config.summary != "none" and config.normalize == "window"):
            _check_statistics(modality)
        # Kept as the bits of float64 numbers: a cast of the whole module to another float type must not round them.
        self.register_buffer("edges", sax.cuts(config.alphabet).view(torch.int64), persistent=False)
        for name, values, default in (("mean", modality.mean, 0.0), ("std", modality.std, 1.0)):
            numbers = torch.tensor(values or [default] * modality.variates, dtype=torch.float64)
            self.register_buffer(name, numbers.view(torch.int64), persistent=False)
        self.symbols = _EMBEDDINGS[config.embedding](modality.variates, self.word, config.alphabet, config.width)
        self.stem = Stem(modality.variates, config.stem, config.width, sequence) if config.stem else None
        self.summary: Summary | None = None
        if config.summary != "none":
            self.summary = Summary(modality.variates, config.summary, config.width, sequence)

    def words(self, x: Tensor, observed: Tensor, reference: tuple[Tensor, Tensor], dtype: torch.dtype) -> Words:
        """Symbols and z-scores of raw words [R, W, w, D]."""
        symbols = sax.symbolise(x, observed, *reference, self.edges.view(torch.float64))
        return Words(symbols, sax.z_score(x, observed, *reference).to(dtype), observed, observed.any(3).any(2))

    def forward(self, values: Tensor, recording: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens of raw windows.

        values float [R, T, D]; recording [R, D, 2] or None. Returns the tokens [R, S + W, d] (the summary token first,
        if it is held here), and the observed masks bool [R, S] and [R, W].
        """
        x = sax.split_words(values, self.word)
        observed = x.isfinite()
        given = sax.given_reference(self.mean.view(torch.float64), self.std.view(torch.float64))
        if self.normalize == "recording":
            given = sax.given_reference(*self._recording(recording).unbind(-1))
        window = None
        if self.normalize == "window" or self.summary is not None:
            window = sax.moments(x, observed, self.sequence)
        reference = sax.window_reference(window) if self.normalize == "window" and window is not None else given
        words = self.words(x, observed, reference, dtype)

        start, _ = self.sequence.slice(self.modality.name, values.shape[1])
        seconds = word_times(
            words.words.shape[1], start // self.word, 1, self.word, self.modality.rate_hz, values.device
        )
        tokens = self.symbols(words.symbols, words.z, words.steps) + self.time(seconds).to(dtype)
        if self.stem is not None:
            tokens = tokens + self.stem(words.z, words.steps)
        held = words.words.new_zeros((len(x), 0))
        if self.summary is not None and window is not None:
            z = words.z if reference is given else sax.z_score(x, observed, *given).to(dtype)
            token = self.summary(z, observed, (window.mean - given[0]) / given[1], window, given[1], start)
            width = 1 if self.sequence.rank == 0 else 0
            held = (window.n > 0).any(1, keepdim=True)[:, :width]
            tokens = torch.cat((token[:, None, :][:, :width], tokens), 1)
        return tokens, held, words.words

    def _recording(self, recording: Tensor | None) -> Tensor:
        if recording is None:
            raise DataError(
                f"modality {self.modality.name!r} comes without statistics of the recording; pack the data with them,"
                " or set model.normalize to window or dataset"
            )
        return recording


def _check_statistics(modality: Modality) -> None:
    if len(modality.mean) != modality.variates or len(modality.std) != modality.variates:
        raise ConfigError(
            f"modality {modality.name!r} has no training-split mean and std for its {modality.variates} variates;"
            " pack the data again, or set model.normalize to window"
        )
