"""From a suite to its cells: one run for each (model, data set, fold, seed), with the command that starts it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from benchmarks.baselines.settings import load_settings
from pydantic import ValidationError

from maestro_dist.config.check import check
from maestro_dist.config.coerce import coerce
from maestro_dist.config.dump import flatten_config
from maestro_dist.config.identity import run_identity
from maestro_dist.config.load import apply_override, load_config, read_tree
from maestro_dist.config.paths import absolute_path, expand_home, with_absolute_paths
from maestro_dist.config.schema import Config, SourceConfig
from maestro_dist.data.storage import Storage
from maestro_dist.errors import ConfigError
from maestro_dist.tracking.run import tracking_uri
from suite.schema import Suite

ROOT = Path(__file__).parents[2]
_RUN = re.compile(r"\{run:([^{}+]*)\+?([^{}]*)\}")


@dataclass(frozen=True)
class Cell:
    """One run.

    model      name of its model or ablation; `name` holds model, data set, fold and seed, and is the name of the run
    config     its configuration file, relative to the repository; None where it has none
    arguments  what follows `python -m`
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
    config: str | None
    arguments: tuple[str, ...]
    settings: dict[str, Any]
    cpus: int
    inline: bool
    minutes: float
    needs: dict[str, str]
    scored: bool
    stage: int = 0

    @property
    def command(self) -> str:
        """The command as one types it."""
        return shlex.join(["python", "-m", *self.arguments])


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

    def sources(self, cells: Iterable[Cell]) -> dict[str, SourceConfig | None]:
        """The raw files of each URL that these cells read."""
        return {cell.url: _source(self.suite.data[cell.data].source, cell.fold) for cell in cells}


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
        found = (f"{'.'.join(map(str, e['loc']))}: {e['msg'].removeprefix('Value error, ')}" for e in error.errors())
        raise ConfigError(f"{path}: {'; '.join(dict.fromkeys(found))}") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def make_plan(suite: Suite) -> Plan:
    """The cells of a suite. Raises ConfigError."""
    storage = absolute_path(suite.storage, "storage")
    tracking = absolute_path(suite.tracking_uri or tracking_uri(None, storage), "tracking_uri")
    empty = Plan(suite, (), storage, tracking, suite.results and absolute_path(suite.results, "results"))
    cells: dict[str, Cell] = {}
    for name, data, variant, rates in _rows(suite):
        for fold in [None] if suite.data[data].folds is None else range(suite.data[data].folds or 0):
            for seed in variant.seeds or suite.seeds:
                cell = _cell(empty, name, data, fold, seed, variant, rates)
                if cell.name in cells:
                    raise ConfigError(f"{name} on {data}: two models or ablations have this name there")
                cells[cell.name] = cell
    done: dict[str, Cell] = {}
    for cell in cells.values():
        _place(cell, cells, done, ())
    _check_changes(suite, done)
    return replace(empty, cells=tuple(_staged(done.values(), suite.stage_minutes)))


def select(cells: Sequence[Cell], only: Sequence[str], stage: int | None) -> list[Cell]:
    """The cells of a stage whose name matches one of the globs.

    Raises ConfigError where a glob matches no cell, or all together match none of the stage.
    """
    for glob in only:
        if not any(fnmatchcase(cell.name, glob) for cell in cells):
            note = "; write key=value before --only" if "=" in glob else ""
            raise ConfigError(f"no cell matches --only {glob} (see --list){note}")
    found = [cell for cell in cells if stage in (None, cell.stage)]
    found = [cell for cell in found if not only or any(fnmatchcase(cell.name, glob) for glob in only)]
    if not found:
        last = max((cell.stage for cell in cells), default=0)
        raise ConfigError(f"no cell matches --only {' '.join(only) or '*'} in stage {stage} of {last} (see --list)")
    return found


@dataclass(frozen=True)
class _Row:
    """A model or ablation on one data set."""

    kind: str
    config: str | None
    set: tuple[str, ...]
    seeds: Sequence[int] | None
    minutes: float


def _rows(suite: Suite) -> Iterator[tuple[str, str, _Row, list[float]]]:
    """(name, data set, row, missing rates) of all models, then of all ablations."""
    rows: dict[tuple[str, str], _Row] = {}
    for name, model in suite.models.items():
        for data, own in model.data.items():
            if data not in suite.data:
                raise ConfigError(f"models.{name}.data: no data set {data!r}; there are {', '.join(suite.data)}")
            config = model.config or (suite.data[data].config if model.kind == "maestro" else None)
            if model.kind == "maestro" and config is None:
                raise ConfigError(f"models.{name}: give it, or data.{data}, a config")
            changes = (*(suite.defaults if model.kind == "maestro" else ()), *model.set, *own.set)
            row = _Row(model.kind, config, changes, own.seeds or model.seeds, own.minutes or model.minutes)
            rows[name, data] = row
            yield name, data, row, suite.rates
    ends = suite.rates if len(suite.rates) < 3 else suite.ends
    for ablation in suite.ablations:
        for data, of in ablation.of.items():
            base = rows.get((of, data))
            if base is None:
                raise ConfigError(f"ablations.{ablation.name}.of: no model {of!r} on {data!r}")
            seeds = (base.seeds or suite.seeds)[:1]
            minutes = ablation.minutes or base.minutes
            row = replace(base, set=(*base.set, *ablation.set), seeds=seeds, minutes=minutes)
            yield ablation.name, data, row, ends


def _cell(plan: Plan, name: str, data: str, fold: int | None, seed: int, row: _Row, rates: list[float]) -> Cell:
    suite, dataset = plan.suite, plan.suite.data[data]
    needs, places = {}, {}
    for model, more in dict.fromkeys(found for text in row.set for found in _RUN.findall(text)):
        if more and not more.isdecimal():
            raise ConfigError(f"{name}: {{run:{model}+{more}}}: {more!r} is not a number to add to the seed")
        key = f"{model}+{more}" if more else model
        needs[key] = _name(data, fold, model, seed + int(more or 0))
        places[Storage(plan.storage).join(needs[key]).url] = f"{{run:{key}}}"
    in_place = {text: place for place, text in places.items()}
    changes = [_RUN.sub(lambda found: in_place[found[0]], text) for text in row.set]
    own = _name(data, fold, name, seed)
    url = absolute_path(_filled(dataset.url, fold), f"data.{data}.url")
    common = {
        "run.name": own,
        "run.storage": plan.storage,
        "run.seed": seed,
        "data.url": url,
        "data.source": None,  # it is packed before the cell runs
        "tracking.uri": plan.tracking,
        "tracking.experiment": suite.experiment or suite.name,
        "evaluation.test_rates": rates,
        "evaluation.draws": suite.draws,
    }
    last, file = [_typed(key, value) for key, value in common.items()], _config_file(row.config)
    path = file if file is None or "://" in file else str(ROOT / file)
    baseline = {}
    try:
        if row.kind == "maestro":
            last += _absolute_places(load_config(path, [*changes, *last]))
            arguments = ["maestro_dist.train", str(file), *changes, *last]
            config = load_config(path, [*changes, *last])
            check(config)
        else:
            chosen = [f"evaluation.metric={dataset.metrics[0]}", *changes, *last]
            arguments = ["benchmarks.baselines", row.kind, *([file] if file else []), *chosen]
            config, options = load_settings([*([path] if path else []), *chosen])
            baseline = {f"baseline.{key}": value for key, value in options.model_dump(mode="json").items()}
        if not config.evaluation.predictions and config.task.kind != "pretrain":
            raise ConfigError("evaluation.predictions: false: the report needs the predictions of each sample")
    except ConfigError as error:
        raise ConfigError(f"{name} on {data}: {error}") from None
    deciding = run_identity(config)
    if row.kind != "maestro":  # the sections that it reads
        deciding = {k: v for k, v in deciding.items() if k.startswith(("run.seed", "data.", "evaluation."))}
    return Cell(
        name=own,
        model=name,
        kind=row.kind,
        data=data,
        fold=fold,
        seed=seed,
        url=url,
        config=file,
        arguments=tuple(arguments),
        settings={"kind": row.kind, **{k: _portable(v, places) for k, v in deciding.items()}, **baseline},
        cpus=config.run.workers * config.run.cpus_per_worker if row.kind == "maestro" else 1,
        inline=row.kind != "maestro" or config.run.launcher == "inline",
        minutes=row.minutes,
        needs=needs,
        scored=config.task.kind != "pretrain",
    )


def _place(cell: Cell, cells: dict[str, Cell], done: dict[str, Cell], above: tuple[str, ...]) -> None:
    """Put a cell into `done` after those that it needs, whose settings become a part of its own."""
    if cell.model in above:
        raise ConfigError(f"{cell.model}: it needs itself: {' -> '.join((*above, cell.model))}")
    if cell.name in done:
        return
    inherited: dict[str, Any] = {}
    for key, name in cell.needs.items():
        if name not in cells:
            raise ConfigError(f"{cell.model} on {cell.data}: {{run:{key}}}: there is no cell {name}")
        _place(cells[name], cells, done, (*above, cell.model))
        inherited |= {f"{key}: {setting}": value for setting, value in done[name].settings.items()}
    done[cell.name] = replace(cell, settings=cell.settings | inherited)


def _check_changes(suite: Suite, cells: dict[str, Cell]) -> None:
    """Raise ConfigError where an ablation changes nothing."""
    by_place = {(cell.model, cell.data): cell for cell in reversed(list(cells.values()))}
    for ablation in suite.ablations:
        for data, model in ablation.of.items():
            if _computes(by_place[ablation.name, data]) == _computes(by_place[model, data]):
                raise ConfigError(f"ablations.{ablation.name}: on {data} it changes nothing of {model}")


def _computes(cell: Cell) -> dict[str, Any]:
    other = ("run.name", "run.seed", "evaluation.test_rates")
    return {key: value for key, value in cell.settings.items() if not key.endswith(other)}


def _staged(cells: Iterable[Cell], longest: float) -> Iterator[Cell]:
    """Cells in their order; a new stage begins where the sum of the minutes would be more than `longest`."""
    stage, minutes = 1, 0.0
    for cell in cells:
        if minutes and minutes + cell.minutes > longest:
            stage, minutes = stage + 1, 0.0
        minutes += cell.minutes
        yield replace(cell, stage=stage)


def _name(data: str, fold: int | None, model: str, seed: int) -> str:
    return ".".join([data, *([] if fold is None else [f"f{fold}"]), model, f"s{seed}"])


def _filled(text: str, fold: int | None) -> str:
    return text if fold is None else text.replace("{fold}", str(fold))


def _source(source: SourceConfig | None, fold: int | None) -> SourceConfig | None:
    if source is None:
        return None
    options = {key: _filled(value, fold) if isinstance(value, str) else value for key, value in source.options.items()}
    return source.model_copy(update={"options": options, "path": absolute_path(source.path, "source.path")})


def _portable(value: Any, places: dict[str, str]) -> Any:
    """A value with the folders of other cells by their `{run:...}`: a moved storage changes no setting."""
    if isinstance(value, list):
        return [_portable(item, places) for item in value]
    return places.get(value, value) if isinstance(value, str) else value


def _config_file(config: str | None) -> str | None:
    """Relative to the repository where it is inside, else absolute: a job works in a copy of the repository."""
    config = config and expand_home(config, "config")
    if config is None or "://" in config or Path(config).is_absolute():
        return config
    path = (ROOT / config).resolve()
    return str(path.relative_to(ROOT.resolve()) if path.is_relative_to(ROOT.resolve()) else path)


def _absolute_places(config: Config) -> list[str]:
    """Overrides that make absolute what a configuration names relative to the folder where the suite starts."""
    before, after = flatten_config(config), flatten_config(with_absolute_paths(config))
    keys = ("run.init_from", "data.cache", "task.teachers")
    return [_typed(key, after[key]) for key in keys if after[key] != before[key]]


def _typed(key: str, value: Any) -> str:
    """The override as one types it."""
    return f"{key}={value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
