"""Generated files in the layouts of Stress-Predict and UCI HAPT: a few people, a few seconds each."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from maestro_dist.data.converters.stress_predict import KINDS, LABELS

START = 1000


def stream(kind: str, seconds: int, value: float = 1.0) -> str:
    """The text of a file such as `EDA.csv`: start, rate, samples."""
    about = KINDS[kind]
    rows = [[START], [about.rate_hz], *([value + step / 64] for step in range(about.rate_hz * seconds))]
    return "".join(",".join([f"{number:g}" for number in row] * about.variates) + "\n" for row in rows)


def stress(folder: Path, subjects: Iterable[int] = (4, 5), seconds: int = 12) -> Path:
    """`Raw_data/SXX` and the labels of all of them."""
    rows = ["Participant,HR,respr,Time(sec),Label"]
    for subject in subjects:
        place = folder / "Raw_data" / f"S{subject:02d}"
        place.mkdir(parents=True)
        for kind in KINDS:
            (place / f"{kind.upper()}.csv").write_text(stream(kind, seconds, subject))
        rows += [f"{subject},70,12,{START + second},{second // 4 % 2}" for second in range(seconds)]
    (folder / "Processed_data").mkdir(parents=True)
    (folder / "Processed_data" / LABELS).write_text("\n".join(rows) + "\n")
    return folder


def hapt(folder: Path, users: Iterable[int] = (1, 6), rows: int = 60) -> Path:
    """`RawData` with one experiment for each user, numbered like the user, with one labelled segment."""
    place = folder / "RawData"
    place.mkdir(parents=True)
    for user in users:
        for sensor in ("acc", "gyro"):
            text = "".join(f"{user} {row / 8} {len(sensor)}\n" for row in range(rows))
            (place / f"{sensor}_exp{user:02d}_user{user:02d}.txt").write_text(text)
    (place / "labels.txt").write_text("".join(f"{user} {user} 5 0 {rows - 1}\n" for user in users))
    return folder
