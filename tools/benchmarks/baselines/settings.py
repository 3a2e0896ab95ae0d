"""Settings of a baseline: some sections of a run's configuration, and `baseline.*`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from maestro_dist.config.coerce import coerce
from maestro_dist.config.help_text import default_of
from maestro_dist.config.load import apply_override, is_file, load_config
from maestro_dist.config.paths import with_absolute_paths
from maestro_dist.config.schema import Config
from maestro_dist.config.sections import NonNegativeInt, PositiveFloat, PositiveInt, Section, Share
from maestro_dist.errors import ConfigError

_PREFIX = "baseline."


class BaselineConfig(Section):
    """One conventional model."""

    normalize: Literal["window", "recording", "dataset"] = "dataset"
    """Normalize each window by its own mean and std, or by those of its recording so far; dataset: not at all."""
    drop: Share = 0.0
    """Masked copies of the training samples lose each modality with a probability drawn from U(0, drop); 0: none."""
    copies: PositiveInt = 3
    """Number of masked copies of each training sample, where `drop` is above 0; the complete sample is used too."""
    features: PositiveInt = 9996
    """MiniRocket: number of features; each modality gets an equal share, rounded to a multiple of 84."""
    penalties: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (10, 100, 1000, 10_000, 100_000, 1_000_000)
    """MiniRocket: ridge penalties; validation chooses one."""
    trees: PositiveInt = 1000
    """LightGBM: most boosting rounds; validation chooses how many are used."""
    rate: PositiveFloat = 0.02
    """LightGBM: learning rate."""
    leaves: Annotated[tuple[Annotated[int, Field(ge=2)], ...], Field(min_length=1)] = (31,)
    """LightGBM: leaves of a tree; validation chooses among several values."""
    leaf_samples: PositiveInt = 20
    """LightGBM: fewest samples in a leaf; copies of a sample count once."""
    columns: Annotated[float, Field(gt=0.0, le=1.0)] = 0.3
    """LightGBM: share of the features for each tree."""
    rows: Annotated[float, Field(gt=0.0, le=1.0)] = 0.8
    """LightGBM: share of the samples for each tree."""
    patience: NonNegativeInt = 100
    """LightGBM: stop after this many rounds without a better validation score; 0: never."""


def load_settings(arguments: Sequence[str]) -> tuple[Config, BaselineConfig]:
    """`[CONFIG] key=value ...` -> the run's configuration and the baseline's.

    Raises:
        ConfigError: a key or value is wrong; the message names it.
    """
    own = [text for text in arguments if text.startswith(_PREFIX)]
    files = [text for text in arguments if text not in own and is_file(text)]
    if len(files) > 1:
        raise ConfigError(f"one CONFIG at most, not {', '.join(files)}")
    shared = [text for text in arguments if text not in own and text not in files]
    return with_absolute_paths(load_config(files[0] if files else None, shared)), parse_baseline(own)


def parse_baseline(overrides: Sequence[str]) -> BaselineConfig:
    """`baseline.key=value` texts -> the configuration. Raises ConfigError, which names the key."""
    tree: dict[str, Any] = {}
    for text in overrides:
        key = text.removeprefix(_PREFIX).partition("=")[0]
        if key not in BaselineConfig.model_fields:
            raise ConfigError(f"{_PREFIX}{key}: unknown key; there are {', '.join(BaselineConfig.model_fields)}")
        apply_override(tree, text)
    values = coerce(tree.get(_PREFIX.rstrip("."), {}), BaselineConfig)
    try:
        return BaselineConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{_PREFIX}{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def describe_baseline() -> str:
    """Help: every key with its default and docstring."""
    lines = []
    for name, info in BaselineConfig.model_fields.items():
        lines += [f"  {_PREFIX}{name}{default_of(info)}", f"      {info.description}"]
    return "\n".join(lines)
