"""Folders of CSV files as people have them: several rates, gaps, labels as intervals."""

from __future__ import annotations

from pathlib import Path

import numpy as np

START = 1_700_000_000.0
STATES = ("rest", "walk", "run")


def wristbands(folder: Path, people: int = 6, seconds: int = 240, rate_hz: float = 16.0) -> None:
    """PERSON/acc.csv (three axes), heart.csv (once a second, with gaps), labels.csv (start, end, state); people.csv.

    The states differ in the strength of the movement and in the pulse, so that a model can learn them. Each person's
    sensor has its own offset and pulse.
    """
    lines = ["person,age,ward"]
    for person in range(people):
        draw = np.random.default_rng(person)
        place = folder / f"P{person:02d}"
        place.mkdir(parents=True)
        start = START + 1000 * person
        edges = np.arange(0, seconds + 1, 30)
        states = draw.permutation(np.arange(len(edges) - 1) % 3)
        times = np.arange(0, seconds, 1 / rate_hz)
        state = states[(times // 30).astype(int)]
        move = draw.normal(size=(len(times), 3)) * (0.02 + 0.4 * state[:, None]) + draw.normal(size=3)
        keep = ~((times > 61) & (times < 66))  # the sensor failed
        rows = [
            f"{start + t:.4f},{x:.4f},{y:.4f},{z:.4f}"
            for t, (x, y, z) in zip(times[keep].tolist(), move[keep].tolist(), strict=True)
        ]
        (place / "acc.csv").write_text("\n".join(["time,acc_x,acc_y,acc_z", *rows]) + "\n")
        at = np.arange(seconds)
        pulse = 60 + 5 * draw.normal() + 25 * states[at // 30] + draw.normal(size=seconds)
        rows = [
            f"{start + t:.0f},{v:.1f}" if t % 17 else f"{start + t:.0f},"
            for t, v in zip(at.tolist(), pulse, strict=True)
        ]
        (place / "heart.csv").write_text("\n".join(["timestamp,bpm", *rows]) + "\n")
        rows = [
            f"{start + a:.0f},{start + b:.0f},{STATES[s]}" for a, b, s in zip(edges, edges[1:], states, strict=False)
        ]
        (place / "labels.csv").write_text("\n".join(["start,end,state", *rows]) + "\n")
        lines.append(f"P{person:02d},{30 + person},{'AB'[person % 2]}")
    (folder / "people.csv").write_text("\n".join(lines) + "\n")
