"""A suite as its YAML file has it: data sets, models, ablations. The docstring under a field is its help text."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from maestro_dist.config.schema import SourceConfig
from maestro_dist.config.sections import NonNegativeInt, PositiveFloat, PositiveInt, Share

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$", max_length=40)]
Metric = Literal["accuracy", "macro_f1", "auroc", "auprc", "loss"]
Seeds = Annotated[list[int], Field(min_length=1)]


class SuitePart(BaseModel):
    """Base of all parts: frozen, unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class DataSet(SuitePart):
    """One data set."""

    url: str
    """Folder or URL of its manifest; `{fold}` stands for the number of the fold."""
    source: SourceConfig | None = None
    """Raw files, packed to `url` where there is no manifest yet; `{fold}` in an option as in `url`."""
    config: str | None = None
    """Configuration file of MAESTRO on it, relative to the repository."""
    folds: PositiveInt | None = None
    """Number of folds, each packed to its own URL; null: one fixed split."""
    metrics: Annotated[list[Metric], Field(min_length=1)]
    """Metrics of its tables; pictures and ablations use the first."""

    @model_validator(mode="after")
    def _folds_have_urls(self) -> DataSet:
        if (self.folds is not None) != ("{fold}" in self.url):
            raise ValueError("url: it contains {fold} where there are folds, and only there")
        return self


class Variant(SuitePart):
    """What is different for a model on one data set."""

    set: list[str] = []
    """More overrides."""
    seeds: Seeds | None = None
    """Seeds; by default those of the model."""
    minutes: PositiveFloat | None = None
    """Minutes of a cell; by default those of the model."""


class Model(SuitePart):
    """One model on some data sets."""

    kind: Literal["maestro", "minirocket", "lightgbm"] = "maestro"
    """A training run, or a baseline."""
    label: str = ""
    """Its name in tables; by default its key."""
    config: str | None = None
    """Configuration file; by default that of the data set (a baseline needs none)."""
    set: list[str] = []
    """Overrides `section.key=value`; for a baseline also `baseline.key=value`. `{run:MODEL}` is the folder of that
    model's run on the same data set, fold and seed, which runs first; `{run:MODEL+1000}` is its run whose seed is 1,000
    higher."""
    seeds: Seeds | None = None
    """Seeds; by default those of the suite."""
    minutes: PositiveFloat = 10.0
    """Estimated minutes of a cell on one core, to divide the cells into stages."""
    data: Annotated[dict[str, Variant], Field(min_length=1)]
    """Data sets, each with what is different there."""


class Ablation(SuitePart):
    """A model with a change, compared with that model on its first seed."""

    name: Name
    """Its name in the names of cells."""
    label: str
    """What is changed, for the table."""
    set: Annotated[list[str], Field(min_length=1)]
    """Overrides that make the change."""
    of: Annotated[dict[str, str], Field(min_length=1)]
    """The model that is changed, for each data set."""
    minutes: PositiveFloat | None = None
    """Minutes of a cell; by default those of the model."""


class Suite(SuitePart):
    """The whole comparison."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "suite"
    """Heading of the report, and by default the name of the MLflow experiment."""
    about: str = ""
    """Text under the heading."""
    storage: str = "runs/suite"
    """Folder or URL of the cells' runs."""
    results: str | None = None
    """Folder or URL of the report, and of one small file for each data set with all that reports need of its finished
    cells. A cell in there needs no run. By default nothing is kept, and the report goes to `storage`."""
    tracking_uri: str | None = None
    """MLflow; by default SQLite in `storage` (in `runs/` where `storage` is remote)."""
    experiment: str | None = None
    """MLflow experiment of all cells; by default the suite's name."""
    rates: Annotated[list[Share], Field(min_length=1)] = [0.0, 0.1, 0.2, 0.3, 0.4]
    """Missing rates of the test; ablations are tested at the smallest and the largest."""
    draws: Annotated[list[NonNegativeInt], Field(min_length=1)] = [0, 1, 2]
    """Mask draws at each rate."""
    seeds: Seeds = [2711, 2712, 2713]
    """Seeds of models that name none."""
    resamples: PositiveInt = 1000
    """Bootstrap resamples of the test subjects."""
    permutations: PositiveInt = 999
    """Permutations of the expert test."""
    stage_minutes: PositiveFloat = 100.0
    """Longest stage, by the cells' `minutes`."""
    defaults: list[str] = []
    """Overrides of all MAESTRO models, before their own."""
    data: Annotated[dict[Name, DataSet], Field(min_length=1)]
    """Data sets by name."""
    models: Annotated[dict[Name, Model], Field(min_length=1)]
    """Models by name."""
    ablations: list[Ablation] = []
    """Single changes, whose effect is measured."""

    @property
    def ends(self) -> list[float]:
        """The smallest and the largest missing rate."""
        return sorted({min(self.rates), max(self.rates)})
