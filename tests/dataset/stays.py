"""Generated files in the layout of the PhysioNet Challenge 2012."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

OUTCOMES = "RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death"
DESCRIPTORS = {"Age": "54", "Gender": "0", "Height": "-1", "ICUType": "4", "Weight": "-1"}


def stay(record: int, *rows: str, **descriptors: str) -> str:
    """The text of a stay's file; `rows` are "HH:MM,Parameter,Value"."""
    known = {"RecordID": str(record), **DESCRIPTORS, **descriptors}
    return "\n".join(["Time,Parameter,Value", *(f"00:00,{name},{value}" for name, value in known.items()), *rows, ""])


def write(folder: Path, part: str, stays: dict[int, str], died: dict[int, int]) -> None:
    """`set-X` as a folder, and `Outcomes-X.txt`."""
    (folder / f"set-{part}").mkdir(parents=True)
    for record, text in stays.items():
        (folder / f"set-{part}" / f"{record}.txt").write_text(text)
    rows = [f"{record},6,1,5,{-1 if not label else 3},{label}" for record, label in died.items()]
    (folder / f"Outcomes-{part}.txt").write_text("\n".join([OUTCOMES, *rows, ""]))


def small(folder: Path) -> Path:
    """Eleven stays of set-a, three of set-b; each has HR and one more series, the last of set-b none."""
    other = ("Temp", "pH", "Urine", "K")
    for part, first, count in (("a", 132539, 11), ("b", 142675, 3)):
        stays, died = {}, {}
        for number in reversed(range(count)):  # the order of files and outcomes is not that of the RecordIDs
            record = first + 7 * number
            rows = [f"{hour:02d}:30,HR,{60 + number + hour}" for hour in range(0, 48, 1 + number)]
            rows.append(f"0{number % 10}:07,{other[number % 4]},{number}.5")
            alone = part == "b" and number == 2
            stays[record] = stay(record, *([] if alone else rows), Age=str(20 + number), ICUType=str(1 + number % 4))
            died[record] = int(number % 3 == 0)
        write(folder, part, stays, died)
    return folder


def archived(folder: Path, target: Path, suffix: str) -> Path:
    """The same files with each set in an archive, as it is published."""
    target.mkdir()
    for part in "ab":
        (target / f"Outcomes-{part}.txt").write_text((folder / f"Outcomes-{part}.txt").read_text())
        path = target / f"set-{part}{suffix}"
        if suffix == ".zip":
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                for file in sorted((folder / f"set-{part}").iterdir()):
                    archive.write(file, f"set-{part}/{file.name}")
        else:
            with tarfile.open(path, f"w:{suffix.rpartition('.')[2]}") as tar:
                tar.add(folder / f"set-{part}", f"set-{part}")
    return target
