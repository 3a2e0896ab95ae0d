"""A callback of a run that notes which samples each step took."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from maestro_dist.callbacks.base import Callback, State, StepRecord


class KeyNotes(Callback):
    """Writes a line for each step of each data rank: the step, and the keys of its samples. Then waits `pause_s`."""

    def __init__(self, folder: str, pause_s: float = 0) -> None:
        self._folder = Path(folder)
        self._pause_s = pause_s

    def on_step(self, state: State, record: StepRecord) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / f"{state.mesh.data_rank}").open("a") as file:
            file.write(json.dumps([record.step, record.keys]) + "\n")
        time.sleep(self._pause_s)


def noted(folder: Path) -> dict[int, list[str]]:
    """The keys of each step that all ranks have noted, in rank order. Of a step that was done twice, the last."""
    ranks: list[dict[int, Any]] = []
    for file in sorted(folder.iterdir()):
        lines = [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
        ranks.append(dict(map(json.loads, lines)))
    steps = sorted(set.intersection(*map(set, ranks)))
    return {step: [key for rank in ranks for key in rank[step]] for step in steps}
