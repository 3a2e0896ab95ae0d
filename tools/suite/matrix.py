"""From a suite to its cells: one run for each (model, data set, fold, seed), with the command that starts it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

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
from suite.schema import Suite, Variant

ROOT = Path(__file__).parents[2]
STAGE_MINUTES = 100.0
_RUN = re.compile(r"\{run:([^{}+]*)\+?(\d*)\}")


@dataclass(frozen=True)
class Cell:
    """One run.

    model      name of its model or ablation; `name` holds model, data set, fold and seed, and is the name of the run
    command    what follows `python -m`
    settings   what decides its result (plain JSON); a finished cell with other settings is another cell
    cpus       CPU cores that it uses; `inline`: in the job's own process
    needs      names of cells that must finish before, by their `{run:...}`, such as "MODEL+1000"
    scored     whether its test gives scores; a pre-training's does not
    stage      number of its stage, from 1
    """

    name: str
    model: str
    kind: str
    data: str
    fold: int | None
    seed: int
    url: str
    command: tuple[str, ...]
    settings: dict[str, Any]
    cpus: int
    inline: bool
    minutes: float
    needs: dict[str, str]
    scored: bool
    stage: int = 0


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

    def source(self, cell: Cell) -> SourceConfig | None:
        """The raw files of a cell's data set."""
        source = self.suite.data[cell.data].source
        if source is None:
            return None
        options = {k: _filled(v, cell.fold) if isinstance(v, str) else v for k, v in source.options.items()}
        return source.model_copy(update={"options": options, "path": absolute_path(source.path, "source.path")})


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
        what = f"there is no model or data set {error}" if isinstance(error, KeyError) else error
        raise ConfigError(f"{path}: {what}") from None


def make_plan(suite: Suite) -> Plan:
    """The cells of a suite. Raises ConfigError, and KeyError where a name does not exist."""
    storage = absolute_path(suite.storage, "storage")
    tracking = absolute_path(suite.tracking_uri or tracking_uri(None, storage), "tracking_uri")
    plan = Plan(suite, (), storage, tracking, suite.results and absolute_path(suite.results, "results"))
    cells: dict[str, Cell] = {}
    for name, kind, data, row, rates in _rows(suite):
        folds = suite.data[data].folds
        for fold in [None] if folds is None else range(folds):
            for seed in row.seeds or suite.seeds:
                try:
                    cell = _cell(plan, (name, kind, data, fold, seed), row, rates)
                except ConfigError as error:
                    raise ConfigError(f"{name} on {data}: {error}") from None
                if cell.name in cells:
                    raise ConfigError(f"{name} on {data}: two models or ablations have this name")
                cells[cell.name] = cell
    done: dict[str, Cell] = {}
    for cell in cells.values():
        _place(cell, cells, done, ())
    return replace(plan, cells=tuple(_staged(done.values())))


def select(cells: Sequence[Cell], only: Sequence[str], stage: int | None) -> list[Cell]:
    """The cells of a stage whose name matches one of the globs. Raises ConfigError where there is none."""
    found = [cell for cell in cells if stage in (None, cell.stage)]
    found = [cell for cell in found if not only or any(fnmatchcase(cell.name, glob) for glob in only)]
    if not found:
        where = "" if stage is None else f" in stage {stage} of {cells[-1].stage}"
        raise ConfigError(f"no cell matches --only {' '.join(only) or '*'}{where} (see --list)")
    return found


def _rows(suite: Suite) -> Iterator[tuple[str, str, str, Variant, list[float]]]:
    """(name, kind, data set, row, missing rates) of all models, then of all ablations."""
    rows: dict[tuple[str, str], Variant] = {}
    for name, model in suite.models.items():
        for data, own in model.data.items():
            changes = [*(suite.defaults if model.kind == "maestro" else ()), *model.set, *own.set]
            minutes = own.minutes or model.minutes or 10.0
            rows[name, data] = Variant(set=changes, seeds=own.seeds or model.seeds or suite.seeds, minutes=minutes)
            yield name, model.kind, data, rows[name, data], suite.rates
    for ablation in suite.ablations:
        for data, of in ablation.of.items():
            base = rows[of, data]
            row = Variant(
                set=[*base.set, *ablation.set], seeds=(base.seeds or [])[:1], minutes=ablation.minutes or base.minutes
            )
            yield ablation.name, suite.models[of].kind, data, row, suite.ends


def _cell(plan: Plan, place: tuple[str, str, str, int | None, int], row: Variant, rates: Sequence[float]) -> Cell:
    (name, kind, data, fold, seed), suite = place, plan.suite
    dataset, own = suite.data[data], _name(data, fold, name, seed)
    needs = {
        f"{model}+{more}" if more else model: _name(data, fold, model, seed + int(more or 0))
        for text in row.set
        for model, more in _RUN.findall(text)
    }
    folders = {f"{{run:{key}}}": Storage(plan.storage).join(need).url for key, need in needs.items()}
    url = absolute_path(_filled(dataset.url, fold), f"data.{data}.url")
    common = {
        "run.name": own,
        "run.storage": plan.storage,
        "run.seed": seed,
        "data.url": url,
        "data.source": None,  # it is packed before the cell runs
        "tracking.uri": plan.tracking,
        "tracking.experiment": suite.name,
        "evaluation.test_rates": rates,
        "evaluation.draws": suite.draws,
    }
    changes = [_RUN.sub(lambda found: folders[found[0]], text) for text in row.set]
    changes += [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in common.items()]
    if kind == "maestro":
        file = str(ROOT / (dataset.config or ""))
        arguments = ["maestro_dist.train", file, *changes]
        config = load_config(file, changes)
        check(config)
        deciding, baseline = run_identity(config), {}
    else:
        changes.insert(0, f"evaluation.metric={dataset.metrics[0]}")
        arguments = ["benchmarks.baselines", kind, *changes]
        config, options = load_settings(changes)
        read = ("run.seed", "data.", "evaluation.")  # the sections that it reads
        deciding = {key: value for key, value in run_identity(config).items() if key.startswith(read)}
        baseline = {f"baseline.{key}": value for key, value in options.model_dump(mode="json").items()}
    names = {folder: name for name, folder in folders.items()}
    return Cell(
        name=own,
        model=name,
        kind=kind,
        data=data,
        fold=fold,
        seed=seed,
        url=url,
        command=tuple(arguments),
        settings={"kind": kind, **{key: _portable(value, names) for key, value in deciding.items()}, **baseline},
        cpus=config.run.workers * config.run.cpus_per_worker if kind == "maestro" else 1,
        inline=kind != "maestro" or config.run.launcher == "inline",
        minutes=row.minutes or 0.0,
        needs=needs,
        scored=config.task.kind != "pretrain",
    )


def _place(cell: Cell, cells: dict[str, Cell], done: dict[str, Cell], above: tuple[str, ...]) -> None:
    """Put a cell into `done` after those that it needs, whose settings become a part of its own."""
    if cell.name in above:
        raise ConfigError(f"{cell.model}: it needs itself")
    if cell.name in done:
        return
    inherited: dict[str, Any] = {}
    for key, name in cell.needs.items():
        if name not in cells:
            raise ConfigError(f"{cell.model} on {cell.data}: {{run:{key}}}: there is no cell {name}")
        _place(cells[name], cells, done, (*above, cell.name))
        inherited |= {f"{key}: {setting}": value for setting, value in done[name].settings.items()}
    done[cell.name] = replace(cell, settings=cell.settings | inherited)


def _staged(cells: Iterable[Cell]) -> Iterator[Cell]:
    """Cells in their order; a new stage begins where the sum of the minutes would be more than 100."""
    stage, minutes = 1, 0.0
    for cell in cells:
        if minutes and minutes + cell.minutes > STAGE_MINUTES:
            stage, minutes = stage + 1, 0.0
        minutes += cell.minutes
        yield replace(cell, stage=stage)


def _name(data: str, fold: int | None, model: str, seed: int) -> str:
    return ".".join([data, *([] if fold is None else [f"f{fold}"]), model, f"s{seed}"])


def _filled(text: str, fold: int | None) -> str:
    return text if fold is None else text.replace("{fold}", str(fold))


def _portable(value: Any, names: dict[str, str]) -> Any:
    """A value with the folders of other cells by their `{run:...}`: a moved storage changes no setting."""
    if isinstance(value, list):
        return [_portable(item, names) for item in value]
    return names.get(value, value) if isinstance(value, str) else value
