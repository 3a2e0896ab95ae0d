"""The metrics file: lost work, half lines, tailing."""

from __future__ import annotations

from pathlib import Path

from maestro_dist.tracking.metric_file import FILE, MetricFile, read_history


def losses(folder: Path) -> list[tuple[int, float]]:
    steps, values = read_history(folder).get("loss", ([], []))
    return [(int(step), float(value)) for step, value in zip(steps, values, strict=True)]


def write(folder: Path, resume: int, steps: range, value: float) -> MetricFile:
    file = MetricFile(folder, resume)
    for step in steps:
        file.append(step, {"loss": value})
    return file


def test_lost_work_counts_no_more(tmp_path: Path) -> None:
    write(tmp_path, 0, range(1, 6), 1.0)
    write(tmp_path, 3, range(4, 8), 2.0)
    write(tmp_path, 5, range(6, 7), 3.0)
    assert losses(tmp_path) == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0), (5, 2.0), (6, 3.0)]


def test_starting_over_drops_everything(tmp_path: Path) -> None:
    write(tmp_path, 0, range(1, 6), 1.0)
    write(tmp_path, 0, range(1, 3), 2.0)
    assert losses(tmp_path) == [(1, 2.0), (2, 2.0)]


def test_a_half_line_of_a_killed_process_is_skipped(tmp_path: Path) -> None:
    write(tmp_path, 0, range(1, 3), 1.0)
    with (tmp_path / FILE).open("ab") as file:
        file.write(b'{"step": 3, "met')
    write(tmp_path, 2, range(3, 4), 2.0)
    assert losses(tmp_path) == [(1, 1.0), (2, 1.0), (3, 2.0)]


def test_reading_in_pieces_gives_the_whole(tmp_path: Path) -> None:
    write(tmp_path, 0, range(1, 30), 1.0)
    file = write(tmp_path, 10, range(11, 40), 2.0)
    seen, offset = [], 0
    while True:
        lines, after = file.read(offset, 7)
        if after == offset:
            break
        seen, offset = seen + lines, after
    assert [(step, metrics["loss"]) for step, metrics in seen] == losses(tmp_path)
    file.append(40, {"loss": 2.0})
    assert file.read(offset, 7)[0] == [(40, {"loss": 2.0})]


def test_no_file_is_an_empty_history(tmp_path: Path) -> None:
    assert read_history(tmp_path) == {}
