"""Entries of a manifest: their base class, and what was found in the data."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from maestro_dist.config.sections import NonNegativeInt

Name = Annotated[str, Field(pattern=r"^[a-z0-9_]+$", max_length=40)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class ManifestEntry(BaseModel):
    """Base class of all entries: frozen, unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Outliers(ManifestEntry):
    """Values of one variate (numbered from 0) that are very far from all others in a split.

    samples, values  how many samples contain such values, and how many values there are
    largest          the value with the largest magnitude
    modality         None: the values are targets, `variate` is the number of the target. The mean and std of a modality
                     exclude outliers; the mean and std of the target include them
    """

    split: str
    modality: Name | None
    variate: NonNegativeInt
    samples: NonNegativeInt
    values: NonNegativeInt
    largest: Finite


class SharedPeople(ManifestEntry):
    """How many people have samples in both of two splits, with some examples."""

    splits: Annotated[list[str], Field(min_length=2, max_length=2)]
    people: Annotated[int, Field(ge=1)]
    some: list[str]
