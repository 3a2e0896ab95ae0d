"""Signals of many recordings as the modalities of one data set: names, rates, units, and keys of recordings.

By default each signal is a modality of one variate, with its name in small letters (`ABP Mean` -> `abp_mean`). With
`--modalities` a modality is a list of signals, its variates: `ecg=II,V; abp=ABP|ART; resp=RESP@125` (`A|B`: the first
of them that a recording has; `@125`: only signals with this rate, in Hz).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import yaml

from maestro_dist.data.parts import join_names
from maestro_dist.data.storage import Storage
from maestro_dist.errors import ConfigError, DataError
from maestro_dist.types import Modality

_NAME = re.compile(r"[a-z0-9_]{1,40}")
_MILLIVOLTS = {"V": 1e3, "mV": 1.0, "uV": 1e-3, "µV": 1e-3, "μV": 1e-3, "nV": 1e-6}
_SAME_RATE = 1e-6  # relative: 1/60 Hz is written with a dozen digits
_KEY_LETTERS = 40


@dataclass(frozen=True)
class Signal:
    """One signal of a recording. `name` is its own in the recording; a second `ECG` there is named `ECG#2`."""

    name: str
    rate_hz: float
    unit: str


@dataclass(frozen=True)
class WantedModality:
    """A modality of `--modalities`: for each variate the signals that may be it, and the rate that they must have."""

    name: str
    variates: tuple[tuple[str, ...], ...]
    rate_hz: float | None = None


@dataclass(frozen=True)
class SignalUse:
    """Where the variates of a modality come from in one recording: name of a signal and a factor, or None."""

    modality: str
    rate_hz: float
    variates: tuple[tuple[str, float] | None, ...]


@dataclass(frozen=True)
class SignalPlan:
    """The modalities of all recordings, the use of the signals of each recording, and what was odd."""

    modalities: tuple[Modality, ...]
    uses: Mapping[str, tuple[SignalUse, ...]]
    warnings: tuple[str, ...]


def add_modalities(parser: argparse.ArgumentParser) -> None:
    """Add `--modalities`."""
    parser.add_argument(
        "--modalities",
        metavar="MAP",
        help="the signals of each modality: 'ecg=II,V; abp=ABP|ART; resp=RESP@125', or a YAML or "
        "JSON file with ecg: [II, V]; by default each signal is a modality",
    )


def parse_modalities(text: str | None) -> tuple[WantedModality, ...]:
    """The modalities of `--modalities`; none if it is not given.

    Raises:
        ConfigError: it has a wrong form, or names a modality or signal twice.
    """
    if not text:
        return ()
    given = _of_file(text) if re.search(r"\.(ya?ml|json)\Z", text) else _of_text(text)
    wanted = tuple(_wanted(name, signals) for name, signals in given)
    for names in ([w.name for w in wanted], [(s, w.rate_hz) for w in wanted for v in w.variates for s in v]):
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise ConfigError(f"--modalities: {twice[0]} is named twice; name each modality and each signal once")
    return wanted


def _of_text(text: str) -> list[tuple[str, list[str]]]:
    items = [item.partition("=") for item in text.split(";") if item.strip()]
    if not all(sign for _, sign, _ in items):
        raise ConfigError(f"--modalities {text}: write NAME=SIGNAL,SIGNAL; NAME=SIGNAL")
    return [(name.strip(), [signal.strip() for signal in signals.split(",")]) for name, _, signals in items]


def _of_file(path: str) -> list[tuple[str, list[str]]]:
    body = Storage(path).read().decode("utf-8-sig", errors="replace")
    try:
        given: Any = json.loads(body) if path.endswith(".json") else yaml.safe_load(body)
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"--modalities {path}: not valid ({' '.join(str(error).split())[:200]})") from None
    if not isinstance(given, dict) or not given:
        raise ConfigError(f"--modalities {path}: write lines such as ecg: [II, V]")
    return [
        (str(name), [str(s) for s in signals] if isinstance(signals, list) else [str(signals)])
        for name, signals in given.items()
    ]


def _wanted(name: str, signals: Sequence[str]) -> WantedModality:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"--modalities: {name!r}: a name of a modality has up to 40 small letters, digits or _")
    rates = {match[1] for signal in signals if (match := re.search(r"@([\d.eE+-]+)\Z", signal))}
    plain = [re.sub(r"@[\d.eE+-]+\Z", "", signal).strip() for signal in signals]
    try:
        rate = float(rates.pop()) if rates else None
    except ValueError as error:
        raise ConfigError(f"--modalities: {name}: no rate in Hz ({error})") from None
    if rates or (rate is not None and not 0 < rate < float("inf")):
        raise ConfigError(f"--modalities: {name}: a modality has one rate, a positive number of Hz")
    variates = tuple(tuple(part.strip() for part in signal.split("|")) for signal in plain)
    if not all(part for variate in variates for part in variate):
        raise ConfigError(f"--modalities: {name}: a signal without a name")
    return WantedModality(name, variates, rate)


def numbered(names: Iterable[str]) -> list[str]:
    """The names of the signals of one recording, made different: a second `ECG` becomes `ECG#2`."""
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return found


def legal_name(signal: str, most: int = 40) -> str:
    """The name of the modality of a signal, of at most `most` letters.

    Raises:
        DataError: nothing of the name may be in that of a modality.
    """
    name = re.sub(r"[^a-z0-9]+", "_", signal.lower()).strip("_")[:most]
    if not name:
        raise DataError(f"signal {signal!r}: a modality cannot have this name; name it with --modalities")
    return name


def short_name(name: str, of: str) -> str:
    """A name of a modality that is cut and ends with a part of the hash of `of`."""
    return f"{name[:31]}_{_digest(of)}"


def plan_signals(records: Mapping[str, Sequence[Signal]], wanted: Sequence[WantedModality]) -> SignalPlan:
    """The modalities of recordings, which have these signals.

    Raises:
        ConfigError: `wanted` has a modality that has no signal in any recording.
        DataError: a modality would have several rates, or units that cannot be converted.
    """
    names = sorted({signal.name for signals in records.values() for signal in signals})
    chosen = tuple(wanted) or _one_each(names)
    places: dict[str, list[tuple[str, int, Signal]]] = {modality.name: [] for modality in chosen}
    for record, signals in records.items():
        by_name = {signal.name: signal for signal in signals}
        for modality in chosen:
            for column, variate in enumerate(modality.variates):
                found = [by_name[s] for s in variate if s in by_name and _fits(by_name[s], modality)]
                if found:
                    places[modality.name].append((record, column, found[0]))
    warnings: list[str] = []
    modalities, uses = [], {record: list[SignalUse]() for record in records}
    for modality in chosen:
        found_here = places[modality.name]
        if not found_here:
            rate = f" at {modality.rate_hz:g} Hz" if modality.rate_hz else ""
            signals_of = ", ".join("|".join(variate) for variate in modality.variates)
            raise ConfigError(
                f"--modalities: no recording has {signals_of}{rate} ({modality.name}); there are {join_names(names)}"
            )
        rate_hz = _one_rate(modality.name, found_here)
        unit, factors = _one_unit(modality.name, found_here, warnings)
        modalities.append(Modality(modality.name, len(modality.variates), rate_hz, 0, unit))
        columns: dict[str, list[tuple[str, float] | None]] = {}
        for record, column, signal in found_here:
            row = columns.setdefault(record, [None] * len(modality.variates))
            row[column] = signal.name, factors[signal.unit, column]
        for record, row in columns.items():
            uses[record].append(SignalUse(modality.name, rate_hz, tuple(row)))
    used = {(r, v[0]) for r, found_uses in uses.items() for use in found_uses for v in use.variates if v}
    left_out = sorted({s.name for record, signals in records.items() for s in signals if (record, s.name) not in used})
    if left_out:
        warnings.append(f"signals that --modalities does not name, or that have another rate: {join_names(left_out)}")
    return SignalPlan(tuple(modalities), {r: tuple(u) for r, u in uses.items()}, tuple(warnings))


def _one_each(names: Sequence[str]) -> tuple[WantedModality, ...]:
    of: dict[str, str] = {}
    for name in names:
        legal = legal_name(name)
        if legal in of:
            raise DataError(
                f"signals {of[legal]!r} and {name!r} would both be the modality {legal}; name them with --modalities, "
                f"or as one: {legal}={of[legal]}|{name}"
            )
        of[legal] = name
    return tuple(WantedModality(legal, ((name,),)) for legal, name in of.items())


def same_rate(a: float, b: float) -> bool:
    """Whether two rates are equal but for the digits with which they are written."""
    return abs(a - b) <= _SAME_RATE * max(a, b)


def _fits(signal: Signal, modality: WantedModality) -> bool:
    return modality.rate_hz is None or same_rate(signal.rate_hz, modality.rate_hz)


def _one_rate(modality: str, found: Sequence[tuple[str, int, Signal]]) -> float:
    first_record, _, first = found[0]
    for record, _, signal in found:
        if not same_rate(signal.rate_hz, first.rate_hz):
            raise DataError(
                f"{modality}: signal {first.name} has {first.rate_hz:g} Hz in {first_record}, but {signal.name} has "
                f"{signal.rate_hz:g} Hz in {record}; make two modalities with --modalities "
                f"'{modality}={first.name}@{first.rate_hz:g}; ...', or choose recordings with --records"
            )
    return first.rate_hz


def _one_unit(
    modality: str, found: Sequence[tuple[str, int, Signal]], warnings: list[str]
) -> tuple[str, dict[tuple[str, int], float]]:
    """The unit of a modality, and the factor of each (unit, variate). Variates may have units of their own."""
    units = {column: list(dict.fromkeys(s.unit for _, c, s in found if c == column)) for _, column, _ in found}
    factors = {(unit, column): 1.0 for column, given in units.items() for unit in given}
    for column, given in sorted(units.items()):
        if len(given) == 1:
            continue
        if not all(unit in _MILLIVOLTS for unit in given):
            examples = {s.unit: f"{s.unit or 'no unit'} in {r}" for r, c, s in reversed(found) if c == column}
            shown = join_names([examples[unit] for unit in given], 4)
            raise DataError(
                f"{modality}: signals with several units ({shown}); make a modality for each with --modalities, or "
                "choose recordings with --records"
            )
        warnings.append(f"{modality}: {' and '.join(given)} are converted to mV")
        factors |= {(unit, column): _MILLIVOLTS[unit] for unit in given}
        units[column] = ["mV"]
    of_variates = [units[column][0] for column in sorted(units)]
    return ", ".join(of_variates if len(set(of_variates)) > 1 else of_variates[:1]), factors


def stacked(use: SignalUse, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """The values of a modality, float32 [T, D]; a variate that the recording lacks is NaN."""
    steps = max(len(arrays[v[0]]) for v in use.variates if v)
    stacked = np.full((steps, len(use.variates)), np.nan, dtype=np.float32)
    for column, variate in enumerate(use.variates):
        if variate is not None:
            stacked[:, column] = arrays[variate[0]] * np.float32(variate[1])
    return stacked


def recording_keys(names: Iterable[str]) -> dict[str, str]:
    """A legal key for each recording: the last part of its path if that is its own, else all of it."""
    listed = list(names)
    last = Counter(_key(PurePosixPath(name).name) for name in listed)
    keys = {}
    for name in listed:
        short = _key(PurePosixPath(name).name)
        keys[name] = short if last[short] == 1 and len(short) <= _KEY_LETTERS else _key(name)
    again = Counter(keys.values())
    return {n: k if again[k] == 1 and len(k) <= _KEY_LETTERS else f"{k[:31]}-{_digest(n)}" for n, k in keys.items()}


def _key(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name) or "-"


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:8]
