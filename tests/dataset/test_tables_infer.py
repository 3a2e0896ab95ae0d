"""`--infer` on folders of many kinds: what it writes packs, and gives the values, times, labels and people."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import yaml
from pack_dataset import main
from table_folders import wristbands

from maestro_dist.data.parts import Remarks
from maestro_dist.data.recordings.raw import RawRecording
from maestro_dist.data.tables.conversion import convert
from maestro_dist.data.tables.infer import look
from maestro_dist.data.tables.layout import TableLayout, load_layout
from maestro_dist.data.tables.layout_text import doubts, layout_text
from maestro_dist.errors import ConfigError, DataError

N = 400
DRAW = np.random.default_rng(0)


def write(
    path: Path, head: Sequence[str] | None, columns: Sequence[object], separator: str = ",", point: str = "."
) -> None:
    """A table of columns: numbers (NaN is an empty cell), or texts."""
    path.parent.mkdir(parents=True, exist_ok=True)

    def cell(value: object) -> str:
        if isinstance(value, float | np.floating):
            return "" if np.isnan(value) else f"{value:.4f}".replace(".", point)
        return str(value)

    rows = [separator.join(map(cell, row)) for row in zip(*columns, strict=True)]  # type: ignore[call-overload]
    lines = [separator.join(head), *rows] if head else rows
    path.write_text("\n".join(lines) + "\n")


def inferred(folder: Path) -> tuple[TableLayout, dict[str, RawRecording], list[str]]:
    """What is written for a folder, the recordings that it makes, and the doubts."""
    text = layout_text(look(str(folder)))
    path = folder.parent / "layout.yaml"
    path.write_text(text)
    layout, _ = load_layout(str(path))
    conversion = convert(str(folder), layout)
    made = [r for part in conversion.parts for r in part.samples(Remarks())]
    return layout, {r.key: r for r in made if isinstance(r, RawRecording)}, doubts(text)


def seconds(rate_hz: float, start: float = 0.0) -> np.ndarray:
    return start + np.arange(N) / rate_hz


def signals(layout: TableLayout) -> dict[str, tuple[list[str], float, str]]:
    return {name: (m.columns, m.rate_hz, m.unit) for file in layout.files for name, m in file.modalities.items()}


def test_a_folder_for_each_person_with_several_rates_gaps_and_intervals(tmp_path: Path) -> None:
    wristbands(tmp_path / "wrist", people=3)
    layout, found, doubtful = inferred(tmp_path / "wrist")
    assert doubtful == []
    assert [file.path for file in layout.files] == [
        "{subject}/acc.csv", "{subject}/heart.csv", "{subject}/labels.csv", "people.csv",
    ]  # fmt: skip
    assert signals(layout) == {
        "acc": (["acc_x", "acc_y", "acc_z"], 16, ""), "bpm": (["bpm"], 1, ""), "age": (["age"], 1, ""),
    }  # fmt: skip
    assert (layout.name, layout.task, set(layout.classes)) == ("wrist", "classification", {"rest", "walk", "run"})
    assert (layout.window.length_s, layout.window.stride_s) == (10, 5)
    assert [(r.subject, r.group, len(r.labels)) for r in found.values()] == [(f"P0{k}", "ABA"[k], 8) for k in range(3)]


def test_one_file_for_each_recording_with_a_slower_column_and_a_label_column(tmp_path: Path) -> None:
    for k in range(3):
        pulse = np.where(np.arange(N) % 20 == 0, 60.0, np.nan)
        states = ["walk" if i < 200 else "run" for i in range(N)]
        columns = [seconds(20, 1.6e9), *DRAW.normal(size=(3, N)), pulse, states]
        head = ["timestamp", "acc_x", "acc_y", "acc_z", "hr (1/min)", "activity"]
        write(tmp_path / f"flat/rec_{k}.csv", head, columns)
    layout, found, doubtful = inferred(tmp_path / "flat")
    assert [doubt.partition(":")[0] for doubt in doubtful] == ["no person is named"]
    assert layout.files[0].path == "rec_{recording}.csv"
    assert signals(layout) == {"acc": (["acc_x", "acc_y", "acc_z"], 20, ""), "hr": (["hr (1/min)"], 1, "1/min")}
    assert [(len(r.values["acc"]), len(r.values["hr"])) for r in found.values()] == [(400, 20)] * 3
    begin, middle, end = found["1"].labels[0][0], found["1"].labels[1][0], found["1"].labels[1][1]
    assert (begin, middle, round(end, 3), found["1"].labels[1][2]) == (0, 10, 20, "run")


def test_one_file_with_people_and_sessions_in_german(tmp_path: Path) -> None:
    people = ["anna"] * 200 + ["ben"] * 200
    sessions = [1] * 100 + [2] * 100 + [1] * 200
    times = [*range(100), *range(100), *range(200)]
    columns = [people, sessions, times, DRAW.normal(size=N), [i // 50 % 3 for i in range(N)]]
    path = tmp_path / "big/all.csv"
    write(path, ["subject", "session", "Zeit", "temp (°C)", "label"], columns, ";", ",")
    path.write_bytes(path.read_text().encode("latin-1"))
    layout, found, _ = inferred(tmp_path / "big")
    assert signals(layout) == {"temp": (["temp (°C)"], 1, "°C")}
    assert {(key, r.subject, len(r.values["temp"])) for key, r in found.items()} == {
        ("anna-1", "anna", 100), ("anna-2", "anna", 100), ("ben-1", "ben", 200),
    }  # fmt: skip
    assert list(layout.classes) == ["0", "1", "2"]


def test_person_session_and_side_in_the_path_with_milliseconds(tmp_path: Path) -> None:
    for person in ("S01", "S02", "S10"):
        for session in ("am", "pm"):
            for side in ("left", "right"):
                times = np.round(seconds(50, 1.65e9) * 1000).astype(np.int64)
                write(
                    tmp_path / f"x/{person}/{session}/{side}.csv",
                    ["ts", "x", "y", "z"],
                    [times, *DRAW.normal(size=(3, N))],
                )
            start = np.array([1.65e12, 1.65e12 + 4000]).astype(np.int64)
            write(
                tmp_path / f"x/{person}/{session}/events.csv",
                ["onset", "duration", "event"],
                [start, [4000, 4000], ["a", "b"]],
            )
    layout, found, doubtful = inferred(tmp_path / "x")
    assert doubtful == []
    assert signals(layout) == {"left": (["x", "y", "z"], 50, ""), "right": (["x", "y", "z"], 50, "")}
    assert set(found) == {f"{p}-{s}" for p in ("S01", "S02", "S10") for s in ("am", "pm")}
    assert found["S10-pm"].subject == "S10"
    assert found["S10-pm"].labels == [(0, 4, "a"), (4, 8, "b")], "durations are in the unit of the times"


def test_many_files_of_one_kind_are_not_all_kept(tmp_path: Path) -> None:
    """More files than are looked at closely: a label that only the last one has is a class; each side has its rate."""
    for side, rate in (("left", 10), ("right", 20)):
        for k in range(15):
            state = "rare" if k == 14 else ("no" if k % 2 else "none")
            columns = [seconds(rate), DRAW.normal(size=N), [state] * N]
            write(tmp_path / f"many/{side}/P{k:02d}.csv", ["time", "force", f"{side}_state"], columns)
    for side in ("left", "right"):  # the same columns on both sides
        for path in (tmp_path / f"many/{side}").glob("*.csv"):
            path.write_text(path.read_text().replace(f"{side}_state", "state"))
    layout, found, _ = inferred(tmp_path / "many")
    assert {name: rate for name, (_, rate, _) in signals(layout).items()} == {"left_force": 10, "right_force": 20}
    assert set(layout.classes) == {"no", "none", "rare"}
    assert len(found) == 15


def test_folders_of_classes_without_time(tmp_path: Path) -> None:
    for state in ("walk", "sit"):
        for k in range(3):
            write(tmp_path / f"cls/{state}/{k:02d}.csv", ["x", "y", "z"], DRAW.normal(size=(3, N)))
    layout, found, doubtful = inferred(tmp_path / "cls")
    assert layout.files[0].path == "{label}/{recording}.csv"
    assert [r.labels for r in found.values()] == ["sit"] * 3 + ["walk"] * 3
    assert len(doubtful) == 3, "no person, no time, and the label in the path"


def test_given_splits_and_a_table_of_outcomes(tmp_path: Path) -> None:
    for k in range(6):
        split = "training" if k < 4 else "test"
        write(
            tmp_path / f"icu/{split}/p{k}.csv",
            ["time", "heart_rate", "spo2"],
            [seconds(1 / 60), *DRAW.normal(size=(2, N))],
        )
    outcomes = [[f"p{k}" for k in range(6)], [50.0 + k for k in range(6)], [k % 2 for k in range(6)]]
    write(tmp_path / "icu/outcomes.csv", ["patient_id", "age", "died"], outcomes)
    layout, found, doubtful = inferred(tmp_path / "icu")
    assert doubtful == []
    assert layout.files[0].path == "{split}/{subject}.csv"
    assert [(r.subject, r.split, r.labels) for r in found.values()] == [
        (f"p{k}", "test" if k > 3 else "train", str(k % 2)) for k in (4, 5, 0, 1, 2, 3)
    ]
    assert found["training-p2"].values["age"].tolist() == [[52.0]]
    assert layout.files[0].modalities["spo2"].rate_hz == pytest.approx(1 / 60)


def test_dates_with_the_day_first(tmp_path: Path) -> None:
    start = datetime(2024, 3, 20, 12)
    dates = [(start + timedelta(seconds=i)).strftime("%d.%m.%Y %H:%M:%S") for i in range(N)]
    for k in range(2):
        write(tmp_path / f"de/u{k}.csv", ["Datum Zeit", "Puls"], [dates, 60 + DRAW.normal(size=N)], ";", ",")
    layout, found, _ = inferred(tmp_path / "de")
    assert layout.files[0].time is not None
    assert layout.files[0].time.format == "%d.%m.%Y %H:%M:%S"
    assert [len(r.values["puls"]) for r in found.values()] == [N, N]


def test_a_date_that_may_be_read_in_two_ways_is_asked_about(tmp_path: Path) -> None:
    dates = [f"03/04/2024 10:{i // 60:02d}:{i % 60:02d}" for i in range(N)]
    write(tmp_path / "us/a.csv", ["date", "pulse"], [dates, DRAW.normal(size=N)])
    assert inferred(tmp_path / "us")[2] == ["day first, or month first?"]


def test_no_header_a_preamble_row_numbers_and_parquet(tmp_path: Path) -> None:
    for k in range(2):
        write(tmp_path / f"bare/user{k}.csv", None, [seconds(10), *DRAW.normal(size=(2, N))])
    layout, found, _ = inferred(tmp_path / "bare")
    assert signals(layout) == {"c": (["c2", "c3"], 10, "")}
    assert set(found) == {"user0", "user1"}

    path = tmp_path / "pre/r.csv"
    write(path, ["", "time", "ecg [mV]"], [list(range(N)), seconds(100), DRAW.normal(size=N)])
    path.write_text("# device 7\n# rate 100\n" + path.read_text())
    layout, found, _ = inferred(tmp_path / "pre")
    assert signals(layout) == {"ecg": (["ecg [mV]"], 100, "mV")}
    assert list(found) == ["all"]

    import pandas as pd

    (tmp_path / "pq").mkdir()
    for k in range(2):
        index = pd.date_range("2024-01-01", periods=N, freq="100ms", name="time")
        pd.DataFrame({"x": DRAW.normal(size=N), "y": DRAW.normal(size=N)}, index).to_parquet(
            tmp_path / f"pq/r{k}.parquet"
        )
    layout, found, _ = inferred(tmp_path / "pq")
    assert signals(layout) == {"signals": (["x", "y"], 10, "")}
    assert len(found) == 2


def test_irregular_times_get_a_step_and_a_question(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for k in range(3):
        times = np.cumsum(draw.exponential(5000, size=N))
        write(tmp_path / f"labs/p{k}.csv", ["charttime", "lactate"], [times, DRAW.normal(size=N)])
    layout, found, doubtful = inferred(tmp_path / "labs")
    assert layout.files[0].modalities["lactate"].grid == "mean"
    assert doubtful == ["lactate: irregular times: a step is now 3600 s, the mean of its rows"]
    assert len(found) == 3


def test_numbers_as_labels(tmp_path: Path) -> None:
    for k in range(2):
        target = np.repeat(60 + DRAW.normal(size=4), 100)
        write(tmp_path / f"reg/s{k}.csv", ["time", "ppg", "target"], [seconds(25), DRAW.normal(size=N), target])
    layout, found, _ = inferred(tmp_path / "reg")
    assert (layout.task, layout.classes) == ("regression", {})
    assert len(found["s0"].labels) == 4


@pytest.mark.parametrize(
    "hostile",
    ["a: b.csv", "x{y}.csv", "it's #1.csv", "na\u00efve \u202e.csv", "- [x].csv", "*.csv", "null.csv"],
)
def test_names_that_are_yaml_stay_names(hostile: str, tmp_path: Path) -> None:
    write(tmp_path / "odd" / hostile, ["time", "a: #b", "- c", "null"], [seconds(5), *DRAW.normal(size=(3, N))])
    layout, found, _ = inferred(tmp_path / "odd")
    assert [m.columns for m in layout.files[0].modalities.values()] == [["a: #b"], ["- c"], ["null"]]
    assert len(found) == 1


def no_files(folder: Path) -> None:
    folder.mkdir()


def no_numbers(folder: Path) -> None:
    write(folder / "a.csv", ["name", "colour"], [["x", "y"], ["red", "blue"]])


def not_tables(folder: Path) -> None:
    folder.mkdir()
    (folder / "a.parquet").write_bytes(b"PAR1 no")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (no_files, "no table; the names"),
        (no_numbers, "columns with measured numbers"),
        (not_tables, "not a Parquet file"),
    ],
)
def test_where_nothing_can_be_inferred(make: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    make(tmp_path / "x")
    with pytest.raises(DataError, match=message):
        look(str(tmp_path / "x"))


def test_the_command_writes_a_layout_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wristbands(tmp_path / "wrist", people=2)
    words = ["csv", "--source", str(tmp_path / "wrist"), "--infer", str(tmp_path / "wrist.yaml")]
    assert main(words) == 0
    out = capsys.readouterr().out
    text = (tmp_path / "wrist.yaml").read_text()
    assert text in out
    assert f"--layout {tmp_path / 'wrist.yaml'} --out data/wrist" in out
    assert yaml.safe_load(text)["classes"] == ["rest", "run", "walk"]
    with pytest.raises(ConfigError, match="the file exists; --overwrite replaces it"):
        main(words)
    pack = ["csv", "--source", str(tmp_path / "wrist"), "--layout", str(tmp_path / "wrist.yaml")]
    assert main([*pack, "--out", str(tmp_path / "packed")]) == 0
    assert (tmp_path / "packed/manifest.json").exists()


def test_gases_are_no_axes_of_one_sensor(tmp_path: Path) -> None:
    head = ["time", "co", "co2", "pm10", "pm25", "acc_x", "acc_y"]
    write(tmp_path / "air/a.csv", head, [seconds(1), *DRAW.normal(size=(6, N))])
    found = {name: columns for name, (columns, _, _) in signals(inferred(tmp_path / "air")[0]).items()}
    assert found == {"co": ["co"], "co2": ["co2"], "pm": ["pm10", "pm25"], "acc": ["acc_x", "acc_y"]}
