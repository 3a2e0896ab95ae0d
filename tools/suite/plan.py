"""From a suite's YAML file to its cells: one (entry, data set, fold, seed) each, with the command that runs it."""

from __future__ import annotations

import difflib
import json
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from benchmarks.baselines.settings import load_settings
from pydantic import ValidationError

from maestro_dist.config.check import check, identity
from maestro_dist.config.load import apply_override, load_config, read_tree
from maestro_dist.config.schema import Config, SourceConfig
from maestro_dist.errors import ConfigError
from maestro_dist.tracking.run import tracking_uri
from suite.schema import Ablation, DataSet, Entry, Figure, Suite, Value

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Cell:
    """One run of the table.

    entry, data, fold, seed  its place in the table; `name` says them all, and is the name of its run
    config     its configuration file, relative to the repository, if it has one
    arguments  what comes after `python -m`
    settings   what decides its result (plain JSON): a finished cell with others is not this one
    cpus       CPU cores that it keeps busy; `inline`: in the job's own process
    stage      number of the stage that it belongs to, from 1
    """

    name: str
    entry: str
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
    stage: int = 0

    @property
    def command(self) -> str:
        """As one types it."""
        return shlex.join(["python", "-m", *self.arguments])


@dataclass(frozen=True)
class Plan:
    """A suite and its cells in the order in which they are run; `storage` and `tracking` are absolute."""

    suite: Suite
    cells: tuple[Cell, ...]
    storage: str
    tracking: str
    experiment: str

    def data(self, name: str) -> DataSet:
        """A data set by name."""
        return next(item for item in self.suite.data if item.name == name)

    def cells_of(self, entry: str, data: str) -> list[Cell]:
        """The cells of an entry on a data set."""
        return [cell for cell in self.cells if (cell.entry, cell.data) == (entry, data)]


def load_plan(path: str, overrides: Sequence[str] = ()) -> Plan:
    """Read a suite, apply `key=value` overrides, and check all of it, the cells' configurations too.

    Raises:
        ConfigError: something is wrong; the message names the file and the key.
    """
    tree = read_tree(path)
    for override in overrides:
        _override(tree, override)
    try:
        suite = Suite.model_validate(tree)
    except ValidationError as error:
        problems = dict.fromkeys(_problem(item, tree) for item in error.errors())
        raise ConfigError(f"{path}: {'; '.join(problems)}") from None
    try:
        return plan(suite)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def plan(suite: Suite) -> Plan:
    """The cells of a suite. Raises ConfigError."""
    storage = absolute(suite.storage)
    tracking = absolute(suite.tracking_uri or tracking_uri(None, storage))
    empty = Plan(suite, (), storage, tracking, suite.experiment or suite.name)
    entries = [*suite.entries, *_ablated(suite)]
    _check_names(suite, entries)
    cells = [cell for entry in entries for cell in _cells(empty, entry)]
    return replace(empty, cells=tuple(_staged(cells, suite.stage_minutes)))


def select(cells: Sequence[Cell], only: Sequence[str], stage: int | None) -> list[Cell]:
    """The cells of a stage whose name fits one of the globs. Raises ConfigError where there is none."""
    found = [
        cell
        for cell in cells
        if (stage is None or cell.stage == stage) and (not only or any(fnmatchcase(cell.name, glob) for glob in only))
    ]
    if not found:
        globs = " ".join(only) or "*"
        stages = max((cell.stage for cell in cells), default=0)
        raise ConfigError(f"no cell fits --only {globs} in stage {stage or 'any'} of {stages} (see --list)")
    return found


def sources(plan: Plan, cells: Iterable[Cell]) -> Iterator[tuple[str, SourceConfig | None]]:
    """(URL, raw files) of each data set and fold that these cells need, once each."""
    seen: set[str] = set()
    for cell in cells:
        if cell.url in seen:
            continue
        seen.add(cell.url)
        source = plan.data(cell.data).source
        if source is not None:
            options = {name: _filled(value, cell.fold) for name, value in source.options.items()}
            source = source.model_copy(update={"options": options, "path": absolute(source.path)})
        yield cell.url, source


def absolute(path: str) -> str:
    """A local path, also in `sqlite:///`, made absolute; a URL as it is."""
    if path.startswith("sqlite:///"):
        return f"sqlite:///{Path(path.removeprefix('sqlite:///')).absolute()}"
    return path if "://" in path else str(Path(path).expanduser().absolute())


def _override(tree: Any, override: str) -> None:
    """`key=value`, where a part of the key that belongs to a list is the name of its items: `data.wesad.url=...`."""
    key, equals, value = override.partition("=")
    *path, last = key.split(".")
    nodes = [tree]
    for part in path:
        found = [
            child
            for node in nodes
            for child in (
                [item for item in node if isinstance(item, dict) and item.get("name") == part]
                if isinstance(node, list)
                else [node[part]]
                if isinstance(node, dict) and part in node
                else []
            )
        ]
        if not found:
            raise ConfigError(f"{override!r}: the suite has no {part!r} there")
        nodes = found
    for node in nodes:
        if not isinstance(node, dict):
            raise ConfigError(f"{override!r}: {last!r} is not a key there; name one of the items")
        apply_override(node, f"{last}{equals}{value}")


def _filled(value: str | int | float, fold: int | None) -> str | int | float:
    return value.replace("{fold}", str(fold)) if isinstance(value, str) and fold is not None else value


def _ablated(suite: Suite) -> Iterator[Entry]:
    """Each ablation as an entry of its own."""
    for ablation in suite.ablations:
        bases = [entry for entry in suite.entries if entry.name == ablation.of]
        where = f"ablations.{ablation.name}"
        if not bases:
            hint = _hint(ablation.of, [entry.name for entry in suite.entries])
            raise ConfigError(f"{where}.of: no entry {ablation.of!r}{hint}")
        known = [name for entry in bases for name in entry.data]
        for name in ablation.data or known:
            if name not in known:
                raise ConfigError(f"{where}.data: {ablation.of!r} has no {name!r}{_hint(name, known)}")
        for base in bases:
            data = [name for name in base.data if name in (ablation.data or known)]
            if data:
                yield _changed(base, ablation, data, suite)


def _changed(base: Entry, ablation: Ablation, data: list[str], suite: Suite) -> Entry:
    return base.model_copy(
        update={
            "name": ablation.name,
            "label": ablation.label,
            "set": [*base.set, *ablation.set],
            "data": data,
            "folds": ablation.folds or base.folds,
            "seeds": ablation.seeds or (base.seeds or suite.seeds)[:1],
            "minutes": ablation.minutes or base.minutes,
        }
    )


def _cells(plan: Plan, entry: Entry) -> Iterator[Cell]:
    for name in entry.data:
        data = plan.data(name)
        for fold in [None] if data.folds is None else entry.folds or range(data.folds):
            for seed in entry.seeds or plan.suite.seeds:
                yield _cell(plan, entry, data, fold, seed)


def _cell(plan: Plan, entry: Entry, data: DataSet, fold: int | None, seed: int) -> Cell:
    name = ".".join([data.name, *([] if fold is None else [f"f{fold}"]), entry.name, f"s{seed}"])
    url = absolute(data.url if fold is None else data.url.replace("{fold}", str(fold)))
    common = {
        "run.name": name,
        "run.storage": plan.storage,
        "run.seed": seed,
        "data.url": url,
        "data.source": None,  # it is packed before
        "tracking.uri": plan.tracking,
        "tracking.experiment": plan.experiment,
        "evaluation.test_rates": plan.suite.rates,
        "evaluation.draws": plan.suite.draws,
    }
    last = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in common.items()]
    given = [entry.config] if entry.config else []
    own = {}
    try:
        if entry.kind == "maestro":
            arguments = ["maestro_dist.train", *given, *entry.set, *last]
            config = load_config(_found(entry.config), [*entry.set, *last])
            check(config)
        else:
            chosen = [f"evaluation.metric={data.metrics[0]}", *entry.set, *last]
            arguments = ["benchmarks.baselines", entry.kind, *given, *chosen]
            config, baseline = load_settings([*([str(_found(entry.config))] if given else []), *chosen])
            own = {f"baseline.{key}": value for key, value in baseline.model_dump(mode="json").items()}
    except ConfigError as error:
        raise ConfigError(f"entry {entry.name!r} on {data.name!r}: {error}") from None
    return Cell(
        name=name,
        entry=entry.name,
        kind=entry.kind,
        data=data.name,
        fold=fold,
        seed=seed,
        url=url,
        config=entry.config,
        arguments=tuple(arguments),
        settings={"kind": entry.kind, **_deciding(config, entry.kind), **own},
        cpus=config.run.workers * config.run.cpus_per_worker if entry.kind == "maestro" else 1,
        inline=entry.kind != "maestro" or config.run.launcher == "inline",
        minutes=entry.minutes,
    )


def _deciding(config: Config, kind: str) -> dict[str, Any]:
    """What decides a result; of a baseline only the sections that it reads."""
    sections = ("run.seed", "data.", "evaluation.")
    return {key: value for key, value in identity(config).items() if kind == "maestro" or key.startswith(sections)}


def _found(config: str | None) -> str:
    return config if config is None or "://" in config else str(ROOT / config)  # type: ignore[return-value]


def _staged(cells: Sequence[Cell], longest: float) -> Iterator[Cell]:
    """Cells in their order, cut where the minutes, one after the other, would be more than `longest`."""
    stage, minutes = 1, 0.0
    for cell in cells:
        if minutes and minutes + cell.minutes > longest:
            stage, minutes = stage + 1, 0.0
        minutes += cell.minutes
        yield replace(cell, stage=stage)


def _check_names(suite: Suite, entries: Sequence[Entry]) -> None:
    sets = {data.name: data for data in suite.data}
    if len(sets) < len(suite.data):
        raise ConfigError("data: two data sets have the same name")
    places: set[tuple[str, str]] = set()
    for entry in entries:
        for name in entry.data:
            where = f"entries.{entry.name}.data"
            if name not in sets:
                raise ConfigError(f"{where}: no data set {name!r}{_hint(name, list(sets))}")
            if (entry.name, name) in places:
                raise ConfigError(f"{where}: {entry.name!r} is on {name!r} twice")
            places.add((entry.name, name))
            folds = sets[name].folds
            if entry.folds is not None and (folds is None or max(entry.folds) >= folds):
                raise ConfigError(f"entries.{entry.name}.folds: {name!r} has {folds or 'no'} folds, counted from 0")
    for figure in suite.figures:
        _check_figure(figure, suite, places)


def _check_figure(figure: Figure, suite: Suite, places: set[tuple[str, str]]) -> None:
    for key in ("value", "minus", "over"):
        value: Value | None = getattr(figure, key)
        if value is None:
            continue
        where = f"figures, {figure.name!r}: {key}"
        for entry in [value.entry] if isinstance(value.entry, str) else value.entry:
            if (entry, value.data) not in places:
                known = sorted(name for name, data in places if data == value.data)
                raise ConfigError(f"{where}.entry: no {entry!r} on {value.data!r}{_hint(entry, known)}")
        metrics = next(data.metrics for data in suite.data if data.name == value.data)
        if value.metric is not None and value.metric not in metrics:
            raise ConfigError(f"{where}.metric: {value.data!r} has {', '.join(metrics)}")
        if value.missing not in suite.rates:
            raise ConfigError(f"{where}.missing: {value.missing} is not one of rates {suite.rates}")


def _hint(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(dict.fromkeys(known)) or 'none'}"


def _problem(item: Any, tree: Any) -> str:
    """`entries.maestro.seeds: ...`: where parts have a name, it stands for their number."""
    words: list[str] = []
    node = tree
    for part in item["loc"]:
        node = _child(node, part)
        named = isinstance(part, int) and isinstance(node, dict) and isinstance(node.get("name"), str)
        words.append(node["name"] if named else str(part))
    message = "unknown key" if item["type"] == "extra_forbidden" else item["msg"].removeprefix("Value error, ")
    given = item.get("input")
    shown = f" (got {given!r})" if isinstance(given, str | int | float | bool) else ""
    return f"{'.'.join(words) or 'suite'}: {message[:1].lower()}{message[1:]}{shown}"


def _child(node: Any, part: Any) -> Any:
    try:
        return node[part]
    except (KeyError, IndexError, TypeError):
        return None
