"""A folder of tables as a conversion: which files make which parts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath

from maestro_dist.data.converters.files import AnySource, SourceFile, SourceFiles, join_names
from maestro_dist.data.converters.source import Conversion, as_recordings, counted
from maestro_dist.data.description import Description
from maestro_dist.data.parts import Remarks
from maestro_dist.data.tables.gathering import Facts, Named, gather_facts, gather_intervals, names_of
from maestro_dist.data.tables.labels import LabelReader
from maestro_dist.data.tables.layout import TableLayout
from maestro_dist.data.tables.paths import PathPattern, same_names
from maestro_dist.data.tables.reading import ENDINGS
from maestro_dist.data.tables.recordings import Shared, TablePart
from maestro_dist.errors import DataError
from maestro_dist.types import Modality

_Role = tuple[int, str]
"""Number of the entry in the layout, and the path."""


def convert(source: AnySource, layout: TableLayout, digest: str = "") -> Conversion:
    """The recordings of a folder of tables. `digest` differs for another layout.

    Raises:
        DataError: a file is missing or damaged, or does not fit the layout.
    """
    files = SourceFiles(source)
    unused: set[str] = set()
    named = _named(files, layout, unused)
    signals = [(number, file) for number, file in named if file.about.is_signal]
    if not signals:
        raise files.error(f"no file fits {layout.files[0].path}; correct the paths in the layout")
    reader, together = LabelReader(layout), any(not names_of(file.about) for _, file in signals)
    groups: dict[str, list[tuple[int, Named]]] = {}
    shared: list[Named] = []
    ids = {file.path_id for _, file in signals}
    for number, file in named:
        if file.about.is_signal or file.path_id in ids:
            groups.setdefault("all files" if together else file.path_id, []).append((number, file))
        elif not names_of(file.about):
            shared.append(file)
        else:
            files.remarks.warn("recordings with labels or facts but without signals, left out", file.path_id)
    known = _shared(shared, reader, files.remarks, signals)
    parts = [TablePart(name, layout, tuple(of), known) for name, of in sorted(groups.items())]
    warnings = files.warnings()
    absent = [file.path for number, file in enumerate(layout.files) if all(n != number for n, _ in named)]
    if absent:
        warnings.append(f"no file fits these paths of the layout ({len(absent)}): {join_names(absent)}")
    if unused:
        names = join_names(sorted(unused), 5)
        warnings.append(f"tables that the layout does not name, left out ({len(unused):,}): {names}")
    conversion = Conversion(
        _description(layout), parts, f"{files.listing()}-{digest}", warnings=tuple(warnings), notes=counted
    )
    return as_recordings(conversion, layout.window)


def _named(files: SourceFiles, layout: TableLayout, unused: set[str]) -> list[tuple[int, Named]]:
    patterns = [PathPattern.of(file.path) for file in layout.files]
    # of several patterns that fit, the one with the most letters of its own says most
    order = sorted(range(len(patterns)), key=lambda n: -len(patterns[n].text) + sum(map(len, patterns[n].names)))

    def role(path: PurePosixPath) -> _Role | None:
        number = next((n for n in order if patterns[n].match(path) is not None), None)
        if number is not None:
            return number, str(path)
        if path.name.lower().endswith(ENDINGS):
            unused.add(str(path))
        return None

    found: Mapping[_Role, SourceFile] = files.find(role)
    return [
        (number, Named(layout.files[number], file, patterns[number].match(PurePosixPath(path)) or {}))
        for (number, path), file in sorted(found.items(), key=lambda item: item[0])
    ]


def _names(named: list[tuple[int, Named]], only: str = "") -> set[str]:
    """How paths name recordings and people; empty if columns do it, so that not all names are known.

    only  a name in braces: what it stands for, if paths have it
    """
    signals = [file for _, file in named if file.about.is_signal]
    if any(file.about.recording_columns or file.about.subject or not file.names for file in signals):
        return set()
    if only in signals[0].names:
        return {file.names[only] for file in signals}
    return {text for file in signals for text in (file.path_id, *file.names.values())}


def _shared(named: list[Named], reader: LabelReader, remarks: Remarks, of_signals: list[tuple[int, Named]]) -> Shared:
    """What files say that belong to many recordings.

    Raises:
        DataError: a file has labels, and none of its names is one of those of the signals.
    """
    shared = Shared()
    for file in sorted(named, key=lambda file: file.about.intervals is not None):  # facts first: they name people
        about = file.about
        of_people = about.subject is not None and about.recording_columns in ([], [about.subject])
        ids: set[str]
        if about.intervals is not None:
            labels = gather_intervals(file, reader, remarks)
            for name, found in labels.items():
                (shared.person_intervals if of_people else shared.intervals).setdefault(name, []).extend(found)
            ids = set(labels)
        else:
            told = gather_facts(file, reader, remarks)
            for name, fact in told.items():
                known = (shared.person_facts if of_people else shared.facts).setdefault(name, Facts())
                known.merge(fact, f"{file.file.name}, {name}")
            ids = set(told)
        names = _names(of_signals, "subject" if of_people else "")
        if names:
            names |= {fact.texts["subject"] for fact in shared.facts.values() if "subject" in fact.texts}
        same = same_names(names, ids)
        _check_names(file, ids, ids & names | set(same.values()), names, remarks)
        for name, other in sorted(same.items()):
            shared.aliases[name] = other
            remarks.warn("names that were taken for the same", f"{name} = {other}")
    return shared


def _check_names(file: Named, ids: set[str], known: set[str], names: set[str], remarks: Remarks) -> None:
    if not names or not ids:
        return
    if not known and file.about.label is not None:
        raise DataError(
            f"{file.file.name}: its recordings or people ({join_names(sorted(ids), 5)}) are none of those of the "
            f"signals ({join_names(sorted(names), 5)}); correct the names, or the paths and columns of the layout"
        )
    for name in sorted(ids - known):
        remarks.warn("recordings with labels or facts but without signals, left out", name)


def _description(layout: TableLayout) -> Description:
    window = layout.window
    modalities = [
        Modality(name, len(m.columns), 1 / window.length_s, 1, m.unit, always=True)
        if file.facts
        else Modality(name, len(m.columns), m.rate_hz, 1, m.unit)
        for file in layout.files
        for name, m in file.modalities.items()
    ]
    return Description(
        layout.name,
        layout.licence,
        layout.citation,
        layout.source,
        layout.task,
        tuple(layout.classes),
        layout.target,
        window_s=window.length_s,
        modalities=tuple(modalities),
        recording=True,
        window=window,
        targets=tuple(layout.targets),
    )
