"""The manifest of several data sets as one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from maestro_dist.config.schema import DataConfig
from maestro_dist.data.manifest import Manifest, ManifestModality, ManifestSplit, Shard
from maestro_dist.data.manifest_made import MixedPart
from maestro_dist.data.moments import RunningMoments
from maestro_dist.data.recordings.cut_data import load_set
from maestro_dist.data.target_numbers import TargetStatistics, statistics_of
from maestro_dist.errors import ConfigError, DataError

_KEPT = 4
_known: OrderedDict[str, tuple[tuple[str, Manifest], ...]] = OrderedDict()


def mixed_manifest(config: DataConfig, *, expected: bool = False) -> Manifest:
    """The manifest of `data.sources`. `expected`: as for `load_set`.

    Its modalities are those of all. A mean or deviation is that of samples drawn as the run draws them: by the weights.

    Raises:
        ConfigError: two data sets do not fit each other; the message names both.
        DataError, StorageError: as `load_set` raises them.
    """
    configs = [config.model_copy(update={"url": source.url, "sources": []}) for source in config.sources]
    parts = tuple((own.url, load_set(own, expected=expected)) for own in configs)
    manifests = [manifest for _, manifest in parts]
    first = manifests[0]
    for number, manifest in enumerate(manifests[1:], 1):
        _check_alike(first, manifest, f"data.sources: {first.name!r} and {manifest.name!r} (number {number})")
    given = [source.weight for source in config.sources]
    if any(weight is None for weight in given) and any(weight is not None for weight in given):
        raise ConfigError("data.sources: give each data set a weight, or none of them")
    sizes = [_count(manifest, config.train) for manifest in manifests]
    weights = [float(size if weight is None else weight) for weight, size in zip(given, sizes, strict=True)]
    names = list(dict.fromkeys(name for manifest in manifests for name in manifest.splits))
    made = first.model_copy(
        update={
            "name": " + ".join(manifest.name for manifest in manifests),
            "recording": all(manifest.recording for manifest in manifests),
            "modalities": _modalities(manifests, weights),
            "splits": {name: _split(manifests, name) for name in names},
            "recordings": None,
            "cut": None,
            "divided": None,
            "outliers": [],
            "shared_people": [],
            "mixture": [
                MixedPart(name=manifest.name, fingerprint=manifest.fingerprint(), weight=weight)
                for manifest, weight in zip(manifests, weights, strict=True)
            ],
        }
    )
    _remember(config, parts)
    return made


def places_of(config: DataConfig, manifest: Manifest) -> tuple[tuple[str, Manifest], ...]:
    """URL and manifest of the data set, or of each of several."""
    return ((config.url, manifest),) if manifest.mixture is None else known_parts(config, manifest)


def known_parts(config: DataConfig, manifest: Manifest) -> tuple[tuple[str, Manifest], ...]:
    """URL and manifest of each data set of a mixture; read again in a process that does not know them.

    Raises:
        DataError: a data set is not the one with which the run started.
    """
    key = _key(config)
    if key not in _known:
        mixed_manifest(config)
    parts = _known[key]
    assert manifest.mixture is not None
    for (url, part), entry in zip(parts, manifest.mixture, strict=True):
        if part.fingerprint() != entry.fingerprint:
            raise DataError(f"data.sources: {url} holds other data than {entry.name!r}, with which the run started")
    return parts


def _remember(config: DataConfig, parts: tuple[tuple[str, Manifest], ...]) -> None:
    _known[_key(config)] = parts
    while len(_known) > _KEPT:
        _known.popitem(last=False)


def _key(config: DataConfig) -> str:
    return config.model_dump_json(include={"sources", "window", "split"})


def _count(manifest: Manifest, split: str) -> int:
    if split not in manifest.splits or not manifest.splits[split].samples:
        raise ConfigError(f"data.sources: {manifest.name!r} has no samples in split {split!r} (data.train)")
    return manifest.splits[split].samples


def _check_alike(one: Manifest, other: Manifest, where: str) -> None:
    """Raise `ConfigError` if two data sets cannot be one."""
    if one.task != other.task or one.classes != other.classes:
        raise ConfigError(
            f"{where} are for other tasks or classes ({one.task}, {', '.join(one.classes[:5])}; {other.task}, "
            f"{', '.join(other.classes[:5])}); for pre-training pack them with task none"
        )
    if one.targets != other.targets:
        named = [", ".join(manifest.targets) or "one number" for manifest in (one, other)]
        raise ConfigError(f"{where} have other targets ({named[0]}; {named[1]}); pack them alike")
    if (one.symbols is None) != (other.symbols is None) or one.symbols != other.symbols:
        raise ConfigError(f"{where} have other symbols; pack them alike")
    if one.label_steps > 1 or other.label_steps > 1:
        raise ConfigError(f"{where}: labels over time (window.label_every_s) are for one data set only; leave it out")
    if one.window_s != other.window_s:
        raise ConfigError(
            f"{where} have windows of {one.window_s:g} s and {other.window_s:g} s; choose one with "
            "data.window.length_s (recordings), or pack them alike"
        )
    of = {modality.name: modality for modality in one.modalities}
    for modality in other.modalities:
        known = of.get(modality.name)
        if known is None:
            continue
        for key in ("variates", "rate_hz", "steps", "unit", "always"):
            first, second = getattr(known, key), getattr(modality, key)
            if first != second:
                raise ConfigError(
                    f"{where}: {modality.name} has {key} {first!r} and {second!r}; rename it in one of them, or pack "
                    "them alike"
                )


def _modalities(manifests: Sequence[Manifest], weights: Sequence[float]) -> list[ManifestModality]:
    found: dict[str, list[tuple[float, ManifestModality]]] = {}
    for manifest, weight in zip(manifests, weights, strict=True):
        for modality in manifest.modalities:
            found.setdefault(modality.name, []).append((weight, modality))
    return [_merged(found[name]) for name in sorted(found)]


def _merged(entries: Sequence[tuple[float, ManifestModality]]) -> ManifestModality:
    """Mean and deviation of a mixture of distributions."""
    weights = np.array([weight for weight, _ in entries])
    share = (weights / weights.sum())[:, None]
    means = np.array([modality.mean for _, modality in entries])
    stds = np.array([modality.std for _, modality in entries])
    mean = (share * means).sum(0)
    variance = (share * (stds**2 + (means - mean) ** 2)).sum(0)
    if len(entries) == 1:
        return entries[0][1]
    return entries[0][1].model_copy(update={"mean": mean.tolist(), "std": np.sqrt(variance).tolist()})


def _split(manifests: Sequence[Manifest], name: str) -> ManifestSplit:
    shards: list[Shard] = []
    splits = [manifest.splits.get(name) for manifest in manifests]
    for number, split in enumerate(splits):
        for shard in split.shards if split else []:
            paths = {key: f"{number}/{getattr(shard, key)}" for key in ("path", "index")}
            shards.append(shard.model_copy(update=paths))
    there = [split for split in splits if split is not None and split.samples]
    counts = [split.class_counts for split in there if split.class_counts]
    targets = [(split.samples, split.target_mean, split.target_std) for split in there]
    mean = std = None
    if there and all(m is not None and s is not None for _, m, s in targets):
        numbers = np.array(targets, dtype=np.float64)
        share = numbers[:, 0] / numbers[:, 0].sum()
        mean = float((share * numbers[:, 1]).sum())
        std = float(np.sqrt((share * (numbers[:, 2] ** 2 + (numbers[:, 1] - mean) ** 2)).sum()))
    return ManifestSplit(
        shards=shards,
        samples=sum(split.samples for split in there),
        class_counts=np.sum(counts, axis=0).tolist() if counts else ([0] * len(manifests[0].classes)),
        target_mean=mean,
        target_std=std,
        targets=_targets(there, len(manifests[0].targets)),
    )


def _targets(splits: Sequence[ManifestSplit], targets: int) -> list[TargetStatistics] | None:
    """Statistics of several targets over all splits; None for one target."""
    if not targets:
        return None
    total = RunningMoments(targets)
    for split in splits:
        count, mean, std = np.array([[t.known, t.mean, t.std] for t in split.targets or ()]).reshape(-1, 3).T
        total.merge(RunningMoments.of(count, mean, std**2 * count))
    return statistics_of(total)
