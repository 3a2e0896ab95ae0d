"""A short training on what each converter of a clinical format packs, from the raw files that a configuration names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import runs
import test_data_edf
import test_data_meds
import test_data_mimic
import test_data_wfdb

SPLIT = ["data.split.by=subject", "data.split.folds=3"]


def wfdb(folder: Path) -> dict[str, str]:
    rows = ["record,label"]
    for person in range(9):
        signals = {"II": test_data_wfdb.wave(1500, person), "V": test_data_wfdb.wave(1500, 50 + person)}
        test_data_wfdb.write(folder / "raw" / f"p{person}", f"r{person}", signals)
        rows.append(f"r{person},{'sick' if person % 2 else 'well'}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return {"labels": f"{folder}/labels.csv", "window": "2", "modalities": "ecg=II,V"}


def edf(folder: Path) -> dict[str, str]:
    for person in range(9):
        eeg = test_data_edf.signal(50 * 300, 50, "EEG Fpz-Cz", seed=person)
        notes = [(at, 30, f"Sleep stage {'WR'[(at // 30 + person) % 2]}") for at in range(0, 300, 30)]
        test_data_edf.write(folder / "raw" / f"SC4{person:02d}1E0-PSG.edf", [eeg], notes)
    return {"classes": test_data_edf.STAGES, "window": "10"}


def meds(folder: Path) -> dict[str, str]:
    draw = np.random.default_rng(0)
    events = [event for person in range(1, 31) for event in test_data_meds.person_events(person, draw)]
    test_data_meds.write_events(folder / "raw" / "data" / "0.parquet", events)
    rows = [(person, test_data_meds.T0, person % 2 == 0) for person in range(1, 31)]
    test_data_meds.write_labels(folder / "raw" / "labels" / "0.parquet", rows)
    return {"history_hours": "16"}


def mimic(folder: Path) -> dict[str, str]:
    test_data_mimic.write_tree(folder / "raw", 4, test_data_mimic.tables(people=30))
    return {}


@pytest.mark.slow
@pytest.mark.parametrize("make", [wfdb, edf, meds, mimic])
def test_a_short_training(tmp_path: Path, make: Callable[[Path], dict[str, str]]) -> None:
    options = [f"data.source.options.{name}={value}" for name, value in make(tmp_path).items()]
    source = [f"data.source.converter={make.__name__}", f"data.source.path={tmp_path}/raw"]
    short = ["optim.max_steps=4", "evaluation.draws=[0]", "evaluation.test_rates=[0,0.4]"]
    assert runs.train(tmp_path / "runs", f"{tmp_path}/packed", *source, *options, *SPLIT, *short) == 0
    assert (tmp_path / "packed" / "manifest.json").exists()
