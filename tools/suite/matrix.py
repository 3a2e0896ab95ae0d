"""From a suite to its cells: one run for each (model, data set, fold, seed), with the command that starts it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.baselines.settings import load_settings
from pydantic import ValidationError

from maestro_dist.config.check import check
from maestro_dist.config.coerce import coerce
from maestro_dist.config.identity import run_identity
from maestro_dist.config.load import apply_override, load_config, read_tree
from maestro_dist.config.paths import absolute_path
from maestro_dist.config.schema import SourceConfig
from maestro_dist.data.storage import Storage
from maestro_dist.errors import ConfigError
from maestro_dist.tracking.run import tracking_uri
from suite.schema import Suite

ROOT = Path(__file__).parents[2]
_RUN = re.compile(r"\{run:(([^{}+]*)(?:\+(\d+))?)\}")  # {run:MODEL+1000}: "MODEL+1000", "MODEL", "1000"


@dataclass(frozen=True)
class Cell:
    """One run."""

    name: str  # of the run; it holds data set, fold, model and seed
    model: str  # a model or ablation
    data: str
    fold: int | None
    seed: int
    url: str
    source: SourceConfig | None
    command: tuple[str, ...]  # what follows `python -m`
    settings: dict[str, Any]  # what decides its result, plain JSON; a finished cell with other settings is another cell
    cpus: int  # cores that it uses
    needs: dict[str, str]  # names of cells that must finish before, by their `{run:...}`, such as "MODEL+1000"
    scored: bool  # whether its test gives scores; a pre-training's does not


@dataclass(frozen=True)
class Plan:
    """A suite and its cells in the order in which they run. `storage`, `tracking` and `results` are absolute."""

    suite: Suite
    cells: tuple[Cell, ...]
    storage: str
    tracking: str
    results: str | None

    def cells_of(self, model: str, data: str) -> list[Cell]:
        """The cells of a model or ablation on a data set."""
        return [cell for cell in self.cells if (cell.model, cell.data) == (model, data)]

    def label(self, model: str) -> str:
        """A model's name in tables; an ablation's is its own name."""
        found = self.suite.models.get(model)
        return found.label or model if found else model


class _Row(NamedTuple):
    """A model or ablation on one data set."""

    name: str
    kind: str
    data: str
    changes: list[str]
    seeds: list[int]
    rates: list[float]


def load_plan(path: str, overrides: Sequence[str] = ()) -> Plan:
    """Read a suite, apply `key=value` overrides, and check it with the configurations of its cells.

    Raises:
        ConfigError: something is wrong; the message names the file and the key.
    """
    tree = read_tree(path)
    for override in overrides:
        apply_override(tree, override)
    try:
        return make_plan(Suite.model_validate(coerce(tree, Suite)))
    except ValidationError as error:
        found = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"{path}: {'; '.join(found)}") from None
    except (ConfigError, KeyError) as error:
        missing = "there is no model or data set " if isinstance(error, KeyError) else ""
        raise ConfigError(f"{path}: {missing}{error}") from None


def make_plan(suite: Suite) -> Plan:
    """The cells of a suite. Raises ConfigError, and KeyError where a name does not exist."""
    storage = absolute_path(suite.storage, "storage")
    plan = Plan(
        suite, (), storage, tracking_uri(None, storage), suite.results and absolute_path(suite.results, "results")
    )
    cells: dict[str, Cell] = {}
    for row in _rows(suite):
        folds = suite.data[row.data].folds
        for fold in [None] if folds is None else range(folds):
            for seed in row.seeds:
                try:
                    cell = _cell(plan, row, fold, seed)
                except ConfigError as error:
                    raise ConfigError(f"{row.name} on {row.data}: {error}") from None
                if cell.name in cells:
                    raise ConfigError(f"{row.name} on {row.data}: two models or ablations have this name")
                cells[cell.name] = cell
    ordered: dict[str, Cell] = {}
    for cell in cells.values():
        _place(cell, cells, ordered, ())
    return replace(plan, cells=tuple(ordered.values()))


def select(cells: Sequence[Cell], only: Sequence[str]) -> list[Cell]:
    """The cells whose name matches one of the globs; all without a glob. Raises ConfigError where there is none."""
    found = [cell for cell in cells if not only or any(fnmatchcase(cell.name, glob) for glob in only)]
    if not found:
        raise ConfigError(f"no cell matches --only {' '.join(only)} (see --list)")
    return found


def _rows(suite: Suite) -> list[_Row]:
    """The rows of all models, then those of all ablations."""
    rows: dict[tuple[str, str], _Row] = {}
    for name, model in suite.models.items():
        shared = [*(suite.defaults if model.kind == "maestro" else ()), *model.set]
        for data, own in model.data.items():
            seeds = own.seeds or model.seeds or suite.seeds
            rows[name, data] = _Row(name, model.kind, data, [*shared, *own.set], seeds, suite.rates)
    ablations = []
    for ablation in suite.ablations:
        for data, model_name in ablation.of.items():
            base = rows[model_name, data]
            changes, seeds = [*base.changes, *ablation.set], base.seeds[:1]
            ablations.append(_Row(ablation.name, base.kind, data, changes, seeds, suite.extreme_rates))
    return [*rows.values(), *ablations]


def _cell(plan: Plan, row: _Row, fold: int | None, seed: int) -> Cell:
    dataset, name = plan.suite.data[row.data].of_fold(fold), _name(row.data, fold, row.name, seed)
    needs = {
        key: _name(row.data, fold, model, seed + int(more or 0))
        for key, model, more in _RUN.findall("\n".join(row.changes))
    }
    folders = {key: Storage(plan.storage).join(need).url for key, need in needs.items()}
    url = absolute_path(dataset.url, f"data.{row.data}.url")
    changes = [
        *(_RUN.sub(lambda found: folders[found[1]], text) for text in row.changes),
        f"run.name={name}",
        f"run.storage={plan.storage}",
        f"run.seed={seed}",
        f"data.url={url}",
        "data.source=null",  # it is packed before the cell runs
        f"tracking.uri={plan.tracking}",
        f"tracking.experiment={plan.suite.name}",
        f"evaluation.test_rates={row.rates}",
        f"evaluation.draws={plan.suite.draws}",
    ]
    if row.kind == "maestro":
        file = str(ROOT / (dataset.config or ""))
        command = ["maestro_dist.train", file, *changes]
        config = load_config(file, changes)
        check(config)
        deciding, baseline = run_identity(config), {}
    else:
        changes.insert(0, f"evaluation.metric={dataset.metrics[0]}")
        command = ["benchmarks.baselines", row.kind, *changes]
        config, options = load_settings(changes)
        read = ("run.seed", "data.", "evaluation.")  # the sections that it reads
        deciding = {key: value for key, value in run_identity(config).items() if key.startswith(read)}
        baseline = {f"baseline.{key}": value for key, value in options.model_dump(mode="json").items()}
    settings = json.dumps({"kind": row.kind, **deciding, **baseline})
    for key, folder in folders.items():  # a moved storage changes no setting
        settings = settings.replace(json.dumps(folder), json.dumps(f"{{run:{key}}}"))
    return Cell(
        name=name,
        model=row.name,
        data=row.data,
        fold=fold,
        seed=seed,
        url=url,
        source=dataset.source,
        command=tuple(command),
        settings=json.loads(settings),
        cpus=config.run.workers * config.run.cpus_per_worker if row.kind == "maestro" else 1,
        needs=needs,
        scored=config.task.kind != "pretrain",
    )


def _place(cell: Cell, cells: dict[str, Cell], ordered: dict[str, Cell], above: tuple[str, ...]) -> None:
    """Put a cell into `ordered` after those that it needs, whose settings become a part of its own."""
    if cell.name in above:
        raise ConfigError(f"{cell.model}: it needs itself")
    if cell.name in ordered:
        return
    settings = dict(cell.settings)
    for key, need in cell.needs.items():
        if need not in cells:
            raise ConfigError(f"{cell.model} on {cell.data}: {{run:{key}}}: there is no cell {need}")
        _place(cells[need], cells, ordered, (*above, cell.name))
        settings |= {f"{key}: {setting}": value for setting, value in ordered[need].settings.items()}
    ordered[cell.name] = replace(cell, settings=settings)


def _name(data: str, fold: int | None, model: str, seed: int) -> str:
    return ".".join([data, *([] if fold is None else [f"f{fold}"]), model, f"s{seed}"])
