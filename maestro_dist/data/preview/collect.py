"""All that the page shows, read from a data set in bounded time and memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from maestro_dist.config.schema import DataConfig
from maestro_dist.data.findings import warning_lines
from maestro_dist.data.lint import label_remarks
from maestro_dist.data.manifest import Manifest, load_manifest
from maestro_dist.data.preview.facts import (
    NOBODY,
    Coverage,
    SplitFacts,
    coverage_of_recordings,
    coverage_of_windows,
    recordings_to_count,
    split_facts,
)
from maestro_dist.data.preview.recordings import ShownRecording, read_recordings
from maestro_dist.data.preview.samples import SplitSamples, ValueFacts, read_samples
from maestro_dist.data.reader import SplitSource
from maestro_dist.data.recordings.cut_data import usual_windows
from maestro_dist.data.recordings.windowing import windowing_of
from maestro_dist.errors import ConfigError
from maestro_dist.types import Modality

MOST_SAMPLES = 50
"""Samples of each split that can be shown."""


@dataclass(frozen=True)
class PreviewOptions:
    """What is shown.

    samples  of each split
    seed     of the random choice of samples, shards and recordings
    splits   their names; empty: all
    """

    samples: int = 6
    seed: int = 0
    splits: tuple[str, ...] = ()


@dataclass(frozen=True)
class Preview:
    """The content of the page; dictionaries by split have those that were chosen and are not empty.

    manifest    that of the windows; `stored`: as it is in the data set
    warnings    one line each
    coverage    of people, from `counted` of `recordings` recordings, or from the indexes
    values      by modality
    """

    options: PreviewOptions
    manifest: Manifest
    stored: Manifest
    modalities: tuple[Modality, ...]
    facts: dict[str, SplitFacts]
    samples: dict[str, SplitSamples]
    values: dict[str, ValueFacts]
    coverage: Coverage
    recordings: list[ShownRecording]
    warnings: list[str]
    counted: int = 0
    known_recordings: int = 0

    @property
    def bytes(self) -> int:
        """Size of all shards."""
        return sum(shard.bytes for split in self.stored.splits.values() for shard in split.shards)


def collect(config: DataConfig, options: PreviewOptions) -> Preview:
    """Read what the page shows. `config` says where the data set is, and how recordings are cut.

    Raises:
        ConfigError: an option or a key does not fit the data set.
        DataError: the manifest or the table of recordings is missing or damaged. Damaged shards are shown as such.
        StorageError: the data set cannot be read at present.
    """
    if not 1 <= options.samples <= MOST_SAMPLES:
        raise ConfigError(f"--samples {options.samples}: 1 to {MOST_SAMPLES} samples of each split can be shown")
    stored = load_manifest(config.url)
    manifest = _windows(config, stored)
    modalities = tuple(manifest.select(config.modalities))
    for name in options.splits:
        manifest.split(name)
    splits = [n for n, split in manifest.splits.items() if split.samples and n in (options.splits or manifest.splits)]
    facts = {name: split_facts(config, manifest, name, options.seed) for name in splits}
    values = {modality.name: ValueFacts(modality) for modality in modalities}
    samples = {}
    if manifest.symbols is None or manifest.symbols.raw:
        for name in splits:
            source = SplitSource(config.url, manifest, config, modalities, name)
            samples[name] = read_samples(source, options.samples, options.seed, values)
    preview = Preview(
        options=options,
        manifest=manifest,
        stored=stored,
        modalities=modalities,
        facts=facts,
        samples=samples,
        values=values,
        coverage=coverage_of_windows(list(facts.values())),
        recordings=[],
        warnings=_warnings(manifest, splits, modalities, facts),
    )
    return preview if manifest.cut is None else _with_recordings(preview, config, splits)


def _windows(config: DataConfig, stored: Manifest) -> Manifest:
    """The manifest of the windows."""
    if stored.recordings is not None:
        return usual_windows(config.url, stored, config.window, config.split)
    for key in ("window", "split"):
        if getattr(config, key) is not None:
            raise ConfigError(f"data.{key}: the data set holds windows, not recordings; pack it as recordings")
    return stored


def _with_recordings(preview: Preview, config: DataConfig, splits: Sequence[str]) -> Preview:
    options, windowing = preview.options, windowing_of(config.url, preview.manifest, config.cache)
    rows = recordings_to_count(options.seed, len(windowing.table))
    coverage = coverage_of_recordings(windowing.table, rows, windowing.modalities)
    own = [windowing.names.index(modality.name) for modality in preview.modalities]
    shown = read_recordings(config, preview.stored, preview.manifest, splits, options.samples, options.seed)
    return replace(
        preview,
        coverage=Coverage(coverage.people, coverage.counts, coverage.shares[:, own]),
        recordings=shown,
        counted=len(rows),
        known_recordings=len(windowing.table),
    )


def _warnings(
    manifest: Manifest, splits: Sequence[str], modalities: Sequence[Modality], facts: dict[str, SplitFacts]
) -> list[str]:
    """Of the manifest, and of indexes that cannot be read."""
    filled = [name for name, split in manifest.splits.items() if split.samples]
    of_recordings = manifest.cut is not None and manifest.statistics_of is not None
    counted = [str(manifest.statistics_of)] if of_recordings else filled  # findings of recordings are not by split
    lines = warning_lines(manifest, counted, [m.name for m in modalities])
    for first, second in combinations(facts, 2) if manifest.cut is not None else ():
        people = sorted(set(facts[first].subjects.tolist()) & set(facts[second].subjects.tolist()) - {NOBODY})
        if people:
            some = ", ".join(people[:5]) + (", ..." if len(people) > 5 else "")
            lines.append(f"{len(people):,} people have samples in both '{first}' and '{second}' ({some})")
    lines += [f"{remark.where}: {remark.text}" for remark in label_remarks(manifest) if remark.where in splits]
    lines += [f"{name}: {line}" for name, found in facts.items() for line in found.broken]
    empty = [name for name in manifest.splits if name not in filled]
    if empty:
        lines.append(f"without samples: {', '.join(empty)}")
    for column, modality in enumerate(modalities):
        present = [found.present[:, column].any() for found in facts.values()]
        if present and not np.any(present):
            lines.append(f"{modality.name}: no sample has it")
    return lines
