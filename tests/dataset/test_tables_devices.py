"""`--infer` on exports as devices and hospitals write them: right, or asked about."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from test_tables_infer import inferred, signals

from maestro_dist.data.tables.infer import look
from maestro_dist.errors import DataError

DRAW = np.random.default_rng(0)
DAY = datetime(2024, 3, 5, 22)


def lines(path: Path, rows: Sequence[str], encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(("\r\n".join(rows) + "\r\n").encode(encoding))


def draws(columns: int, point: str = ".", between: str = ",") -> str:
    return between.join(f"{value:.3f}".replace(".", point) for value in DRAW.normal(size=columns))


def test_start_and_rate_in_the_first_rows(tmp_path: Path) -> None:
    """Files of Empatica E4, with one table of labels of people in absolute time; files of taps are no signals."""
    labels = ["subject,start,end,label"]
    for person in range(2):
        for session in range(2):
            start = 1_700_000_000 + 9000 * person + 4000 * session
            place = tmp_path / f"e4/S{person:02d}/{start}_A01"
            lines(
                place / "ACC.csv", [", ".join([f"{start}.00"] * 3), "32.0, 32.0, 32.0", *(draws(3) for _ in range(640))]
            )
            lines(place / "HR.csv", [f"{start + 10}.00", "1.0", *(draws(1) for _ in range(30))])
            lines(place / "IBI.csv", [f"{start}.00, IBI", "0.5,0.8", "1.3,0.8"])
            lines(place / "tags.csv", [f"{start + 3}.5", f"{start + 7}.5"])
            labels += [f"S{person:02d},{start},{start + 10},rest", f"S{person:02d},{start + 10},{start + 20},stress"]
    lines(tmp_path / "e4/labels.csv", labels)
    layout, found, doubtful = inferred(tmp_path / "e4")
    assert doubtful == []
    assert signals(layout) == {"acc": (["c1", "c2", "c3"], 32, ""), "hr": (["c1"], 1, "")}
    recording = found["S01-1700013000"]
    assert (recording.start_s, recording.subject) == ({"acc": 0, "hr": 10}, "S01")
    assert recording.labels == [(0, 10, "rest"), (10, 20, "stress")]
    assert (len(recording.values["acc"]), len(recording.values["hr"])) == (640, 30)
    assert any("IBI.csv: its header has the time" in remark for remark in look(str(tmp_path / "e4")).remarks)


def test_a_row_of_units_and_the_separator_in_the_first_line(tmp_path: Path) -> None:
    for person in range(2):
        rows = ["\t".join([f"{1.6e12 + k * 1000 / 51.2:.4f}", draws(3, between="\t")]) + "\t" for k in range(400)]
        head = ['"sep=\t"', "Timestamp_Unix_CAL\tAccel_X_CAL\tAccel_Y_CAL\tGSR\t", "ms\tm/(s^2)\tm/(s^2)\tuS\t"]
        lines(tmp_path / f"shimmer/S{person}.csv", [*head, *rows])
    layout, found, doubtful = inferred(tmp_path / "shimmer")
    assert doubtful == []
    assert signals(layout) == {
        "accel_cal": (["Accel_X_CAL", "Accel_Y_CAL"], 51.2, "m/(s^2)"), "gsr": (["GSR"], 51.2, "uS"),
    }  # fmt: skip
    assert len(found["S0"].values["gsr"]) == 400


def test_lines_before_the_header_say_the_rate(tmp_path: Path) -> None:
    for person in range(2):
        head = ["----- Data File at 30 Hz  Filter Normal -----", "Serial Number: MOS2", "Start Time 10:30:00", "-----"]
        rows = [draws(3) for _ in range(100)]
        lines(tmp_path / f"graph/P{person:02d}.csv", [*head, "Accelerometer X,Accelerometer Y,Accelerometer Z", *rows])
    layout, _, doubtful = inferred(tmp_path / "graph")
    assert doubtful == ["there is no time: rows follow each other: 30 Hz, says a line before the header"]
    assert layout.files[0].modalities["accelerometer"].rate_hz == 30


def test_header_lines_that_have_as_many_cells_as_rows(tmp_path: Path) -> None:
    head = [
        "Interval=\t0.01 s",
        "ExcelDateTime=\t4.4E+04\t05/03/2022",
        "TimeFormat=\tStart",
        "ChannelTitle=\tECG\tResp",
    ]
    for person in range(2):
        rows = [f"{k / 100:.2f}\t{draws(2, between=chr(9))}" for k in range(200)]
        lines(tmp_path / f"chart/P{person}.txt", [*head, "Range=\t10 mV\t1 V", *rows])
    layout, found, _ = inferred(tmp_path / "chart")
    assert signals(layout) == {"ecg": (["ECG"], 100, "10 mV"), "resp": (["Resp"], 100, "1 V")}
    assert len(found["P0"].values["ecg"]) == 200


def test_dates_are_taken_where_other_files_have_only_dates(tmp_path: Path) -> None:
    """Files of a chest strap: whole ms that are 8 ms apart at 130 Hz, and times of the sensor beside them."""
    for person in range(2):
        place = tmp_path / f"strap/P{person}"
        stamps = [(DAY + timedelta(seconds=k / 130)).isoformat(timespec="milliseconds") for k in range(2000)]
        rows = [
            f"{at};{599_000_000_000_000_000 + k * 7_692_307};{k * 7.692:.3f};{draws(1)}" for k, at in enumerate(stamps)
        ]
        lines(place / "ECG.txt", ["Phone timestamp;sensor timestamp [ns];timestamp [ms];ecg [uV]", *rows])
        rows = [f"{(DAY + timedelta(seconds=k)).isoformat()};{60 + k % 9};" for k in range(15)]
        lines(place / "HR.txt", ["Phone timestamp;HR [bpm];", *rows])
    layout, found, doubtful = inferred(tmp_path / "strap")
    assert doubtful == ["times are 'Phone timestamp', as other files have dates, and not 'timestamp [ms]'"]
    assert signals(layout) == {"ecg": (["ecg [uV]"], 130, "uV"), "hr": (["HR [bpm]"], 1, "bpm")}
    assert found["P1"].start_s == {"ecg": 0, "hr": 0}


def test_one_row_for_each_value(tmp_path: Path) -> None:
    """A hospital export: patient, time, item, value; values of a text item are left out."""
    rows, expected = [], {}
    for patient in (7, 8):
        for hour in range(30):
            at = datetime(2150, 1, 1, hour % 24) + timedelta(days=hour // 24)
            expected[patient, hour] = round(80 + DRAW.normal(), 2)
            rows.append(f"{patient},{at},Heart Rate,{expected[patient, hour]},bpm")
            rows += [f"{patient},{at},Temp,{37 + hour % 5},degC"] if hour % 3 == 0 else []
            rows += [f"{patient},{at},Alertness,calm,"] if hour % 6 == 0 else []
    lines(tmp_path / "icu/events.csv", ["patient,time,itemname,value,unit", *rows])
    lines(tmp_path / "icu/outcome.csv", ["patient,age,hospital_id,in_hospital_death", "7,61,400,0", "8,70,401,1"])
    layout, found, doubtful = inferred(tmp_path / "icu")
    assert "column 'itemname' names what column 'value' has: 2 modalities" in doubtful
    assert {name: (columns, unit) for name, (columns, _, unit) in signals(layout).items()} == {
        "heart_rate": (["Heart Rate"], "bpm"), "temp": (["Temp"], "degC"), "age": (["age"], ""),
    }  # fmt: skip
    assert layout.target == "in_hospital_death", "an outcome is no input"
    assert found["8"].labels == "1"
    np.testing.assert_allclose(
        found["8"].values["heart_rate"][:, 0], [expected[8, hour] for hour in range(30)], rtol=1e-6
    )
    assert len(found["7"].values["temp"]) == 10


def test_the_same_in_parquet_with_numbers_as_items(tmp_path: Path) -> None:
    import pandas as pd

    (tmp_path / "pq").mkdir()
    times = np.repeat(np.arange(60) * 60, 2)
    items = np.tile([220045, 220277], 60)
    frame = pd.DataFrame(
        {"subject_id": 1, "time": times, "itemid": items, "valuenum": np.where(items == 220045, 80.0, 97.0)}
    )
    frame.to_parquet(tmp_path / "pq/events.parquet")
    _, found, _ = inferred(tmp_path / "pq")
    assert {name: values.mean() for name, values in found["1"].values.items()} == {"220045": 80, "220277": 97}


def test_am_and_pm_over_midnight_tell_the_month(tmp_path: Path) -> None:
    for person in range(2):
        rows = [f"{DAY + timedelta(minutes=m):%m/%d/%Y %I:%M:%S %p},{60 + m % 7}" for m in range(400)]
        lines(tmp_path / f"band/user{person}.csv", ["Timestamp,Heart Rate (bpm)", *rows])
    layout, _, doubtful = inferred(tmp_path / "band")
    assert doubtful == []
    assert layout.files[0].time is not None
    assert layout.files[0].time.format == "%m/%d/%Y %I:%M:%S %p"


@pytest.mark.parametrize(("form", "head"), [("%Y-%m-%d,%H:%M:%S", "Date,Time"), ("%d.%m.%Y,%H:%M", "Datum,Uhrzeit")])
def test_date_and_time_in_two_columns(form: str, head: str, tmp_path: Path) -> None:
    for person in range(2):
        rows = [f"{DAY + timedelta(minutes=m):{form}},{60 + m % 7}" for m in range(300)]
        lines(tmp_path / f"two/P{person}.csv", [f"{head},pulse", *rows])
    layout, found, doubtful = inferred(tmp_path / "two")
    assert doubtful == []
    assert layout.files[0].time is not None
    assert layout.files[0].time.columns == head.split(",")
    assert len(found["P0"].values["pulse"]) == 300


@pytest.mark.parametrize(
    ("head", "unit", "rate_hz"),
    [("Time (min)", "min", 1 / 300), ("hours", "h", 1 / 18_000), ("elapsed [h]", "h", 1 / 18_000)],
)
def test_minutes_and_hours(head: str, unit: str, rate_hz: float, tmp_path: Path) -> None:
    for person in range(2):
        lines(tmp_path / f"slow/p{person}.psv", [f"{head}|HR", *(f"{k * 5}|{60 + k % 9}" for k in range(200))])
    layout, _, doubtful = inferred(tmp_path / "slow")
    assert doubtful == []
    assert layout.files[0].time is not None
    assert (layout.files[0].time.unit, layout.files[0].modalities["hr"].rate_hz) == (unit, pytest.approx(rate_hz))


def test_times_of_day_with_fractions_go_on_after_midnight(tmp_path: Path) -> None:
    start = datetime(2024, 1, 1, 23, 59, 50)
    for person in range(2):
        stamps = [(start + timedelta(seconds=k / 10)).strftime("%H:%M:%S.%f")[:-3] for k in range(300)]
        lines(tmp_path / f"day/P{person}.csv", ["time,x", *(f"{at},{draws(1)}" for at in stamps)])
    _, found, doubtful = inferred(tmp_path / "day")
    assert doubtful == []
    assert len(found["P0"].values["x"]) == 300


def test_dates_only_some_of_which_have_a_zone_are_refused_with_the_row(tmp_path: Path) -> None:
    stamps = [(DAY + timedelta(seconds=k)).isoformat() + ("Z" if k < 200 else "") for k in range(300)]
    lines(tmp_path / "zone/P0.csv", ["time,x", *(f"{at},{draws(1)}" for at in stamps)])
    with pytest.raises(DataError, match=r"row 1 has .*Z' and row 201 .*: only one of them names its zone; add it"):
        inferred(tmp_path / "zone")


def test_columns_that_are_no_measurements(tmp_path: Path) -> None:
    """Row numbers, identifiers, other clocks and other names of the label are not given to the model."""
    head = "time,packet_counter,log_id,sensor_timestamp,window_end,acc_x,acc_y,activity,activity_id,sepsis_label"
    for person in range(2):
        rows = [
            f"{k / 10:.1f},{k % 256},{4711 + k // 99},{5000 + k * 100},{k / 10 + 1:.1f},{draws(2)},"
            f"{'ab'[k // 100 % 2]},{k // 100 % 2},{k // 200}"
            for k in range(400)
        ]
        lines(tmp_path / f"many/P{person}.csv", [head, *rows])
    layout, _, doubtful = inferred(tmp_path / "many")
    assert signals(layout) == {"acc": (["acc_x", "acc_y"], 10, "")}
    assert layout.target == "activity"
    assert doubtful == [
        f"column '{name}' may be a label too, and is left out" for name in ("activity_id", "sepsis_label")
    ]


def test_the_index_of_a_frame_is_no_modality(tmp_path: Path) -> None:
    import pandas as pd

    (tmp_path / "all").mkdir()
    parts = [pd.DataFrame({"person": p, "time": np.arange(200) / 20, "ax": DRAW.normal(size=200)}) for p in range(3)]
    pd.concat(parts).to_parquet(tmp_path / "all/data.parquet")
    assert list(signals(inferred(tmp_path / "all")[0])) == ["ax"]


def test_many_lines_before_the_header_and_days_of_spreadsheets(tmp_path: Path) -> None:
    for person in range(2):
        stamps = [(DAY + timedelta(seconds=k / 50)).strftime("%Y-%m-%d %H:%M:%S:%f")[:-3] for k in range(400)]
        rows = [f"{at},{draws(3)}" for at in stamps]
        lines(tmp_path / f"wrist/P{person}.csv", [*(f"Header {k},{k}" for k in range(100)), "", *rows])
        rows = [f"{45_000.5 + k / 8640:.10f};{60 + k % 9}" for k in range(200)]
        lines(tmp_path / f"days/P{person}.csv", ["Time;pulse", *rows])
    layout, found, doubtful = inferred(tmp_path / "wrist")
    assert doubtful == ["there is no header: what are the columns c1, c2, c3, c4?"]
    assert signals(layout) == {"c": (["c2", "c3", "c4"], 50, "")}
    assert len(found["P0"].values["c"]) == 400
    layout, found, doubtful = inferred(tmp_path / "days")
    assert doubtful == ["times are about 45001: days, as in spreadsheets?"]
    assert (layout.files[0].modalities["pulse"].rate_hz, len(found["P0"].values["pulse"])) == (0.1, 200)


def test_rows_of_one_time_are_asked_about(tmp_path: Path) -> None:
    for person in range(2):
        rows = [f"{1_700_000_000 + k - k % 4 // 3},{60 + k % 9}" for k in range(200)]
        lines(tmp_path / f"x/P{person}.csv", ["timestamp,hr", *rows])
    layout, _, doubtful = inferred(tmp_path / "x")
    assert layout.files[0].modalities["hr"].grid == "mean"
    assert doubtful == ["hr: 25% of rows have the time of the row before: a step is now their mean"]


def test_a_table_of_visits_and_tables_of_other_recordings(tmp_path: Path) -> None:
    for person in range(3):
        for visit in (1, 2):
            rows = [f"{k},{draws(1)}" for k in range(60)]
            lines(tmp_path / f"v/P{person}_V{visit}.csv", ["time,x", *rows])
    rows = [f"P{person},V{visit},{50 + person + visit}" for person in range(3) for visit in (1, 2)]
    lines(tmp_path / "v/clinical.csv", ["patient,visit,weight", *rows])
    lines(tmp_path / "v/weather.csv", ["time,temperature", *(f"{k},{draws(1)}" for k in range(60))])
    layout, found, doubtful = inferred(tmp_path / "v")
    assert layout.files[-1].recording_columns == ["patient", "visit"]
    assert found["P2-V1"].values["weight"].tolist() == [[53]]
    assert doubtful == ["weather.csv is left out: its path does not name recordings as {subject}_{recording}.csv does"]


def test_rows_an_hour_apart_are_no_clock_change_if_rows_are_irregular(tmp_path: Path) -> None:
    minutes = np.cumsum(np.tile([60, 5, 40, 20, 75, 10, 30, 60], 8))
    stamps = [datetime(2150, 1, 1) + timedelta(minutes=int(m)) for m in minutes]
    for person in range(2):
        lines(tmp_path / f"x/P{person}.csv", ["charttime,hr", *(f"{at},{60 + n % 9}" for n, at in enumerate(stamps))])
    _, found, doubtful = inferred(tmp_path / "x")
    assert len(found) == 2
    assert "irregular times" in doubtful[0]
