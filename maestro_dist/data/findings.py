"""Results of packing a data set: the statistics in its manifest, outliers, people in two splits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from maestro_dist.data.description import Description
from maestro_dist.data.manifest import Manifest, ManifestModality, ManifestSplit, Recordings
from maestro_dist.data.manifest_findings import Outliers, SharedPeople
from maestro_dist.data.manifest_made import Cut
from maestro_dist.data.moments import RunningMoments
from maestro_dist.data.outliers import Bulk, FarValues, ValueHistogram
from maestro_dist.data.sample_checks import CheckedSample
from maestro_dist.errors import DataError
from maestro_dist.types import Modality

TRAIN = "train"
_SOME = 5  # names that are listed as examples


class Findings:
    """Statistics, histograms and people of each split, collected sample by sample, or merged from parts of the data."""

    def __init__(self, description: Description, splits: Sequence[str]) -> None:
        self.description, self.splits = description, splits
        self.modalities = sorted(description.modalities, key=lambda modality: modality.name)
        variates = {modality.name: modality.variates for modality in self.modalities}
        self.moments = {split: {name: RunningMoments(count) for name, count in variates.items()} for split in splits}
        self.histograms = {split: {name: ValueHistogram(count) for name, count in variates.items()} for split in splits}
        numbers = len(description.targets) or 1
        self.targets = {split: ValueHistogram(numbers) for split in splits}
        self.people: dict[str, set[str]] = {split: set() for split in splits}
        self._filled: dict[str, set[str]] = {split: set() for split in splits}  # modalities by split

    def add(self, sample: CheckedSample) -> None:
        """Count a sample."""
        for name, array in sample.arrays.items():
            self._filled[sample.split].add(name)
            self.moments[sample.split][name].add(array)
            self.histograms[sample.split][name].add(array)
        if self.description.task == "regression" and self.description.window is None:
            numbers = np.array([sample.label], dtype=np.float32)  # over time each part is one more row
            self.targets[sample.split].add(numbers.reshape(-1, len(self.description.targets) or 1))
        if sample.subject:
            self.people[sample.split].add(sample.subject)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON by split, from which `merge_json` makes exactly the same numbers."""
        return {
            split: {
                "moments": {name: self.moments[split][name].to_json() for name in sorted(self._filled[split])},
                "values": {name: self.histograms[split][name].to_json() for name in sorted(self._filled[split])},
                "targets": self.targets[split].to_json(),
                "people": sorted(self.people[split]),
            }
            for split in self.splits
        }

    def merge_json(self, body: dict[str, Any]) -> None:
        """Add what `to_json` has written. The result depends on the order of merging in its last digits only."""
        for split, found in body.items():
            for name, moments in found["moments"].items():
                self.moments[split][name].merge(RunningMoments.from_json(moments))
            for name, values in found["values"].items():
                self.histograms[split][name].merge_json(values)
            self.targets[split].merge_json(found["targets"])
            self.people[split].update(found["people"])

    def manifest(
        self, splits: dict[str, ManifestSplit], recordings: Recordings | None = None, cut: Cut | None = None
    ) -> Manifest:
        """The manifest of the written data. `recordings`: what they are, if the splits hold recordings, or their
        windows; then `cut` says how these were cut.

        Raises:
            DataError: there was no sample.
        """
        about, filled = self.description, [name for name, split in splits.items() if split.samples]
        if not filled:
            raise DataError(f"{about.name}: there was no sample for any of the splits {', '.join(splits)}")
        source = TRAIN if TRAIN in filled else filled[0]
        bulks = {modality.name: self._bulks(source, modality) for modality in self.modalities}
        outliers = [
            entry
            for split in filled
            for modality in self.modalities
            for entry in self._outliers(split, modality, bulks[modality.name])
        ]
        outliers += [entry for split in filled for entry in self._target_outliers(source, split)]
        return Manifest(
            format="maestro_dist/1",
            name=about.name,
            licence=about.licence,
            citation=about.citation,
            source=about.source,
            task=about.task,
            classes=list(about.classes),
            target=about.target,
            targets=list(about.targets),
            window_s=about.window_s,
            recording=about.recording,
            recordings=recordings,
            cut=cut,
            modalities=[self._described(source, modality, bulks[modality.name]) for modality in self.modalities],
            splits=splits,
            statistics_of=None if source == TRAIN else source,
            outliers=outliers,
            shared_people=list(self._shared(filled)),
        )

    def _bulks(self, split: str, modality: Modality) -> list[Bulk | None]:
        """The bulk of each variate; None if there are no values."""
        return [self.histograms[split][modality.name].bulk(variate) for variate in range(modality.variates)]

    def _outliers(self, split: str, modality: Modality, bulks: Sequence[Bulk | None]) -> Iterator[Outliers]:
        for variate, bulk in enumerate(bulks):
            far = self.histograms[split][modality.name].far_values(variate, bulk) if bulk is not None else None
            if far is not None:
                yield _outliers_of(split, modality.name, variate, far)

    def _target_outliers(self, source: str, split: str) -> Iterator[Outliers]:
        for number in range(len(self.description.targets) or 1):
            bulk = self.targets[source].bulk(number)
            far = self.targets[split].far_values(number, bulk) if bulk is not None else None
            if far is not None:
                yield _outliers_of(split, None, number, far)

    def _described(self, split: str, modality: Modality, bulks: Sequence[Bulk | None]) -> ManifestModality:
        moments, histogram = self.moments[split][modality.name], self.histograms[split][modality.name]
        mean, std = moments.mean.tolist(), moments.std.tolist()
        for variate, bulk in enumerate(bulks):
            if bulk is not None and histogram.far_values(variate, bulk) is not None:
                mean[variate], std[variate] = bulk.mean, bulk.std
        return ManifestModality(
            name=modality.name,
            variates=modality.variates,
            unit=modality.unit,
            rate_hz=modality.rate_hz,
            steps=modality.steps,
            mean=mean,
            std=std,
            always=modality.always,
        )

    def _shared(self, splits: Sequence[str]) -> Iterator[SharedPeople]:
        for first, second in combinations(splits, 2):
            people = self.people[first] & self.people[second]
            if people:
                yield SharedPeople(splits=[first, second], people=len(people), some=sorted(people)[:_SOME])


def _outliers_of(split: str, modality: str | None, variate: int, far: FarValues) -> Outliers:
    return Outliers(
        split=split,
        modality=modality,
        variate=variate,
        samples=far.windows,
        values=far.numbers,
        largest=far.largest,
    )


def warning_lines(
    manifest: Manifest, splits: Sequence[str] | None = None, modalities: Sequence[str] | None = None
) -> list[str]:
    """Warnings about a data set, one line each.

    Only about these splits (the first is the training split) and modalities; None: all of them.
    """
    splits = list(manifest.splits) if splits is None else splits
    names = [m.name for m in manifest.modalities] if modalities is None else modalities
    lines, outliers = [], defaultdict(list)
    train = manifest.splits.get(TRAIN)
    source = manifest.statistics_of or (TRAIN if train and train.samples else splits[0])
    if source != splits[0]:
        lines.append(f"means and standard deviations are of split '{source}', not '{splits[0]}'")
    for entry in manifest.outliers:
        if entry.split in splits and entry.modality is None:
            which = f"targets ({manifest.targets[entry.variate]})" if manifest.targets else "targets"
            lines.append(
                f"{which} of {_counted(entry.samples, 'sample')} of split '{entry.split}' lie far from all others, up "
                f"to {entry.largest:.6g}, and dominate the loss; leave out samples that have no target"
            )
        elif entry.split in splits and entry.modality in names:
            outliers[entry.split, entry.modality].append(entry)
    lines += list(_unknown_targets(manifest, splits))
    for (split, name), group in outliers.items():
        worst = max(group, key=lambda entry: abs(entry.largest))
        more = f", and {len(group) - 1} more of its variates" if len(group) > 1 else ""
        lines.append(
            f"{name}, variate {worst.variate}{more}: {_counted(worst.values, 'value')} in "
            f"{_counted(worst.samples, 'sample')} of split '{split}' lie far from all others, up to "
            f"{worst.largest:.6g}; mean and std leave them out. Where they stand for 'no value', pack NaN instead"
        )
    for shared in manifest.shared_people:
        if set(shared.splits) <= set(splits):
            more = ", ..." if shared.people > len(shared.some) else ""
            people = f"{shared.people:,} {'person has' if shared.people == 1 else 'people have'}"
            lines.append(
                f"{people} samples in both '{shared.splits[0]}' and '{shared.splits[1]}' "
                f"({', '.join(shared.some)}{more}): results there say little about new people"
            )
    return lines


def _unknown_targets(manifest: Manifest, splits: Sequence[str]) -> Iterator[str]:
    """A line for each split that has samples with an unknown target."""
    what = "sample" if manifest.label_steps == 1 else "labelled part"
    for name in splits:
        split = manifest.splits.get(name)
        if split is None or split.targets is None:
            continue
        labels = split.samples if split.labelled is None else split.labelled
        counts = zip(manifest.targets, (labels - target.known for target in split.targets), strict=True)
        lacking = [f"{target} in {count:,}" for target, count in counts if count]
        if lacking:
            named = ", ".join(lacking[:_SOME]) + (", ..." if len(lacking) > _SOME else "")
            yield (
                f"unknown targets in the {_counted(labels, what)} of split '{name}': {named}; they take no "
                "part in loss and metrics"
            )


def _counted(count: int, word: str) -> str:
    return f"{count:,} {word}{'' if count == 1 else 's'}"
