"""Tables with rows that are no measurements, names in two rows, times beyond a day, and a row for each sensor."""

from __future__ import annotations

import gzip
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_tables_infer import inferred

from maestro_dist.data.parts import Remarks
from maestro_dist.data.recordings.raw import RawRecording
from maestro_dist.data.tables.conversion import convert
from maestro_dist.data.tables.layout import TableLayout
from maestro_dist.errors import DataError

ROWS = 120
ACC = np.round(np.random.default_rng(0).normal(size=(ROWS, 2)), 3)


def write(path: Path, lines: Sequence[str], encoding: str = "utf-8", mark: str = ",") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(
        line.replace(".", ",").replace("|", mark) if mark == ";" else line.replace("|", mark) for line in lines
    )
    content = (text + "\n").encode(encoding)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def rows(of_time: Any = str) -> list[str]:
    return [f"{of_time(n)}|{x}|{y}" for n, (x, y) in enumerate(ACC.tolist())]


def values(found: dict[str, RawRecording], key: str = "a") -> dict[str, np.ndarray]:
    return {name: np.asarray(array) for name, array in found[key].values.items()}


@pytest.mark.parametrize(
    "footer",
    [["End of file"], ["", "Total rows: 120", "# made by a logger"], ["Total|12.3|45.6"], ["Mean|0.1|0.2", "SD|1|1"],
     ["||", "||", ""], ["End of file", "||"], ["\u00a9 Gerät"]],
    ids=lambda footer: footer[0] or footer[1],
)  # fmt: skip
@pytest.mark.parametrize(("ending", "encoding", "mark"), [
    (".csv", "utf-8", ","), (".csv", "utf-8-sig", "\t"), (".csv", "cp1252", ";"), (".csv.gz", "utf-8", ","),
    (".csv", "utf-16", ";"),
])  # fmt: skip
def test_what_is_below_the_rows_is_not_read(
    footer: list[str], ending: str, encoding: str, mark: str, tmp_path: Path
) -> None:
    for name in "ab":
        write(tmp_path / "x" / f"{name}{ending}", ["time|acc_x|acc_y", *rows(), *footer], encoding, mark)
    layout, found, doubtful = inferred(tmp_path / "x")
    np.testing.assert_array_equal(values(found)["acc"], ACC.astype(np.float32))
    assert any("rows end above" in doubt for doubt in doubtful) is not footer[0].startswith("||")
    assert (layout.files[0].footer is None) is footer[0].startswith("||")


def test_rows_that_may_be_measurements_stay_and_are_named(tmp_path: Path) -> None:
    write(tmp_path / "x" / "a.csv", ["time|acc_x|acc_y", *rows(), "|12.3|45.6"])
    layout = TableLayout.model_validate({
        "name": "x", "task": "none", "window": {"length_s": 4},
        "files": [{"path": "{recording}.csv", "time": {"column": "time"},
                   "modalities": {"acc": {"columns": ["acc_x", "acc_y"]}}}],
    })  # fmt: skip
    with pytest.raises(DataError, match="row 121 has no time; remove the row"):
        list(convert(str(tmp_path / "x"), layout).parts[0].samples(Remarks()))


def test_empty_rows_count_where_rows_follow_each_other(tmp_path: Path) -> None:
    write(tmp_path / "x" / "a.csv", ["acc_x|acc_y", "1|2", "3|4", "|", "|"])
    given = {"path": "{recording}.csv", "modalities": {"acc": {"columns": ["acc_x", "acc_y"]}}}
    layout = TableLayout.model_validate({"name": "x", "task": "none", "window": {"length_s": 2}, "files": [given]})
    (recording,) = convert(str(tmp_path / "x"), layout).parts[0].samples(Remarks())
    assert isinstance(recording, RawRecording)
    assert len(recording.values["acc"]) >= 2


@pytest.mark.parametrize("head", [["time|acc|acc|gyro", "|x|y|x"], ["|acc||gyro", "time|x|y|x"]])
def test_names_of_columns_in_two_rows(head: list[str], tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / "x" / f"{name}.csv", [*head, *(f"{row}|{n % 7}" for n, row in enumerate(rows()))], mark=";")
    layout, found, doubtful = inferred(tmp_path / "x")
    assert layout.files[0].group_row
    assert layout.files[0].modalities["acc"].columns == ["acc_x", "acc_y"]
    assert any("names of columns are in two rows" in doubt for doubt in doubtful)
    np.testing.assert_array_equal(values(found)["acc"], ACC.astype(np.float32))


def test_a_row_of_units_is_no_row_of_names(tmp_path: Path) -> None:
    write(tmp_path / "x" / "a.csv", ["time|acc_x|acc_y", "s|g|g", *rows()])
    layout, _, _ = inferred(tmp_path / "x")
    assert (layout.files[0].group_row, layout.files[0].units_row) == (False, True)
    assert layout.files[0].modalities["acc"].unit == "g"
    write(tmp_path / "y" / "a.csv", ["time|acc|acc", "s|g|g", *rows()])
    with pytest.raises(DataError, match="two columns are named 'acc'; rename one of them, or say that the names"):
        inferred(tmp_path / "y")


def elapsed(n: int) -> str:
    return f"{23 + n // 60}:{n % 60:02d}:00"


@pytest.mark.parametrize("mark", [",", ";"])
def test_elapsed_times_go_beyond_a_day(mark: str, tmp_path: Path) -> None:
    write(tmp_path / "x" / "a.csv", ["elapsed|acc_x|acc_y", *rows(elapsed)], mark=mark)
    write(
        tmp_path / "x" / "b.csv", ["elapsed|acc_x|acc_y", *rows(lambda n: f"{n // 60:02d}:{n % 60:02d}:00")], mark=mark
    )
    layout, found, _ = inferred(tmp_path / "x")
    time = layout.files[0].time
    assert time is not None
    assert time.unit == "elapsed"
    for key in "ab":
        np.testing.assert_array_equal(values(found, key)["acc"], ACC.astype(np.float32))
    assert layout.files[0].modalities["acc"].rate_hz == pytest.approx(1 / 60, rel=1e-6)


@pytest.mark.parametrize(
    ("cell", "said"),
    [("26:75:00", "'26:75:00', which is no elapsed time such as 26:15:00"), ("later", "'later', which is no elapsed"),
     ("", "row 121 has no time"), ("23:10:00", "time goes back to times that were there before")],
)  # fmt: skip
def test_what_is_no_elapsed_time_is_named(cell: str, said: str, tmp_path: Path) -> None:
    write(tmp_path / "x" / "a.csv", ["t|acc_x|acc_y", *rows(elapsed), f"{cell}|1|1", "99:00:00|1|1"])
    given = {"path": "{recording}.csv", "time": {"column": "t", "unit": "elapsed"},
             "modalities": {"acc": {"columns": ["acc_x", "acc_y"], "rate_hz": 1 / 60}}}  # fmt: skip
    layout = TableLayout.model_validate({"name": "x", "task": "none", "window": {"length_s": 600}, "files": [given]})
    with pytest.raises(DataError, match=re.escape(said)):
        list(convert(str(tmp_path / "x"), layout).parts[0].samples(Remarks()))


@pytest.mark.parametrize("ids", [("1", "2", "03"), ("left", "right")])
@pytest.mark.parametrize("mark", [",", ";"])
def test_a_row_for_each_sensor_makes_modalities(ids: tuple[str, ...], mark: str, tmp_path: Path) -> None:
    head = "time|sensor_id|temp"
    lines = [f"{n}|{sensor}|{10 * k + n % 5 / 10}" for n in range(ROWS) for k, sensor in enumerate(ids)]
    for name in "ab":
        write(tmp_path / "x" / f"{name}.csv", [head, *lines], mark=mark)
    layout, found, doubtful = inferred(tmp_path / "x")
    assert "column 'sensor_id' tells apart the rows of one time" in " ".join(doubtful)
    assert len(layout.files[0].modalities) == len(ids)
    for k, sensor in enumerate(sorted(ids, key=lambda text: text.lstrip("0"))):
        place = ids.index(sensor)
        expected = (10 * place + np.arange(ROWS) % 5 / 10).astype(np.float32)
        np.testing.assert_array_equal(values(found)[list(layout.files[0].modalities)[k]][:, 0], expected)


def test_sensors_that_a_layout_does_not_name_are_counted(tmp_path: Path) -> None:
    lines = [f"{n}|{sensor}|{n}" for n in range(9) for sensor in "ABC"]
    write(tmp_path / "x" / "a.csv", ["time|id|v", *lines])
    modalities = {name: {"columns": ["v"], "rows": {"id": name.upper()}} for name in "ab"}
    given = {"path": "{recording}.csv", "time": {"column": "time"}, "modalities": modalities}
    layout = TableLayout.model_validate({"name": "x", "task": "none", "window": {"length_s": 2}, "files": [given]})
    remarks = Remarks()
    (recording,) = convert(str(tmp_path / "x"), layout).parts[0].samples(remarks)
    assert isinstance(recording, RawRecording)
    assert sorted(recording.values) == ["a", "b"]
    assert remarks.counts["rows that are of no modality in the layout (see rows), left out"] == 9


def test_rows_of_coarse_times_are_no_sensors(tmp_path: Path) -> None:
    lines = [f"{n // 8}|{n % 8}|{x}" for n, x in enumerate(ACC[:, 0].tolist())]
    write(tmp_path / "x" / "a.csv", ["time|sample|acc", *lines])
    layout, _, doubtful = inferred(tmp_path / "x")
    assert not any(m.rows for m in layout.files[0].modalities.values())
    assert any("rows share one time" in doubt for doubt in doubtful)


def test_blocks_of_rows_with_the_same_times_are_recordings_and_asked_about(tmp_path: Path) -> None:
    lines = [f"{n}|{sensor}|{n % 5 / 10}" for sensor in "AB" for n in range(ROWS)]
    write(tmp_path / "x" / "a.csv", ["time|sensor|temp", *lines])
    layout, found, doubtful = inferred(tmp_path / "x")
    assert layout.files[0].recording == "sensor"
    assert sorted(found) == ["A", "B"]
    assert any("if it names sensors of one recording, sort the rows by time" in doubt for doubt in doubtful)


@pytest.mark.parametrize(("footers", "found"), [
    (("End of file", None, None), "End of file"), (("Made by Anna", "Made by Bob", None), "Made by"),
])  # fmt: skip
def test_files_with_and_without_a_footer_are_of_one_kind(
    footers: tuple[str | None, ...], found: str, tmp_path: Path
) -> None:
    for name, footer in zip("abc", footers, strict=True):
        write(tmp_path / "x" / f"{name}.csv", ["time|acc_x|acc_y", *rows(), *([footer] if footer else [])])
    layout, recordings, _ = inferred(tmp_path / "x")
    assert [(file.path, file.footer) for file in layout.files] == [("{recording}.csv", found)]
    for name in "abc":
        np.testing.assert_array_equal(values(recordings, name)["acc"], ACC.astype(np.float32))


def test_footers_without_anything_in_common_are_refused(tmp_path: Path) -> None:
    for name, footer in zip("abc", ("End of file", "End of file", "Total|1|2"), strict=True):
        write(tmp_path / "x" / f"{name}.csv", ["time|acc_x|acc_y", *rows(), footer])
    with pytest.raises(DataError, match="'Total' in row 121 is not a number"):
        inferred(tmp_path / "x")


def test_a_header_is_no_footer(tmp_path: Path) -> None:
    write(tmp_path / "x" / "a.csv", ["Total|acc_x|acc_y", *rows(), "Total|1|2"])
    given = {"path": "{recording}.csv", "time": {"column": "Total"}, "footer": "Total",
             "modalities": {"acc": {"columns": ["acc_x", "acc_y"]}}}  # fmt: skip
    layout = TableLayout.model_validate({"name": "x", "task": "none", "window": {"length_s": 4}, "files": [given]})
    (recording,) = convert(str(tmp_path / "x"), layout).parts[0].samples(Remarks())
    assert isinstance(recording, RawRecording)
    assert len(recording.values["acc"]) == ROWS
