"""Files with one meaning, and what is found out about them. Part of `--infer`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from maestro_dist.data.parts import join_names
from maestro_dist.data.tables.look_columns import Roles, roles_of
from maestro_dist.data.tables.look_files import Looked
from maestro_dist.data.tables.look_paths import PathKind, kinds_of
from maestro_dist.data.tables.look_times import TimeGuess, file_times, guess_rate, guess_time
from maestro_dist.data.tables.look_values import use_number_form
from maestro_dist.data.tables.paths import PathPattern

MOST_FILES = 12
"""Files of a kind that are looked at for times and rates."""
LEAST_STEPS = 8


@dataclass
class Kind:
    """Files with one meaning, and what was found out about them.

    role        signals, intervals, facts, or unused
    modalities  name -> what the layout says of it
    doubts      what a person should check
    """

    path: PathKind
    files: list[Looked]
    roles: Roles
    role: str
    time: TimeGuess | None = None
    modalities: dict[str, dict[str, object]] = field(default_factory=dict)
    doubts: list[str] = field(default_factory=list)
    spans: list[float] = field(default_factory=list)

    @property
    def whole(self) -> list[Looked]:
        """The files that are looked at closely."""
        return [file for file in self.files if file.complete][:MOST_FILES]


@dataclass
class Found:
    """All that was found out about a source. `labels`: task and classes; `window`: length and stride in seconds."""

    name: str
    kinds: list[Kind]
    task: str = "none"
    target: str = ""
    classes: list[str] = field(default_factory=list)
    window: tuple[float, float] = (10.0, 5.0)
    remarks: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)


def find_kinds(looked: Sequence[Looked], again: Callable[[str], Looked]) -> list[Kind]:
    """The kinds of some files. `again` reads a file completely."""
    groups: dict[object, list[Looked]] = {}
    for file in looked:
        groups.setdefault(file.signature, []).append(file)
    roles = {signature: roles_of(files[:MOST_FILES], facts=False) for signature, files in groups.items()}
    labelled = any(of.label_columns for of in roles.values())
    kinds = []
    for files in groups.values():
        by_path = {file.path: file for file in files}
        for path in kinds_of(list(by_path), labelled=labelled):
            own = [by_path[one] for one in path.paths]
            if not any(file.complete for file in own):
                own = [*(again(file.path) for file in own[:MOST_FILES]), *own[MOST_FILES:]]
            whole = [file for file in own if file.complete][:MOST_FILES]
            doubts = [*path.doubts, *use_number_form(own, whole)]
            if own[0].dialect.footer:
                doubts.append(f"rows end above {own[0].dialect.footer!r}: that line and what follows is left out")
            if own[0].dialect.group_row:
                doubts.append("names of columns are in two rows: groups, and names in them")
            of = roles_of(whole, facts=False)
            role = "intervals" if of.is_intervals else "signals" if of.numbers or of.label_columns else "unused"
            if role == "signals" and not of.numbers and not of.long and of.time is not None:
                role = _starts_of_labels(whole, of)
            kinds.append(Kind(path, own, of, role, doubts=doubts))
    return _with_odd_files(kinds)


def _starts_of_labels(files: Sequence[Looked], roles: Roles) -> str:
    """Whether files without measurements have a label now and then, which lasts until the next one."""
    if files[0].counts_rows(roles.times[0]):
        roles.doubts.append(f"column {roles.time!r} counts rows: if a row is an epoch of 30 s, say, write unit: 30")
        return "signals"
    guess = guess_time(files, roles.times)
    times = [of for file in files if (of := file_times(file, roles.times, guess)) is not None]
    if roles.clock is not None or (guess_rate(times).grid == "auto" and len(times[0] if times else []) > LEAST_STEPS):
        return "signals"
    roles.start, roles.time = roles.time, None
    roles.doubts.append("labels have no end: each lasts until the next one")
    return "intervals"


def _with_odd_files(kinds: list[Kind]) -> list[Kind]:
    """Files with other columns than most files of the same pattern are asked about, and not read in another way."""
    found = []
    for kind in kinds:
        like = [k for k in kinds if len(k.files) > len(kind.files) and PathPattern.of(k.path.pattern).names]
        like = [k for k in like if _alike(k, kind) and all(_fits(k, file) for file in kind.files)]
        if not like:
            found.append(kind)
            continue
        other = sorted(set(kind.files[0].columns) ^ set(like[0].files[0].columns))
        what = f"other columns ({join_names(other, 5)})" if other else "another form of text"
        paths = join_names([file.path for file in kind.files], 5)
        like[0].doubts.append(f"{what} than most files: {paths}")
    return found


def _alike(one: Kind, other: Kind) -> bool:
    """Whether most columns have the same names, up to capitals."""
    own, others = ({column.lower() for column in kind.files[0].columns} for kind in (one, other))
    return len(own & others) >= 0.5 * len(own | others)


def _fits(kind: Kind, file: Looked) -> bool:
    return PathPattern.of(kind.path.pattern).match(PurePosixPath(file.path)) is not None
