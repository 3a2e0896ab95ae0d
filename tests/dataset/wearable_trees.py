"""Generated files in the layouts of WESAD, PPG-DaLiA, DSADS and PAMAP2: a few people, a few seconds each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import python2_pickle

CHEST = {"ACC": 3, "ECG": 1, "EMG": 1, "EDA": 1, "Temp": 1, "Resp": 1}
WRIST = {"ACC": (32, 3), "BVP": (64, 1), "EDA": (4, 1), "TEMP": (4, 1)}
CONDITIONS = ((0, 5), (1, 20), (0, 5), (3, 10), (2, 15), (7, 5))
"""Labels of WESAD, and how many seconds each lasts."""
ACTIVITIES = ((0, 4), (1, 16), (7, 20), (0, 4), (8, 12))
"""Activities of PPG-DaLiA, and how many seconds each lasts."""

_DSADS = (",".join(["%.5f"] * 45) + "\n") * 125

Change = Callable[[dict[str, Any]], object]


def blocks(states: Iterable[tuple[int, float]], rate_hz: int) -> np.ndarray:
    """A value for each step."""
    return np.concatenate([np.full(round(seconds * rate_hz), value) for value, seconds in states])


def body(person: int, seconds: float, wrist_unit: float) -> dict[str, Any]:
    """`signal` and `subject` of one person; `wrist_unit`: 1 g in the numbers of the wrist's accelerometer."""
    draw = np.random.default_rng(person)

    def signal(key: str, rate_hz: int, variates: int) -> np.ndarray:
        values = draw.normal(size=(round(seconds * rate_hz), variates))
        if key == "ACC":
            values = 0.05 * values + [0.6, 0.0, 0.8]
        return values

    chest = {key: signal(key, 700, variates) for key, variates in CHEST.items()}
    wrist = {key: signal(key, rate_hz, variates) for key, (rate_hz, variates) in WRIST.items()}
    wrist["ACC"] = np.round(wrist["ACC"] * wrist_unit) if wrist_unit > 1 else wrist["ACC"]
    chest["Temp"] = (chest["Temp"] + 33).astype(np.float32)
    return {"signal": {"chest": chest, "wrist": wrist}, "subject": f"S{person}"}


def wesad_person(person: int) -> dict[str, Any]:
    """The dictionary of a `SX.pkl` of WESAD."""
    label = blocks(CONDITIONS, 700).astype(np.int32)
    return {"label": label, **body(person, len(label) / 700, 64)}


def dalia_person(person: int) -> dict[str, Any]:
    """The dictionary of a `SX.pkl` of PPG-DaLiA."""
    activity = blocks(ACTIVITIES, 4)[:, None].astype(np.float64)
    seconds = len(activity) / 4
    rates = 60.0 + np.arange((seconds - 8) // 2 + 1) + person / 100
    about = {"WEIGHT": 78.0, "Gender": " m", "AGE": 34, "HEIGHT": 182.0, "SKIN": 3, "SPORT": 6}
    peaks = np.arange(300, round(seconds * 700), 600)
    return {
        "label": rates,
        "activity": activity,
        "questionnaire": about,
        "rpeaks": peaks,
        **body(person, seconds, 1),
    }


def write_people(
    folder: Path,
    make: Callable[[int], dict[str, Any]],
    people: Iterable[int],
    change: Change = lambda content: None,
    protocol: int = 2,
) -> Path:
    """`SX/SX.pkl` of these people. `change` changes the dictionary of the last one."""
    people = list(people)
    for person in people:
        content = make(person)
        if person == people[-1]:
            change(content)
        place = folder / f"S{person}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"S{person}.pkl").write_bytes(python2_pickle.dumps(content, protocol))
        (place / f"S{person}_quest.csv").write_text("# Subj;S2;;\n")
    return folder


def dsads_rows(activity: int, person: int, segment: int) -> np.ndarray:
    """The 125 rows of one file: the numbers say where they are from."""
    row, column = np.mgrid[:125, :45]
    return activity + person / 10 + segment / 1000 + row / 1e5 - column


def dsads(folder: Path, activities: Iterable[int], people: Iterable[int], segments: int = 60) -> Path:
    """`data/aXX/pY/sZZ.txt`."""
    for activity in activities:
        for person in people:
            place = folder / "data" / f"a{activity:02d}" / f"p{person}"
            place.mkdir(parents=True, exist_ok=True)
            for segment in range(1, segments + 1):
                numbers = tuple(dsads_rows(activity, person, segment).ravel().tolist())
                (place / f"s{segment:02d}.txt").write_text(_DSADS % numbers)
    return folder


def pamap_rows(person: int, states: Sequence[tuple[int, float]]) -> np.ndarray:
    """The rows of a `.dat` file, float64 [n, 54]: a heart rate every 11 rows, and now and then a row without an IMU."""
    activity = blocks(states, 100)
    draw = np.random.default_rng(person)
    rows = draw.normal(size=(len(activity), 54))
    rows[:, 0] = 5.12 + np.arange(len(activity)) / 100
    rows[:, 1] = activity
    rows[:, 2] = np.where(np.arange(len(activity)) % 11 == 3, 80 + person % 10, np.nan)
    for imu in range(3):
        first = 3 + 17 * imu
        rows[:, first + 13 : first + 17] = [1, 0, 0, 0]  # the orientation, which is not valid
        rows[7 + imu :: 97, first : first + 17] = np.nan
    return rows


PROTOCOL = ((0, 3), (1, 14), (0, 2), (4, 20), (5, 7), (17, 13))
"""Activities of PAMAP2, and how many seconds each lasts."""


def pamap(
    folder: Path, people: Iterable[int], states: Sequence[tuple[int, float]] = PROTOCOL, kind: str = "Protocol"
) -> Path:
    """`Protocol/subject10X.dat`."""
    place = folder / kind
    place.mkdir(parents=True, exist_ok=True)
    for person in people:
        write_pamap(place / f"subject{person}.dat", pamap_rows(person, states))
    return folder


def write_pamap(path: Path, rows: np.ndarray) -> None:
    """One `.dat` file."""
    line = " ".join(["%.2f", "%.0f", *["%.6g"] * (rows.shape[1] - 2)]) + "\n"
    path.write_text((line * len(rows) % tuple(rows.ravel().tolist())).replace("nan", "NaN"))
