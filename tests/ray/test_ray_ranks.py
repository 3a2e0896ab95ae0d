"""A run that is killed and goes on with another number of workers, in the middle of an epoch, several times."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
import runs
from key_notes import noted

pytestmark = pytest.mark.slow

EPOCHS, SAMPLES = 3, 81  # those that the share keeps of 101: 6 steps an epoch, the last with one sample
OPTIONS = [
    f"optim.epochs={EPOCHS}", "data.label_share=0.8", "data.shuffle_shards=2", "data.lanes=4", "augment.mixup=0.3",
    "augment.jitter=0.05", "checkpoint.every_steps=2", "optim.optimizer=sgd", "optim.lr=0.02", "model.moe.top_k=4",
    "evaluation.rates=[0]", "evaluation.test_rates=[0]", "evaluation.draws=[0]",
]  # fmt: skip
ALONE = ["run.launcher=inline", "run.workers=1"]
PHASES = [
    (["run.launcher=ray", "run.workers=2", "data.loader_workers=1"], 4),
    ([*ALONE, "data.loader_workers=2"], 10),
    (["run.launcher=ray", "run.workers=2"], None),
]
"""Launcher, and the checkpoint after which the driver is killed."""
PAUSE_S = 1.0  # after each step of a run that is killed: its workers must not reach the next phase's checkpoint


def notes_in(folder: Path, pause_s: float = 0) -> str:
    options = f'{{"folder": "{folder}", "pause_s": {pause_s}}}'
    return f'callbacks=[{{"class": "key_notes:KeyNotes", "options": {options}}}]'


def test_other_ranks_after_each_kill_end_with_the_same_weights(
    synthetic: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=":")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    runs.finish(runs.start(whole, synthetic, *OPTIONS, *ALONE, notes_in(tmp_path / "notes")))
    expected = noted(tmp_path / "notes")
    assert sum(map(len, expected.values())) == EPOCHS * SAMPLES

    for number, (launcher, until) in enumerate(PHASES):
        notes = notes_in(tmp_path / f"notes {number}", PAUSE_S if until else 0)
        process = runs.start(parts, synthetic, *OPTIONS, *launcher, notes)
        if until is None:
            assert "resumes at step" in runs.finish(process)
        else:
            saved = parts / "tiny" / "checkpoints" / f"step-{until:09d}" / "checkpoint.json"
            runs.wait_for(saved.exists, process)
            process.send_signal(signal.SIGKILL)
            process.communicate()
    found: dict[int, list[str]] = {}
    for number in range(len(PHASES)):  # now, because workers outlive their driver for a moment
        found |= noted(tmp_path / f"notes {number}")  # steps after the last checkpoint were done again
    assert found == expected
    one, other = runs.weights(whole), runs.weights(parts)
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(other[name], one[name], atol=2e-5, err_msg=name)  # sums in another order
