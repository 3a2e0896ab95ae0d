"""The tables of the page: splits, modalities, classes, coverage by person."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from maestro_dist.data.manifest import Manifest
from maestro_dist.data.preview.collect import Preview
from maestro_dist.data.preview.facts import NOBODY
from maestro_dist.data.preview.html_text import counted, number, rate, share, table, text
from maestro_dist.data.preview.samples import ValueFacts

_MOST_ROWS = 300
_MOST_VARIATES = 8
_FEW_VARIATES = 60  # of all modalities together: then each has its row
_MOST_CLASSES = 50
_MOST_PEOPLE = 60
_MOST_COLUMNS = 60


def splits(preview: Preview) -> str:
    """Samples, shards, bytes and people of each split."""
    manifest, rows = preview.manifest, []
    for name, split in manifest.splits.items():
        facts = preview.facts.get(name)
        people = "&ndash;"
        if facts is not None:
            whole = facts.read == facts.shards and not facts.broken
            people = f"{facts.people:,}" if whole else f"at least {facts.people:,}"
        size = [f"{sum(shard.bytes for shard in split.shards) / 1e6:,.1f}"] if manifest.cut is None else []
        rows.append([text(name), f"{split.samples:,}", people, f"{len(split.shards):,}", *size])
    caption = "Splits" + (", of windows that are cut from the recordings" if manifest.cut is not None else "")
    head = ["split", "samples", "people", "shards", *(["MB"] if manifest.cut is None else [])]
    parts = [table(caption, head, rows)]
    partly = [facts for facts in preview.facts.values() if facts.read < facts.shards]
    if partly:
        read, all_shards = sum(facts.read for facts in partly), sum(facts.shards for facts in partly)
        parts.append(f'<p class="note">People are from the indexes of {read:,} of {all_shards:,} shards.</p>\n')
    if preview.known_recordings:
        parts.append(f"<p>{counted(preview.known_recordings, 'recording')}.</p>\n")
    return "".join(parts)


def modalities(preview: Preview) -> str:
    """One row for each variate."""
    few = sum(modality.variates for modality in preview.modalities) <= _FEW_VARIATES
    rows = [row for facts in preview.values.values() for row in _modality(preview, facts, all_variates=few)]
    read = sum(samples.read for samples in preview.samples.values())
    total = sum(preview.manifest.split(name).samples for name in preview.samples)
    where = "whole recordings" if preview.manifest.cut is not None else (preview.manifest.statistics_of or "train")
    caption = (
        f"Mean and std: of {text(where)}, as the manifest says. Min, max and observed: from {read:,} of "
        f"{total:,} samples; observed: share of the steps of the samples that have the modality."
    )
    head = ["modality", "unit", "rate", "steps", "variate", "samples that have it", "observed"]
    more = f'<p class="note">and {len(rows) - _MOST_ROWS:,} more rows</p>\n' if len(rows) > _MOST_ROWS else ""
    listed = table(caption, [*head, "mean", "std", "min", "max"], rows[:_MOST_ROWS])
    return f"<h2>Modalities</h2>\n{listed}{more}"


def _modality(preview: Preview, facts: ValueFacts, *, all_variates: bool) -> Iterator[list[str]]:
    modality = facts.modality
    column = list(preview.values).index(modality.name)
    present = np.concatenate([np.empty(0, dtype=bool), *(f.present[:, column] for f in preview.facts.values())])
    has = share(float(present.mean())) if len(present) else "&ndash;"
    always = ", always known" if modality.always else ""
    count = modality.variates if all_variates else min(modality.variates, _MOST_VARIATES)
    for variate in range(count):
        observed = share(facts.seen[variate] / facts.steps) if facts.steps else "&ndash;"
        first = [text(modality.name) + always, text(modality.unit, 40), rate(modality.rate_hz), f"{modality.steps:,}"]
        own = [f"{variate} of {modality.variates:,}" if modality.variates > 1 else "", has, observed]
        numbers = (modality.mean[variate], modality.std[variate], facts.low[variate], facts.high[variate])
        yield [*first, *own, *(number(float(value)) for value in numbers)]
    if count < modality.variates:
        yield [text(modality.name), *[""] * 3, f"{modality.variates - count:,} more", *[""] * 6]


def _several_targets(manifest: Manifest, name: str, seen: np.ndarray) -> Iterator[list[str]]:
    """A row for each target in a split; `seen`, [N, K], are numbers of some of its samples."""
    split = manifest.split(name)
    labels = split.samples if split.labelled is None else split.labelled
    seen = seen.reshape(-1, len(manifest.targets))
    for column, (target, facts) in enumerate(zip(manifest.targets, split.targets or (), strict=True)):
        known = seen[~np.isnan(seen[:, column]), column]
        low, high = (known.min(), known.max()) if len(known) else (np.nan, np.nan)
        mean, std = (facts.mean, facts.std) if facts.known else (np.nan, np.nan)
        own = [number(float(value)) for value in (mean, std, low, high)]
        yield [text(name), text(target), f"{facts.known:,} of {labels:,}", *own]


def balance(preview: Preview, colours: Mapping[str, str], targets: str) -> str:
    """Bars of the classes of each split; of a regression, its numbers and the picture `targets`."""
    manifest, names = preview.manifest, list(preview.facts)
    if manifest.task == "none":
        return "<h2>Labels</h2>\n<p>The data set has no labels.</p>\n"
    if manifest.task == "regression":
        rows = []
        for name in names:
            split, seen = manifest.split(name), preview.facts[name].targets
            if manifest.targets:
                rows += list(_several_targets(manifest, name, seen))
                continue
            mean, std = (np.nan if value is None else value for value in (split.target_mean, split.target_std))
            seen = seen[~np.isnan(seen)]  # over time, parts without a label
            low, high = (seen.min(), seen.max()) if len(seen) else (np.nan, np.nan)
            rows.append([text(name), *(number(float(value)) for value in (mean, std, low, high))])
        if manifest.targets:
            heads = ["split", "target", f"{_labelled(manifest)} that have it", "mean", "std", "min", "max"]
            caption = f"Targets: {text(manifest.target, 300)}"
            return f"<h2>Labels</h2>\n{table(caption, heads, rows)}{targets}"
        caption = f"Target: {text(manifest.target, 300)}"
        return f"<h2>Labels</h2>\n{table(caption, ['split', 'mean', 'std', 'min', 'max'], rows)}{targets}"
    counts = np.array([manifest.split(name).class_counts for name in names]).reshape(len(names), -1)
    order = np.sort(np.argsort(-counts.sum(axis=0), kind="stable")[:_MOST_CLASSES])
    most = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    rows = []
    for label in order:
        cells = []
        for place, name in enumerate(names):
            width = 100 * most[place, label] / max(most.max(), 1e-9)
            bar = f'<span class="bar"><span style="width:{width:.1f}%;background:{colours[name]}"></span></span>'
            cells.append(f"{counts[place, label]:,} ({share(float(most[place, label]))}){bar}")
        rows.append([text(manifest.classes[label]), *cells])
    left = len(manifest.classes) - len(rows)
    more = f'<p class="note">and {left:,} rarer classes</p>\n' if left > 0 else ""
    caption = f"{_labelled(manifest).capitalize()} of each class"
    return f"<h2>Labels</h2>\n{table(caption, ['class', *map(text, names)], rows)}{more}"


def coverage(preview: Preview) -> str:
    """People by modalities: the share that was observed."""
    found, heading = preview.coverage, "<h2>Coverage by person</h2>\n"
    if not [name for name in found.people if name != NOBODY]:
        return f"{heading}<p>People have no names in this data set.</p>\n"
    cut = preview.manifest.cut is not None
    thing = "recording" if cut else "sample"
    columns = min(len(preview.modalities), _MOST_COLUMNS)
    mean = found.shares.mean(axis=1)
    shown = np.sort(np.argsort(mean, kind="stable")[:_MOST_PEOPLE])  # the worst ones
    rows = []
    for row in shown.tolist():
        cells = [_cell(float(value)) for value in found.shares[row, :columns]]
        name = text(found.people[row]) if found.people[row] != NOBODY else "(without a name)"
        rows.append([name, f"{found.counts[row]:,}", *cells])
    names = [text(modality.name) for modality in preview.modalities[:columns]]
    if cut:
        basis = "Share of the recorded time at which each modality was observed"
        basis += f", from {preview.counted:,} of {counted(preview.known_recordings, 'recording')}"
    else:
        read = sum(len(facts.subjects) for facts in preview.facts.values())
        total = sum(preview.manifest.split(name).samples for name in preview.facts)
        basis = f"Share of the samples that have each modality, from the indexes of {read:,} of {total:,} samples"
    parts = [heading, table(f"{basis}, in %.", ["person", f"{thing}s", *names], rows, "heat")]
    left = len(found.people) - len(rows)
    if left:
        others = np.delete(mean, shown).mean()
        note = f"and {counted(left, 'person')} with more observed, {share(float(others))} on average"
        parts.append(f'<p class="note">{note}</p>\n')
    if len(preview.modalities) > columns:
        parts.append(f'<p class="note">the first {columns} of {len(preview.modalities):,} modalities</p>\n')
    return "".join(parts)


def _cell(value: float) -> str:
    """A cell of the heat map: white for nothing, blue for all."""
    red, green, blue = (round(255 - value * (255 - end)) for end in (0x08, 0x51, 0x9C))
    ink = "#fff" if value > 0.55 else "#333"
    shown = f"{100 * value:.0f}"
    if value > 0 and shown == "0":
        shown = "&lt;1"
    elif value < 1 and shown == "100":
        shown = "&gt;99"
    return f'<td style="background:rgb({red},{green},{blue});color:{ink}">{shown}</td>'


def _labelled(manifest: Manifest) -> str:
    """What has a label each."""
    return "samples" if manifest.label_steps == 1 else "labelled parts of samples"
