"""Checks of the splits of a data set, from its manifest, before a run starts any worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from maestro_dist.config.schema import Config, DataConfig
from maestro_dist.data.findings import warning_lines
from maestro_dist.data.manifest import Manifest
from maestro_dist.errors import ConfigError

_USES = {
    "train": "not learned",
    "validation": "not considered when the best weights are chosen",
    "test": "not tested",
}
_TEST_ONLY = (
    "; this data set is only for tests: evaluate a trained model on it (`python -m maestro_dist.evaluate RUN --data "
    "URL`), or divide it (data.split.by=subject)"
)
_SOME = 5  # names that are listed as examples


def check_splits(config: DataConfig, manifest: Manifest, *, begun: bool = False) -> None:
    """Check the names of the splits. `begun`: the run continues, so one split for validation and test is accepted.

    Raises:
        ConfigError: a split does not exist or is empty, or validation and test are the same split.
    """
    for key in _USES:
        try:
            manifest.split(getattr(config, key))
        except ConfigError as error:
            filled = [f"{name} ({split.samples:,})" for name, split in manifest.splits.items() if split.samples]
            problem = f"data.{key}: {error}; splits with samples: {', '.join(filled) or 'none'}"
            hint = _TEST_ONLY if _is_test_only(manifest) else _hint_of_few(manifest) if key == "train" else ""
            raise ConfigError(problem + hint) from error
    if config.validation == config.test and not begun:
        raise ConfigError(
            f"data.validation and data.test are both '{config.test}': the best weights would be chosen on the "
            "test data; use two splits"
        )


def _hint_of_few(manifest: Manifest) -> str:
    """Advice for a training split without samples, if the run divided the data by shares."""
    made = manifest.cut or manifest.divided
    kept = {"subject": "people", "group": "groups", "recording": "recordings"}.get(made.split.by if made else "")
    if made is None or kept is None or made.split.folds is not None:
        return ""
    return (
        f"; data.split.by={made.split.by} gives test and validation one each at least, so of one or two {kept} none is "
        "left to train on: divide each recording (data.split.by=time data.split.allow_shared_people=true), or go "
        "without a split (data.split.validation=0)"
    )


def _is_test_only(manifest: Manifest) -> bool:
    """Whether the data set was packed with the split test only."""
    if manifest.divided is not None or (manifest.cut is not None and manifest.cut.split.by != "given"):
        return False
    return [name for name, split in manifest.splits.items() if split.samples] == ["test"]


def check_metric(
    config: DataConfig, manifest: Manifest, metric: str, defined: Callable[[str, Sequence[int]], bool]
) -> None:
    """Check that the metric that chooses the best weights can be computed on the validation split.

    `defined(metric, class_counts)` says whether a metric can be computed. That of one target (`mae.systolic`) needs a
    sample in which the target is known.

    Raises:
        ConfigError: the metric cannot be computed.
    """
    split = manifest.split(config.validation)
    target = metric.partition(".")[2]
    if target and split.targets and split.targets[manifest.targets.index(target)].known == 0:
        raise ConfigError(
            f"evaluation.metric={metric}: no sample of data.validation={config.validation} has a known {target}; use "
            "another metric (loss), or another split"
        )
    counts = split.class_counts
    if not defined(metric, counts):
        classes = ", ".join(f"{name} {n:,}" for name, n in zip(manifest.classes, counts, strict=True) if n)
        raise ConfigError(
            f"evaluation.metric={metric}: it needs samples of two classes or more, but data.validation="
            f"{config.validation} has {classes} only; use another metric (accuracy), or another split"
        )


def split_warnings(config: Config, manifest: Manifest) -> Iterator[str]:
    """Warnings about the data before a run, one line each."""
    data = config.data
    if data.validation == data.test:
        yield f"data.validation and data.test are both '{data.test}': the best weights are chosen on the test data"
    for key in ("validation", "test"):
        if getattr(data, key) == data.train:
            yield (
                f"data.train and data.{key} are both '{data.train}': the results there say nothing about new samples"
            )
    yield from warning_lines(
        manifest, [getattr(data, key) for key in _USES], [m.name for m in manifest.select(data.modalities)]
    )
    if not manifest.classes or config.task.kind == "pretrain":
        return
    for key, effect in _USES.items():
        split = getattr(data, key)
        absent = [name for name, n in zip(manifest.classes, manifest.split(split).class_counts, strict=True) if not n]
        if absent:
            named = ", ".join(f"'{name}'" for name in absent[:_SOME]) + (", ..." if len(absent) > _SOME else "")
            what = f"class {named} has" if len(absent) == 1 else f"{len(absent):,} classes ({named}) have"
            yield f"{what} no sample in split '{split}' (data.{key}): {effect}"
