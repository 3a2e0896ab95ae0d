"""A suite as its YAML file has it: data sets, models, ablations, each with its keys."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from maestro_dist.config.schema import SourceConfig

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$")]


class SuitePart(BaseModel):
    """Base of all parts: frozen, unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DataSet(SuitePart):
    """One data set. `{fold}` in `url` and `source` stands for the number of the fold."""

    url: str  # folder or URL of its manifest
    source: SourceConfig | None = None  # raw files, packed to `url` where there is no manifest yet
    config: str | None = None  # configuration file of MAESTRO on it, relative to the repository
    folds: int | None = None  # number of folds, each packed to its own URL; null: one fixed split
    metrics: list[Literal["accuracy", "macro_f1", "auroc", "auprc"]]  # pictures and ablations use the first

    def of_fold(self, fold: int | None) -> DataSet:
        """The data set with the number of a fold in place of `{fold}`."""
        return self if fold is None else self.model_validate_json(self.model_dump_json().replace("{fold}", str(fold)))


class Variant(SuitePart):
    """What is different for a model on one data set."""

    set: list[str] = []  # overrides
    seeds: list[int] | None = None  # by default those of the model, for a model those of the suite


class Model(Variant):
    """One model on some data sets.

    An override is `section.key=value`, or `baseline.key=value` for a baseline. `{run:MODEL}` in it is the folder of
    that model's run on the same data set, fold and seed, which runs first; `{run:MODEL+1000}` is its run whose seed is
    1,000 higher.
    """

    kind: Literal["maestro", "minirocket", "lightgbm"] = "maestro"  # a training run, or a baseline
    label: str = ""  # its name in tables; by default its key
    data: dict[str, Variant]  # data sets, each with what is different there: its overrides come after the model's


class Ablation(SuitePart):
    """A model with a change, compared with that model on its first seed."""

    name: Name  # in the names of cells
    label: str  # what is changed, for the table
    set: list[str]  # overrides that make the change
    of: dict[str, str]  # the model that is changed, for each data set


class Suite(SuitePart):
    """The whole comparison.

    A cell whose results are kept in `results` needs no run. Without `results` nothing is kept, and the report goes to
    `storage`.
    """

    name: str  # heading of the report, name of the MLflow experiment and of the goals
    about: str = ""  # text under the heading
    storage: str  # folder or URL of the cells' runs, and of the MLflow database (in `runs/` where it is remote)
    results: str | None = None  # folder or URL of the report, and of a file for each data set with all that it needs
    rates: list[float] = [0.0, 0.1, 0.2, 0.3, 0.4]  # missing rates; ablations use only the smallest and largest
    draws: list[int] = [0, 1, 2]  # mask draws at each rate
    seeds: list[int] = [2711, 2712, 2713]  # for models without `seeds`
    resamples: int = 1000  # bootstrap resamples of the test subjects
    permutations: int = 999  # of the expert test
    defaults: list[str] = []  # overrides of all MAESTRO models, before their own
    data: dict[Name, DataSet]  # by name
    models: dict[Name, Model]  # by name
    ablations: list[Ablation] = []  # single changes, whose effect is measured

    @property
    def extreme_rates(self) -> list[float]:
        """The smallest and the largest missing rate."""
        return sorted({min(self.rates), max(self.rates)})
