"""From a suite's YAML file to its cells: one (entry, data set, fold, seed) each, with the command that runs it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.baselines.settings import load_settings
from pydantic import ValidationError

from maestro_dist.config.check import check
from maestro_dist.config.coerce import coerce
from maestro_dist.config.identity import run_identity
from maestro_dist.config.load import apply_override, load_config, read_tree
from maestro_dist.config.paths import absolute_path, expand_home
from maestro_dist.config.schema import Config, SourceConfig
from maestro_dist.config.yaml_text import child_of
from maestro_dist.data.storage import Storage
from maestro_dist.errors import ConfigError
from maestro_dist.tracking.run import tracking_uri
from suite.cells import Cell, entry_and_seed, filled, in_order, needed, staged
from suite.checks import check_ablations, check_entries, check_figures, hint
from suite.schema import Ablation, DataSet, Entry, Suite

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Plan:
    """A suite and its cells in the order in which they are run.

    `storage`, `tracking` and `kept` (None: nothing is kept) are absolute.
    """

    suite: Suite
    cells: tuple[Cell, ...]
    storage: str
    tracking: str
    experiment: str
    kept: str | None = None

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
    tree = coerce(tree, Suite)
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
    storage = absolute_path(suite.storage, "storage")
    tracking = absolute_path(suite.tracking_uri or tracking_uri(None, storage), "tracking_uri")
    kept = None if suite.keep is None else absolute_path(suite.keep, "keep")
    empty = Plan(suite, (), storage, tracking, suite.experiment or suite.name, kept)
    ablated = list(_ablated(suite))
    check_entries(suite, [*suite.entries, *ablated])
    cells = [cell for entry in suite.entries for cell in _cells(empty, entry, suite.rates)]
    ends = suite.rates if len(suite.rates) < 3 else [min(suite.rates), max(suite.rates)]  # what their table shows
    cells = in_order([*cells, *(cell for entry in ablated for cell in _cells(empty, entry, ends))])
    check_ablations(suite, cells)
    check_figures(suite, cells)
    return replace(empty, cells=tuple(staged(cells, suite.stage_minutes)))


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
            source = source.model_copy(update={"options": options, "path": absolute_path(source.path, "source.path")})
        yield cell.url, source


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
                else [child_of(node, part)]
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
            near = hint(ablation.of, [entry.name for entry in suite.entries])
            raise ConfigError(f"{where}.of: no entry {ablation.of!r}{near}")
        known = [name for entry in bases for name in entry.data]
        for name in ablation.data or known:
            if name not in known:
                raise ConfigError(f"{where}.data: {ablation.of!r} has no {name!r}{hint(name, known)}")
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


def _cells(plan: Plan, entry: Entry, rates: list[float]) -> Iterator[Cell]:
    for name in entry.data:
        data = plan.data(name)
        for fold in [None] if data.folds is None else entry.folds or range(data.folds):
            for seed in entry.seeds or plan.suite.seeds:
                yield _cell(plan, entry, data, fold, seed, rates)


def _cell(plan: Plan, entry: Entry, data: DataSet, fold: int | None, seed: int, rates: list[float]) -> Cell:
    name = _name(data, fold, entry.name, seed)
    needs = {other: _name(data, fold, *entry_and_seed(other, seed)) for other in needed(entry.set)}
    places = {other: Storage(plan.storage).join(cell).url for other, cell in needs.items()}
    changes = [filled(override, lambda other: places[other]) for override in entry.set]
    url = absolute_path(data.url if fold is None else data.url.replace("{fold}", str(fold)), f"data.{data.name}.url")
    common = {
        "run.name": name,
        "run.storage": plan.storage,
        "run.seed": seed,
        "data.url": url,
        "data.source": None,  # it is packed before
        "tracking.uri": plan.tracking,
        "tracking.experiment": plan.experiment,
        "evaluation.test_rates": rates,
        "evaluation.draws": plan.suite.draws,
    }
    last = [_typed(key, value) for key, value in common.items()]
    file = _config_file(entry.config)
    given = [file] if file else []
    own = {}
    try:
        if entry.kind == "maestro":
            last += _absolute_places(load_config(_found(file), [*changes, *last]))
            arguments = ["maestro_dist.train", *given, *changes, *last]
            config = load_config(_found(file), [*changes, *last])
            check(config)
        else:
            chosen = [f"evaluation.metric={data.metrics[0]}", *changes, *last]
            arguments = ["benchmarks.baselines", entry.kind, *given, *chosen]
            config, baseline = load_settings([*([str(_found(file))] if given else []), *chosen])
            own = {f"baseline.{key}": value for key, value in baseline.model_dump(mode="json").items()}
        if not config.evaluation.predictions and config.task.kind != "pretrain":
            raise ConfigError("evaluation.predictions: false: reports are made from the answers to each sample")
    except ConfigError as error:
        raise ConfigError(f"entry {entry.name!r} on {data.name!r}: {error}") from None
    named = {place: f"{{run:{other}}}" for other, place in places.items()}  # a storage that was moved changes nothing
    deciding = {key: _portable(value, named) for key, value in _deciding(config, entry.kind).items()}
    return Cell(
        name=name,
        entry=entry.name,
        kind=entry.kind,
        data=data.name,
        fold=fold,
        seed=seed,
        url=url,
        config=file,
        arguments=tuple(arguments),
        settings={"kind": entry.kind, **deciding, **own},
        cpus=config.run.workers * config.run.cpus_per_worker if entry.kind == "maestro" else 1,
        inline=entry.kind != "maestro" or config.run.launcher == "inline",
        minutes=entry.minutes,
        needs=needs,
        scored=config.task.kind != "pretrain",
    )


def _portable(value: Any, named: Mapping[str, str]) -> Any:
    """A value, or a list of values, with the places in `named` by their names."""
    if isinstance(value, list):
        return [_portable(item, named) for item in value]
    return named.get(value, value) if isinstance(value, str) else value


def _name(data: DataSet, fold: int | None, entry: str, seed: int) -> str:
    return ".".join([data.name, *([] if fold is None else [f"f{fold}"]), entry, f"s{seed}"])


def _deciding(config: Config, kind: str) -> dict[str, Any]:
    """What decides a result; of a baseline only the sections that it reads."""
    sections = ("run.seed", "data.", "evaluation.")
    return {key: value for key, value in run_identity(config).items() if kind == "maestro" or key.startswith(sections)}


def _config_file(config: str | None) -> str | None:
    """Relative to the repository where it lies in it, else absolute: a job works in a copy of the repository."""
    config = config and expand_home(config, "config")
    if config is None or "://" in config or Path(config).is_absolute():
        return config
    path = (ROOT / config).resolve()
    return str(path.relative_to(ROOT.resolve()) if path.is_relative_to(ROOT.resolve()) else path)


def _absolute_places(config: Config) -> list[str]:
    """Overrides for local places that a configuration names relative to the folder where the suite is started."""
    places: dict[str, str | list[str] | None] = {
        "run.init_from": config.run.init_from,
        "data.cache": config.data.cache,
        "task.teachers": config.task.teachers,
    }
    found = {
        key: [absolute_path(place, key) for place in value]
        if isinstance(value, list)
        else value and absolute_path(value, key)
        for key, value in places.items()
    }
    return [_typed(key, value) for key, value in found.items() if value and value != places[key]]


def _typed(key: str, value: Any) -> str:
    """The override as one types it: text as it is."""
    return f"{key}={value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"


def _found(config: str | None) -> str:
    return config if config is None or "://" in config else str(ROOT / config)  # type: ignore[return-value]


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
