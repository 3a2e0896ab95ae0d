"""Whether a trained model can use another data set: its task, classes, shapes, rates, units and scales must agree."""

from __future__ import annotations

import logging
import math
import unicodedata
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from maestro_dist.config.model import ModelConfig
from maestro_dist.config.word_length import word_length
from maestro_dist.data.manifest import Manifest, ManifestModality
from maestro_dist.data.reader import SplitSource
from maestro_dist.errors import DataError
from maestro_dist.system.logging_setup import NOTE
from maestro_dist.types import Modality, TargetScale

_LOG = logging.getLogger(__name__)
_GROSS, _LARGE = 100.0, 10.0
"""Ratio of two standard deviations, or distance of two means in standard deviations. Above `_GROSS` a data set is
refused, above `_LARGE` there is a warning. Other people and devices differ by less, other units by about 1,000."""
_ROUNDING = 1e-6
"""A standard deviation below this share of the mean comes from rounding to float32: the channel is constant."""
_MOST_SAMPLES, _LEAST_SAMPLES, _MOST_NUMBERS = 256, 8, 1 << 24
"""Limits of `check_values`: number of samples, with fewer samples if they hold many numbers."""
_SHOWN = 30  # most names that an error lists

ANY_UNITS = "--any-units takes the numbers as they are"


@dataclass(frozen=True)
class Answer:
    """What a model predicts: `kind` of task, its classes, or the target's name, mean and standard deviation.

    targets        the same of several targets
    label_steps    parts of a window that are predicted one by one, of `label_every_s` seconds each
    """

    kind: str
    classes: tuple[str, ...] = ()
    name: str = ""
    mean: float = 0.0
    std: float = 1.0
    targets: tuple[TargetScale, ...] = ()
    label_steps: int = 1
    label_every_s: float = 0.0


@dataclass(frozen=True)
class _Finding:
    """A difference of units or scales, and how large it is."""

    text: str
    factor: float


def fit_modalities(
    manifest: Manifest, modalities: Sequence[Modality], model: ModelConfig, *, any_units: bool = False
) -> tuple[Manifest, list[str]]:
    """Manifest of the data set, adapted to a model of `modalities`, and notes for the user, one line each.

    A modality that the data set lacks is added to the manifest; all samples then lack it. A modality that the model
    does not have is not read. `any_units`: units and scales that do not fit give a warning instead of an error.

    Raises:
        DataError: no modality is shared, or a shared one differs in shape, rate, unit or, grossly, in scale. The
            message names both values.
    """
    name, packed_by_name = manifest.name, {modality.name: modality for modality in manifest.modalities}
    model_names = [modality.name for modality in modalities]
    shared = [modality for modality in modalities if modality.name in packed_by_name]
    if not shared:
        raise DataError(
            f"{name!r} has none of the model's modalities ({_list(model_names)}); it has {_list(packed_by_name)}"
        )
    _check_shapes(name, shared, packed_by_name)
    if model.normalize == "recording" and not manifest.recording:
        raise DataError(f"the model normalizes by recording, but {name!r} has no statistics of recordings")
    findings = [finding for needed in shared for finding in _units(name, needed, packed_by_name[needed.name])]
    if model.needs_statistics:
        findings += [finding for needed in shared for finding in _scales(name, needed, packed_by_name[needed.name])]
    notes = _as_warnings(findings, any_units=any_units or not model.needs_statistics)
    lacking = [modality for modality in modalities if modality.name not in packed_by_name]
    extra = [packed for packed in packed_by_name if packed not in model_names]
    if lacking:
        notes.append(f"note: {name!r} has no {_list([m.name for m in lacking])}: absent from all samples")
    if extra:
        notes.append(f"note: {_list(extra)} of {name!r} are not among the model's modalities: not used")
    return _add_modalities(manifest, lacking, model), notes


def check_values(source: SplitSource, *, any_units: bool = False) -> list[str]:
    """Compare some samples of the split with the model's training data; returns warnings, one line each.

    The statistics in the manifest may belong to another split, with other units. A few outliers do not matter. Only
    for models that use the training data's mean and standard deviation.

    Raises:
        DataError: most samples are very far from the training data (with `any_units` this is a warning).
    """
    if source.manifest.symbols is not None and not source.manifest.symbols.raw:
        return []
    samples = source.manifest.split(source.split).samples
    numbers_each = sum(modality.steps * modality.variates for modality in source.modalities)
    count = min(samples, _MOST_SAMPLES, max(_LEAST_SAMPLES, _MOST_NUMBERS // numbers_each))
    distances: dict[tuple[str, int], list[float]] = {}
    with closing(source.open()) as reader, np.errstate(over="ignore"):
        for number in np.unique(np.linspace(0, samples - 1, count).astype(int)).tolist():
            sample = reader.sample(number)
            for modality in source.modalities:
                for variate in _scaled_variates(modality) if modality.name in sample.values else ():
                    values = sample.values[modality.name][:, variate].astype(np.float64)
                    z = (values[~np.isnan(values)] - modality.mean[variate]) / modality.std[variate]
                    if len(z):
                        distances.setdefault((modality.name, variate), []).append(float(np.sqrt(np.square(z).mean())))
    findings = []
    for (name, variate), distance_list in distances.items():
        typical, large = float(np.median(distance_list)), float(np.quantile(distance_list, 0.95))
        where = f"variate {variate} of modality {name!r}, split {source.split!r} of {source.manifest.name!r}"
        if typical > _LARGE:
            text = f"{where}: half of the samples are {_number(typical)} standard deviations or more from the"
            findings.append(_Finding(f"{text} training data's mean", typical))
        elif large * _GROSS < 1.0:  # a signal may be weak: only a warning
            text = f"{where}: nearly all samples are within {_number(large)} standard deviations of the"
            findings.append(_Finding(f"{text} training data's mean", _GROSS))
    return _as_warnings(findings, any_units=any_units)


def _scaled_variates(modality: Modality) -> list[int]:
    """The variates whose scale can be compared: neither constant nor zeros and ones."""
    pairs = list(zip(modality.mean, modality.std, strict=True))
    return [n for n, (mean, std) in enumerate(pairs) if std > _ROUNDING * abs(mean) and not _binary(mean, std)]


def check_labels(manifest: Manifest, split: str, answer: Answer, *, any_units: bool = False) -> list[str]:
    """Compare the labels of a split with what the model predicts. Returns warnings, one line each.

    Raises:
        DataError: another task, other classes or targets, another order of them, or a target with a very different
            scale. The message names both.
    """
    if manifest.task == "none":
        raise DataError(
            f"{manifest.name!r} has no labels to compare the predictions with; `predict` prints the predictions"
        )
    if manifest.task != answer.kind:
        data_task = f"classes {_list(manifest.classes)}" if manifest.classes else repr(manifest.target)
        raise DataError(
            f"the model is for {answer.kind} ({_list(answer.classes) if answer.classes else answer.name}), "
            f"{manifest.name!r} for {manifest.task} ({data_task})"
        )
    if answer.classes != tuple(manifest.classes):
        order = "the same classes in another order" if set(answer.classes) == set(manifest.classes) else "other classes"
        raise DataError(
            f"{manifest.name!r} has {order}: {_list(manifest.classes)}; "
            f"the model was trained on {_list(answer.classes)}"
        )
    if answer.label_steps != manifest.label_steps:
        only = (
            "" if manifest.recordings is not None else "; it holds windows, but only recordings have labels over time"
        )
        raise DataError(
            f"the model predicts {answer.label_steps:,} labels of a window, {manifest.name!r} has "
            f"{manifest.label_steps:,}{only}"
        )
    if answer.kind != "regression":
        return []
    names = [target.name for target in answer.targets]
    if names != list(manifest.targets):
        has, wants = (_list(found) if found else "one number" for found in (manifest.targets, names))
        order = "the same targets in another order" if set(names) == set(manifest.targets) else "other targets"
        raise DataError(f"{manifest.name!r} has {order}: {has}; the model was trained on {wants}")
    notes = []
    if _plain(answer.name) != _plain(manifest.target):
        notes.append(
            f"warning: the model predicts {answer.name!r}, the target of {manifest.name!r} is {manifest.target!r}"
        )
    statistics = manifest.split(split)
    if statistics.target_mean is not None and statistics.target_std is not None:
        numbers = (answer.mean, answer.std, statistics.target_mean, statistics.target_std)
        notes += _as_warnings(_scale(manifest.name, "the target", *numbers), any_units=any_units)
    for target, found in zip(answer.targets, statistics.targets or (), strict=bool(answer.targets)):
        numbers = (target.mean, target.std, found.mean, found.std)
        if found.known:
            notes += _as_warnings(_scale(manifest.name, f"target {target.name}", *numbers), any_units=any_units)
    return notes


def _check_shapes(name: str, shared: Sequence[Modality], packed_by_name: dict[str, ManifestModality]) -> None:
    different = []
    for needed in shared:
        packed = packed_by_name[needed.name]
        same_rate = math.isclose(needed.rate_hz, packed.rate_hz, rel_tol=1e-6)
        if (needed.variates, needed.steps) != (packed.variates, packed.steps) or not same_rate:
            has, wants = (f"{m.variates} x {m.steps} @ {m.rate_hz:g} Hz" for m in (packed, needed))
            different.append(f"modality {needed.name!r} of {name!r} is {has}, the model needs {wants}")
    if different:
        more = f"; and {len(different) - 8} more" if len(different) > 8 else ""
        raise DataError("; ".join(different[:8]) + f"{more} (variates x steps @ rate)")


def _units(name: str, needed: Modality, packed: ManifestModality) -> list[_Finding]:
    if _plain(needed.unit) == _plain(packed.unit):
        return []
    return [
        _Finding(
            f"modality {needed.name!r} is in {packed.unit!r} in {name!r}, in {needed.unit!r} in training", math.inf
        )
    ]


def _plain(text: str) -> str:
    """The same text for texts that look the same: for instance, Unicode has two characters for micro."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


def _scales(name: str, needed: Modality, packed: ManifestModality) -> list[_Finding]:
    """The largest difference between the statistics of a modality's variates, if it is large enough to report."""
    by_variate: list[_Finding] = []
    for number, values in enumerate(zip(needed.mean, needed.std, packed.mean, packed.std, strict=False)):
        where = f"variate {number} of modality {needed.name!r}" if needed.variates > 1 else f"modality {needed.name!r}"
        by_variate += _scale(name, where, *values)
    return [max(by_variate, key=lambda finding: finding.factor)] if by_variate else []


def _scale(name: str, what: str, mean: float, std: float, other_mean: float, other_std: float) -> list[_Finding]:
    if _binary(mean, std) and _binary(other_mean, other_std):
        return []  # flags have no unit, and a rare flag has a small deviation
    varies, other_varies = std > _ROUNDING * abs(mean), other_std > _ROUNDING * abs(other_mean)
    unseen = other_mean == 0.0 and not other_varies  # nothing was observed, or only zeros
    texts = f"{_number(mean)} +- {_number(std)} in training, {_number(other_mean)} +- {_number(other_std)} in {name!r}"
    # a channel that was constant in training, or never observed, has no scale to compare with: only a warning
    distance = abs(other_mean - mean) / (std if varies else 1.0)
    if not varies:
        largest = min(max(distance, other_std), _GROSS)
    elif unseen:
        largest = 0.0
    else:
        largest = max(distance, std / other_std, other_std / std) if other_varies else distance
    return [_Finding(f"{what} is {texts} (mean +- standard deviation)", largest)] if largest > _LARGE else []


def _binary(mean: float, std: float) -> bool:
    """Whether these are the statistics of values that are all 0 or 1."""
    return 0.0 <= mean <= 1.0 and math.isclose(std * std, mean * (1.0 - mean), rel_tol=1e-3, abs_tol=1e-12)


def _as_warnings(findings: Sequence[_Finding], *, any_units: bool) -> list[str]:
    """Findings as warnings. Raises DataError if one is above `_GROSS`, unless `any_units`."""
    gross = [finding for finding in findings if finding.factor > _GROSS]
    if gross and not any_units:
        more = f"; and {len(gross) - 8} more" if len(gross) > 8 else ""
        raise DataError(
            "; ".join(finding.text for finding in gross[:8])
            + f"{more}; convert the data set to the units of the training data, or: {ANY_UNITS}"
        )
    return [f"warning: {finding.text}" for finding in findings]


def _add_modalities(manifest: Manifest, lacking: Sequence[Modality], model: ModelConfig) -> Manifest:
    """The manifest with additional modalities, which no sample has."""
    if not lacking:
        return manifest
    empty = [
        ManifestModality(
            name=m.name,
            variates=m.variates,
            unit=m.unit,
            rate_hz=m.rate_hz,
            steps=m.steps,
            mean=list(m.mean) or [0.0] * m.variates,
            std=list(m.std) or [1.0] * m.variates,
            always=m.always,
        )
        for m in lacking
    ]
    symbols = manifest.symbols
    if symbols is not None:
        words = {m.name: word_length(model.word, m.name) for m in lacking}
        symbols = symbols.model_copy(update={"word": symbols.word | words})
    return manifest.model_copy(update={"modalities": [*manifest.modalities, *empty], "symbols": symbols})


def _list(names: Sequence[str] | dict[str, ManifestModality]) -> str:
    shown = list(names)[:_SHOWN]
    return ", ".join(shown) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _number(value: float) -> str:
    return f"{value:.4g}"


def log_notes(notes: Iterable[str]) -> None:
    """Log lines that begin with `note: ` or `warning: ` at that level."""
    for note in notes:
        kind, _, text = note.partition(": ")
        _LOG.log(logging.WARNING if kind == "warning" else NOTE, "%s", text)
