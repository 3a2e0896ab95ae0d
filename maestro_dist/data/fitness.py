"""Whether a data set's splits are fit for a run, as far as its manifest tells: before the run takes any worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from maestro_dist.config.schema import Config, DataConfig
from maestro_dist.data.findings import said
from maestro_dist.data.manifest import Manifest
from maestro_dist.errors import ConfigError

_USES = {
    "train": "not learned",
    "validation": "not looked at when weights are chosen",
    "test": "not tested",
}
_SOME = 5  # names that stand for all


def check_splits(config: DataConfig, manifest: Manifest, *, begun: bool = False) -> None:
    """Raise `ConfigError` where a split is not there or empty, or where choices would be made on the test split.

    A run that has `begun` goes on, whatever choices it makes.
    """
    for key in _USES:
        try:
            manifest.split(getattr(config, key))
        except ConfigError as error:
            having = [f"{name} ({split.samples:,})" for name, split in manifest.splits.items() if split.samples]
            raise ConfigError(f"data.{key}: {error}; splits with samples: {', '.join(having) or 'none'}") from error
    if config.validation == config.test and not begun:
        raise ConfigError(
            f"data.validation and data.test are both '{config.test}': weights would be chosen by what they are tested "
            "on; use two splits"
        )


def check_metric(
    config: DataConfig, manifest: Manifest, metric: str, defined: Callable[[str, Sequence[int]], bool]
) -> None:
    """Raise `ConfigError` where the metric that chooses the weights cannot be computed on the validation split.

    `defined` tells this of a metric and the samples of each class.
    """
    counts = manifest.split(config.validation).class_counts
    if not defined(metric, counts):
        having = ", ".join(f"{name} {n:,}" for name, n in zip(manifest.classes, counts, strict=True) if n)
        raise ConfigError(
            f"evaluation.metric={metric}: it needs samples of two classes or more, and data.validation="
            f"{config.validation} has {having} and no other; use another metric (accuracy), or another split"
        )


def warnings_of(config: Config, manifest: Manifest) -> Iterator[str]:
    """What a person should know of the data before a run, a line each."""
    data = config.data
    if data.validation == data.test:
        yield f"data.validation and data.test are both '{data.test}': weights are chosen by what they are tested on"
    for key in ("validation", "test"):
        if getattr(data, key) == data.train:
            yield (
                f"data.train and data.{key} are both '{data.train}': what is measured there says nothing about samples "
                "never seen"
            )
    yield from said(manifest, [getattr(data, key) for key in _USES], [m.name for m in manifest.select(data.modalities)])
    if manifest.task != "classification" or config.task.kind == "pretrain":
        return
    for key, so in _USES.items():
        split = getattr(data, key)
        absent = [name for name, n in zip(manifest.classes, manifest.split(split).class_counts, strict=True) if not n]
        if absent:
            named = ", ".join(f"'{name}'" for name in absent[:_SOME]) + (", ..." if len(absent) > _SOME else "")
            what = f"class {named} has" if len(absent) == 1 else f"{len(absent):,} classes ({named}) have"
            yield f"{what} no sample in split '{split}' (data.{key}): {so}"
