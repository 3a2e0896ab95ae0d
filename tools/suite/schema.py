"""A suite as its YAML file has it: data sets, models, ablations. The docstring under a field is its help text."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from maestro_dist.config.schema import SourceConfig

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$")]


class SuitePart(BaseModel):
    """Base of all parts: frozen, unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class DataSet(SuitePart):
    """One data set."""

    url: str
    """Folder or URL of its manifest; `{fold}` in it, and in `source`, stands for the number of the fold."""
    source: SourceConfig | None = None
    """Raw files, packed to `url` where there is no manifest yet."""
    config: str | None = None
    """Configuration file of MAESTRO on it, relative to the repository."""
    folds: int | None = None
    """Number of folds, each packed to its own URL; null: one fixed split."""
    metrics: list[Literal["accuracy", "macro_f1", "auroc", "auprc"]]
    """Metrics of its tables; pictures and ablations use the first."""

    def of_fold(self, fold: int | None) -> DataSet:
        """The data set with the number of a fold in place of `{fold}`."""
        return self if fold is None else self.model_validate_json(self.model_dump_json().replace("{fold}", str(fold)))


class Variant(SuitePart):
    """What is different for a model on one data set."""

    set: list[str] = []
    """More overrides."""
    seeds: list[int] | None = None
    """Seeds; by default those of the model."""


class Model(Variant):
    """One model on some data sets.

    An override is `section.key=value`, or `baseline.key=value` for a baseline. `{run:MODEL}` in it is the folder of
    that model's run on the same data set, fold and seed, which runs first; `{run:MODEL+1000}` is its run whose seed is
    1,000 higher. Seeds are by default those of the suite.
    """

    kind: Literal["maestro", "minirocket", "lightgbm"] = "maestro"
    """A training run, or a baseline."""
    label: str = ""
    """Its name in tables; by default its key."""
    data: dict[str, Variant]
    """Data sets, each with what is different there."""


class Ablation(SuitePart):
    """A model with a change, compared with that model on its first seed."""

    name: Name
    """Its name in the names of cells."""
    label: str
    """What is changed, for the table."""
    set: list[str]
    """Overrides that make the change."""
    of: dict[str, str]
    """The model that is changed, for each data set."""


class Suite(SuitePart):
    """The whole comparison."""

    name: str
    """Heading of the report, name of the MLflow experiment and of the goals."""
    about: str = ""
    """Text under the heading."""
    storage: str
    """Folder or URL of the cells' runs; their MLflow database is in it too (in `runs/` where it is remote)."""
    results: str | None = None
    """Folder or URL of the report, and of one small file for each data set with all that reports need of its finished
    cells. A cell in there needs no run. By default nothing is kept, and the report goes to `storage`."""
    rates: list[float] = [0.0, 0.1, 0.2, 0.3, 0.4]
    """Missing rates of the test; ablations are tested at the smallest and the largest."""
    draws: list[int] = [0, 1, 2]
    """Mask draws at each rate."""
    seeds: list[int] = [2711, 2712, 2713]
    """Seeds of models that name none."""
    resamples: int = 1000
    """Bootstrap resamples of the test subjects."""
    permutations: int = 999
    """Permutations of the expert test."""
    defaults: list[str] = []
    """Overrides of all MAESTRO models, before their own."""
    data: dict[Name, DataSet]
    """Data sets by name."""
    models: dict[Name, Model]
    """Models by name."""
    ablations: list[Ablation] = []
    """Single changes, whose effect is measured."""

    @property
    def ends(self) -> list[float]:
        """The smallest and the largest missing rate."""
        return sorted({min(self.rates), max(self.rates)})
