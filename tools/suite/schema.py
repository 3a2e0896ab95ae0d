"""A suite as its YAML file says: data sets, entries, ablations, figures. The docstring under a field is its help."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from maestro_dist.config.schema import SourceConfig
from maestro_dist.config.sections import NonNegativeInt, PositiveFloat, PositiveInt, Share

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$", max_length=40)]
Metric = Literal["accuracy", "macro_f1", "auroc", "auprc", "loss"]
AtLeastOne = Field(min_length=1)


class Part(BaseModel):
    """Base of all parts: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class DataSet(Part):
    """One data set."""

    name: Name
    """Its name in tables and in the names of cells."""
    url: str
    """Folder or URL of its manifest; `{fold}` stands for the number of the fold."""
    source: SourceConfig | None = None
    """Raw files that are packed there where there is no manifest yet; `{fold}` in an option as in `url`."""
    folds: PositiveInt | None = None
    """Number of folds, each packed by itself; none: one fixed split."""
    metrics: Annotated[list[Metric], AtLeastOne]
    """Metrics of its tables; the first is the one of figures, pictures and ablations."""

    @model_validator(mode="after")
    def _folds_have_places(self) -> DataSet:
        if (self.folds is not None) != ("{fold}" in self.url):
            raise ValueError(f"url: {self.url!r} has {{fold}} in it where there are folds, and only there")
        return self


class Entry(Part):
    """One model on some data sets."""

    name: Name
    """Its name in tables. Entries of one name are one model whose settings differ by data set."""
    kind: Literal["maestro", "minirocket", "lightgbm"]
    """What is run: a training run, or a baseline."""
    label: str | None = None
    """How tables call it; by default its name."""
    config: str | None = None
    """Configuration file, relative to the repository; a baseline can do without."""
    set: list[str] = []
    """Overrides, `section.key=value`; of a baseline also `baseline.key=value`. `{run:ENTRY}` in one is the place of
    that entry's run on the same data set, fold and seed, which is then run first: `run.init_from={run:pretrain}`;
    `{run:ENTRY+1000}` is the place of the one whose seed is 1,000 more."""
    data: Annotated[list[str], AtLeastOne]
    """Data sets."""
    folds: list[NonNegativeInt] | None = None
    """Folds, where a data set has any; by default all."""
    seeds: Annotated[list[int], AtLeastOne] | None = None
    """Seeds; by default those of the suite."""
    minutes: PositiveFloat = 10.0
    """How long a cell takes, about: cells are cut into stages by it."""

    @model_validator(mode="after")
    def _maestro_has_a_configuration(self) -> Entry:
        if self.kind == "maestro" and self.config is None:
            raise ValueError("config: a maestro entry needs a configuration file")
        return self


class Ablation(Part):
    """An entry with something changed, compared with what it was made from."""

    name: Name
    """Its name in tables."""
    of: Name
    """The entry that it is compared with: the same configuration and overrides, but for `set`."""
    label: str | None = None
    """What was changed, for people; by default its name."""
    set: Annotated[list[str], AtLeastOne]
    """Overrides that change it; those that leave all as it is are refused."""
    data: list[str] | None = None
    """Data sets; by default those of the entry."""
    folds: list[NonNegativeInt] | None = None
    """Folds; by default those of the entry."""
    seeds: Annotated[list[int], AtLeastOne] | None = None
    """Seeds; by default the first of the entry's."""
    minutes: PositiveFloat | None = None
    """How long a cell takes, about; by default as the entry."""


class Value(Part):
    """A number taken from the results."""

    entry: Name | Annotated[list[Name], AtLeastOne]
    """Whose; of several, the best one's."""
    data: Name
    """On which data set."""
    metric: Metric | None = None
    """Which metric; by default the data set's first."""
    missing: Share = 0.0
    """At which missing rate."""
    of: Literal["mean", "ensemble", "spread", "drop", "expert_p"] = "mean"
    """mean: over seeds, folds and draws; ensemble: of the seeds' averaged probabilities; spread: standard deviation
    over the seeds; drop: what the mean loses from complete to `missing`; expert_p: that experts answer to what is
    missing by chance, the largest p of all runs (1 where a run has no experts)."""
    within: PositiveFloat | None = None
    """Of several entries' drops (`over` alone), the least among those whose complete figure lies within this of the
    complete figure of what is compared with it. That has to lose less; where there is no such entry, nothing is to be
    reached."""

    @model_validator(mode="after")
    def _experts_are_of_one_entry(self) -> Value:
        if self.of == "expert_p" and not isinstance(self.entry, str):
            raise ValueError("of: expert_p is of one entry")
        if self.within is not None and self.of != "drop":
            raise ValueError("within: chooses among drops; it needs of: drop")
        return self


class Figure(Part):
    """A figure that is reached or not."""

    name: str
    """How tables call it."""
    value: Value | None = None
    """The figure."""
    count: Annotated[list[str], AtLeastOne] | None = None
    """In place of `value`: names of other figures, of which those are counted that are reached."""
    minus: Value | None = None
    """Taken away from it."""
    reach: float | None = None
    """What it should reach."""
    over: Value | None = None
    """What it should reach, as another result, `by` more."""
    by: float = 0.0
    """How much more than `over`."""
    sense: Literal["at least", "at most"] = "at least"
    """On which side of what is to be reached it should lie."""
    aim: float | None = None
    """What would be better still; shown beside it, never counted."""
    aim_share: PositiveFloat | None = None
    """The aim as a share of what is to be reached: .5 is half of it."""
    why: str | None = None
    """Why it is not reached, for people; shown only where it is not."""

    @model_validator(mode="after")
    def _one_reach(self) -> Figure:
        if self.reach is not None and self.over is not None:
            raise ValueError("reach: give a number, or over (and by), not both")
        if self.by and self.over is None:
            raise ValueError("by: there is no over that it would be added to")
        if self.aim is not None and self.aim_share is not None:
            raise ValueError("aim: give a number, or aim_share, not both")
        return self

    @model_validator(mode="after")
    def _value_or_count(self) -> Figure:
        if (self.value is None) == (self.count is None):
            raise ValueError("value: give either a value or a count of figures")
        if self.count is not None and (self.over or self.minus):
            raise ValueError("count: nothing is taken away from it, and what it should reach is a number")
        return self

    @model_validator(mode="after")
    def _drops_are_alike(self) -> Figure:
        if (self.value and self.value.within) or (self.minus and self.minus.within):
            raise ValueError("within: belongs to over")
        if self.over is None or self.over.within is None or self.value is None:
            return self
        same = ("data", "metric", "missing", "of")
        if any(getattr(self.value, key) != getattr(self.over, key) for key in same) or self.minus:
            raise ValueError(f"over.within: value and over must have the same {', '.join(same)}, and there is no minus")
        if not isinstance(self.value.entry, str) or self.sense != "at most":
            raise ValueError("over.within: value must be of one entry, and sense: at most")
        return self


class Suite(Part):
    """A whole table."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "suite"
    """Heading of the report, and by default the name of the MLflow experiment."""
    about: str = ""
    """Lines under the heading."""
    storage: str = "runs/suite"
    """Folder or URL where the cells' runs lie."""
    keep: str | None = None
    """Folder or URL of small copies of the results, which reports need and nothing else; a cell of which one with the
    same settings is there is done. By default none are kept."""
    tracking_uri: str | None = None
    """MLflow; by default SQLite in `storage` (in `runs/` where that is remote)."""
    experiment: str | None = None
    """MLflow experiment of all cells; by default the suite's name."""
    rates: Annotated[list[Share], AtLeastOne] = [0.0, 0.1, 0.2, 0.3, 0.4]
    """Missing rates of the test; ablations are tested at the smallest and the largest."""
    draws: Annotated[list[NonNegativeInt], AtLeastOne] = [0, 1, 2]
    """Mask draws at each rate."""
    seeds: Annotated[list[int], AtLeastOne] = [2711, 2712, 2713]
    """Seeds of the entries that name none."""
    resamples: PositiveInt = 1000
    """Resamples of the test subjects behind the intervals."""
    permutations: PositiveInt = 999
    """Permuted controls of the experts' mutual information with the missing set."""
    stage_minutes: PositiveFloat = 100.0
    """Longest stage, by the cells' `minutes`."""
    data: Annotated[list[DataSet], AtLeastOne]
    """Data sets."""
    entries: Annotated[list[Entry], AtLeastOne]
    """Models."""
    ablations: list[Ablation] = []
    """What single parts are worth."""
    figures: list[Figure] = []
    """What is to be reached."""
