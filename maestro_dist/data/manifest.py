"""The manifest: all facts that a run needs about a data set before it reads a sample."""

from __future__ import annotations

import difflib
import gc
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, ValidationError, field_validator, model_validator

from maestro_dist.config.sections import NonNegativeInt
from maestro_dist.config.windows import WindowConfig
from maestro_dist.data.label_sets import MOST_LABELS, ClassCounter
from maestro_dist.data.manifest_findings import Finite, ManifestEntry, Name, Outliers, SharedPeople
from maestro_dist.data.manifest_made import Cut, Divided, MixedPart, Sha256
from maestro_dist.data.storage import ObjectDamaged, ObjectMissing, Storage
from maestro_dist.data.storage.plain_json import parse_json
from maestro_dist.data.target_numbers import TargetStatistics
from maestro_dist.errors import ConfigError, DataError
from maestro_dist.types import MULTILABEL, Modality, TargetScale

FORMAT = "maestro_dist/1"
MANIFEST_NAME = "manifest.json"


def _relative(path: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*", path):
        raise ValueError(f"'{path}' is not a plain relative path")
    return path


class Shard(ManifestEntry):
    """One tar and its index: paths relative to the manifest, and number of samples, size and hash of the tar.

    index_sha256  hash of the index; None in a manifest of an older version
    recordings    how many recordings it holds, and `first`, the number of its first one in the table of recordings;
                  None if it holds windows
    packed        of a divided data set: how many samples the tar holds; None: it is not divided
    rows          which of these samples are in the split: one bit for each, as hexadecimal text (`numpy.packbits`)
    """

    path: str
    index: str
    samples: Annotated[int, Field(ge=1)]
    bytes: Annotated[int, Field(ge=1)]
    sha256: Sha256
    index_sha256: Sha256 | None = None
    recordings: Annotated[int, Field(ge=1)] | None = None
    first: NonNegativeInt | None = None
    packed: Annotated[int, Field(ge=1)] | None = None
    rows: Annotated[str, Field(pattern=r"^([0-9a-f]{2})+$")] | None = None

    @property
    def stored(self) -> int:
        """Entries of its index: its recordings, or all samples of the tar."""
        return self.recordings or self.packed or self.samples

    def part(self, rows: np.ndarray) -> Shard:
        """The shard with those of its samples that `rows`, bool [N], selects: one or more."""
        changes = {"samples": int(rows.sum()), "packed": len(rows), "rows": np.packbits(rows).tobytes().hex()}
        return self.model_copy(update=changes)

    @property
    def selected(self) -> np.ndarray | None:
        """Which of its samples are in the split, bool [N]; None: all. Raises ValueError if that is damaged."""
        if self.rows is None and self.packed is None:
            return None
        packed, bits = self.packed or 0, np.unpackbits(np.frombuffer(bytes.fromhex(self.rows or ""), dtype=np.uint8))
        if len(bits) != -(-packed // 8) * 8 or bits[packed:].any() or bits.sum() != self.samples:
            raise ValueError(f"rows of shard {self.path} do not select {self.samples} of {packed} samples")
        return bits[:packed].astype(bool)

    _paths = field_validator("path", "index")(_relative)


class ManifestSplit(ManifestEntry):
    """The shards of one split, in order, with its class counts, or the mean and standard deviation of its target.

    targets   statistics of each of several targets; then there is no `target_mean`
    labelled  parts with a label, of all samples; None: each sample has one label
    """

    shards: list[Shard]
    samples: NonNegativeInt
    class_counts: list[NonNegativeInt] = Field(default_factory=list)
    target_mean: Finite | None = None
    target_std: Finite | None = None
    targets: list[TargetStatistics] | None = None
    labelled: NonNegativeInt | None = None

    @model_validator(mode="after")
    def _consistent(self) -> ManifestSplit:
        if sum(shard.samples for shard in self.shards) != self.samples:
            raise ValueError(f"its shards hold {sum(s.samples for s in self.shards)} samples, not {self.samples}")
        paths = [shard.path for shard in self.shards]
        if len(set(paths)) != len(paths):
            again = next(path for path in sorted(paths) if paths.count(path) > 1)
            raise ValueError(f"it names shard {again} twice")
        for shard in self.shards:
            if shard.rows is not None or shard.packed is not None:
                _ = shard.selected  # raises an error if it is damaged
        return self

    @property
    def shard_samples(self) -> list[int]:
        """Number of samples of each shard."""
        return [shard.samples for shard in self.shards]

    def __reduce__(self) -> tuple[object, ...]:
        """For reader processes: each field of all shards as one list, which takes a tenth of the time."""
        fields = {name: value for name, value in self if name != "shards"}
        columns = {name: [getattr(shard, name) for shard in self.shards] for name in Shard.model_fields}
        return _split_of_columns, (fields, columns)


def _split_of_columns(fields: dict[str, Any], columns: dict[str, list[Any]]) -> ManifestSplit:
    """What `ManifestSplit.__reduce__` took apart. It was validated when it was loaded."""
    names = set(columns)
    with _no_garbage_collection():
        values = zip(*columns.values(), strict=True)
        shards = [_shard(dict(zip(columns, entry, strict=True)), names) for entry in values]
    return ManifestSplit.model_construct(shards=shards, **fields)


def _shard(values: dict[str, Any], names: set[str]) -> Shard:
    """A shard with these values, which are not checked; `model_construct` takes three times as long."""
    shard = Shard.__new__(Shard)
    state = {"__dict__": values, "__pydantic_fields_set__": names, "__pydantic_extra__": None}
    for name, value in (state | {"__pydantic_private__": None}).items():
        object.__setattr__(shard, name, value)
    return shard


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Make many objects that stay: looking at all of them again and again would take most of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class ManifestModality(ManifestEntry):
    """One modality.

    rate_hz, steps  a window has `steps` steps at `rate_hz`
    mean, std       of the observed steps of the training split (population), one number for each variate, in `unit`
    always          never dropped, neither in training nor in an evaluation with modalities missing
    """

    name: Name
    variates: Annotated[int, Field(ge=1)]
    unit: str
    rate_hz: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    steps: Annotated[int, Field(ge=1)]
    mean: list[Finite]
    std: list[Annotated[float, Field(ge=0, allow_inf_nan=False)]]
    always: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> ManifestModality:
        if not len(self.mean) == len(self.std) == self.variates:
            raise ValueError(f"mean and std of '{self.name}' need {self.variates} numbers each")
        return self


class SymbolSpec(ManifestEntry):
    """How the SAX symbols of a data set were made, and whether the raw windows are stored too (`raw`).

    `alphabet`, `word` (steps, by modality) and `normalize` have the values of the model that uses the symbols.
    """

    alphabet: Annotated[int, Field(ge=2, le=255)]
    word: dict[Name, Annotated[int, Field(ge=1)]]
    normalize: Literal["window", "recording", "dataset"]
    raw: bool

    def length(self, modality: Modality) -> int:
        """Number of words W_j of a window."""
        return -(-modality.steps // self.word[modality.name])


class Recordings(ManifestEntry):
    """The data set holds whole recordings: the table of all of them, and how to cut them if a run does not say it."""

    table: str
    bytes: NonNegativeInt
    sha256: Sha256
    window: WindowConfig

    _path = field_validator("table")(_relative)


class Manifest(ManifestEntry):
    """A packed data set.

    task           multilabel: each sample has any of the classes; none: no labels (for pre-training)
    target         name of the predicted quantity, with its unit
    targets        names of several targets of a regression; empty: one number
    window_s       length of a window, in seconds
    recording      whether samples have the mean and std of their recording up to the window's end, as
                   `normalize: recording` needs them
    symbols        how its SAX symbols were made; None: it has none
    recordings     its recordings; None: it holds windows
    cut            how its recordings are cut; None in a stored manifest: then its one split counts recordings
    divided        how its windows were divided anew; None in a stored manifest
    mixture        the data sets whose samples it describes together; None: it is one data set
    statistics_of  the split of the means and standard deviations, if it is not train
    outliers, shared_people   findings that the user should know before training
    """

    format: Literal["maestro_dist/1"]
    name: str
    licence: str
    citation: str
    source: str
    task: Literal["classification", "multilabel", "regression", "none"]
    classes: list[str]
    target: str
    window_s: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    recording: bool = False
    modalities: Annotated[list[ManifestModality], Field(min_length=1)]
    splits: dict[str, ManifestSplit]
    symbols: SymbolSpec | None = None
    recordings: Recordings | None = None
    cut: Cut | None = None
    divided: Divided | None = None
    mixture: list[MixedPart] | None = None
    targets: list[str] = Field(default_factory=list)
    statistics_of: str | None = None
    outliers: list[Outliers] = Field(default_factory=list)
    shared_people: list[SharedPeople] = Field(default_factory=list)

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        names = [modality.name for modality in self.modalities]
        if len(set(names)) != len(names):
            raise ValueError("two modalities have the same name")
        if self.symbols is not None and set(self.symbols.word) != set(names):
            raise ValueError(f"symbols.word names {sorted(self.symbols.word)}, the modalities are {sorted(names)}")
        if self.task == "classification" and len(self.classes) < 2:
            raise ValueError("a classification needs two classes or more")
        if self.task == MULTILABEL and not 1 <= len(self.classes) <= MOST_LABELS:
            raise ValueError(f"{MULTILABEL} needs 1 to {MOST_LABELS} labels")
        for name, split in self.splits.items() if not self.uncut else ():
            if self.classes and len(split.class_counts) != len(self.classes):
                raise ValueError(f"class_counts of split '{name}' need {len(self.classes)} numbers")
            if len(split.targets or ()) != len(self.targets):
                raise ValueError(f"targets of split '{name}' need {len(self.targets)} entries")
            counts, labels = split.class_counts, split.samples * self.label_steps
            if any(target.known > labels for target in split.targets or ()):
                raise ValueError(f"targets of split '{name}' are known more often than it has samples")
            if self.task == "classification" and self.label_steps == 1 and sum(counts) != split.samples:
                raise ValueError(f"class_counts add up to {sum(counts)} in '{name}', not to {split.samples} samples")
            if max([split.labelled or 0, *counts]) > labels:
                raise ValueError(f"class_counts or labelled of split '{name}' exceed its {labels} labels")
        return self

    @property
    def counter(self) -> ClassCounter:
        """How its labels are counted."""
        return ClassCounter(len(self.classes), self.task == MULTILABEL, len(self.targets) or 1)

    @property
    def label_steps(self) -> int:
        """Labels of a sample over time; 1: it has one label."""
        return 1 if self.cut is None or self.task == "none" else self.cut.window.label_steps

    @property
    def target_width(self) -> int:
        """Numbers of the target of a sample: its labels over time, of several targets all numbers of the first, then
        those of the next."""
        return self.label_steps * (len(self.targets) or 1)

    @property
    def label_numbers(self) -> int:
        """How many labels there are, as whole numbers from 0: classes, or sets of them; 0: labels are other numbers."""
        return 1 << len(self.classes) if self.task == MULTILABEL else len(self.classes)

    def target_scales(self, split: str) -> tuple[TargetScale, ...]:
        """Name, mean and deviation of each of several targets in a split; empty for one target."""
        found = zip(self.targets, self.splits[split].targets or (), strict=bool(self.targets))
        return tuple(TargetScale(name, entry.mean, entry.std) for name, entry in found)

    @property
    def uncut(self) -> bool:
        """Whether it describes recordings that are not yet cut into windows."""
        return self.recordings is not None and self.cut is None

    def select(self, names: Sequence[str] | None) -> list[Modality]:
        """The modalities of a run, sorted by name; all of them by default.

        Raises:
            ConfigError: a name is unknown or given twice, or no name is given.
        """
        have = {modality.name: modality for modality in self.modalities}
        chosen = sorted(have) if names is None else sorted(names)
        for name in chosen:
            if name not in have:
                raise ConfigError(f"data.modalities: no modality '{name}' in '{self.name}'{_hint(name, have)}")
        if not chosen or len(set(chosen)) != len(chosen):
            raise ConfigError("data.modalities: name each modality once, and at least one")
        return [
            Modality(m.name, m.variates, m.rate_hz, m.steps, m.unit, tuple(m.mean), tuple(m.std), m.always)
            for m in (have[name] for name in chosen)
        ]

    def split(self, name: str) -> ManifestSplit:
        """A split by name.

        Raises:
            ConfigError: there is no such split, or it is empty.
        """
        if name not in self.splits:
            raise ConfigError(f"no split '{name}' in '{self.name}'{_hint(name, self.splits)}")
        if not self.splits[name].samples:
            raise ConfigError(f"split '{name}' of '{self.name}' has no samples")
        return self.splits[name]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON. Optional fields without a value are left out, and so is `always` if it is false."""
        optional = ("symbols", "recordings", "cut", "divided", "mixture", "targets", *_FINDINGS)
        body = self.model_dump(mode="json", exclude={name for name in optional if not getattr(self, name)})
        for modality in body["modalities"]:
            if not modality["always"]:
                del modality["always"]
        for split in body["splits"].values():
            for name in ("targets", "labelled"):
                if split[name] is None:
                    del split[name]
        for shard in _shards(body):
            for name in ("index_sha256", "recordings", "first", "packed", "rows"):
                if shard[name] is None:
                    del shard[name]
        return body

    def fingerprint(self) -> str:
        """sha256 of the canonical JSON; the same data set packed twice has the same fingerprint.

        Findings for the user (outliers, shared people) and the hashes of indexes do not count, because older releases
        did not write them.
        """
        body = {name: value for name, value in self.to_json().items() if name not in _FINDINGS}
        for shard in _shards(body):
            shard.pop("index_sha256", None)
        text = json.dumps(body, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def _shards(body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The entries of all shards in the JSON of a manifest."""
    for split in body["splits"].values():
        yield from split["shards"]


_FINDINGS = ("statistics_of", "outliers", "shared_people")


def _hint(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    listed = ", ".join(sorted(known))
    return f"; did you mean '{near[0]}'? It has {listed}" if near else f"; it has {listed}"


def load_manifest(url: str, *, expected: bool = False) -> Manifest:
    """Read `manifest.json` below `url` (a folder or an fsspec URL). `expected`: it is known to exist.

    Raises:
        DataError: it is missing, not JSON, of another format, or inconsistent; the message names the file.
        StorageError: it cannot be read at present.
    """
    storage = Storage(url)
    name = storage.name(MANIFEST_NAME)
    try:
        with _no_garbage_collection():
            raw = storage.parsed(MANIFEST_NAME, parse_json, expected=expected)
    except ObjectMissing as error:
        raise DataError(f"{name}: no manifest there; pack the data set first, or correct data.url") from error
    except ObjectDamaged as error:
        raise DataError(f"{name}: not valid JSON ({error.problem}){error.asked}; pack the data set again") from error
    file_format = raw.get("format") if isinstance(raw, dict) else None
    if file_format != FORMAT:
        raise DataError(f"{name}: format {file_format!r} is not {FORMAT!r}; pack the data set with this version")
    try:
        with _no_garbage_collection():
            return Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{name}: {where + ': ' if where else ''}{first['msg']}; pack the data set again") from error
