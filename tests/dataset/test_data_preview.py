"""The preview of a data set: one page that shows what was packed, whatever the names, gaps and damages are."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import recordings as made
from preview_pages import ABOUT, close_to, preview, samples

from maestro_dist.data.pack import pack, pack_recordings


def test_a_set_of_windows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pack(tmp_path / "set", ABOUT, samples())
    found = preview(tmp_path / "set", folder=tmp_path, samples=6)
    for words in ("CC0", "A. Author 2026", "classification of 2 classes", "activity", "4 s", "16 Hz", "mV"):
        assert words in found.text
    assert "from 15 of 15 samples that were read, in 1 of 1 shard" in found.text
    shown = re.findall(r"(w\d+)(rest|walk), person (\w+-\d), from 10 s of night-(\d+)", found.text)
    assert len(shown) == 18
    assert len(set(shown)) == 18
    given = {s.key: s for s in samples()}
    for key, label, person, night in shown:
        sample = given[key]
        assert (label, person, key) == (ABOUT.classes[int(sample.label)], sample.subject, f"w{night}")
        assert any(f"Sample {key}, {label}, person {person}: acc, ecg" in str(image["alt"]) for image in found.images)
    assert "ecg|mV|16 Hz|64||100 %|68.8 %|" in found.text  # 44 of 64 steps
    assert "rest|8 (53.3 %)|" in found.text
    assert "18 samples shown, 0 warnings" in capsys.readouterr().out


def test_numbers_of_the_table_are_those_of_the_samples(tmp_path: Path) -> None:
    given = samples()
    pack(tmp_path / "set", ABOUT, given)
    found = preview(tmp_path / "set", folder=tmp_path)
    for variate in range(2):
        values = np.stack([np.float32(sample.values["acc"][:, variate]) for sample in given])
        train = values[:15].astype(np.float64)
        row = f"{variate} of 2|100 %|100 %|"
        row += f"{train.mean():.4g}|{train.std():.4g}|{values.min():.4g}|{values.max():.4g}|"
        assert row in found.text


def test_recordings(tmp_path: Path) -> None:
    pack_recordings(tmp_path / "set", made.ABOUT, made.recordings())
    found = preview(tmp_path / "set", folder=tmp_path, samples=3)
    shown = re.findall(r"(r\d): person (p\d), ([\d.]+) s, (\d+) windows in (\w+)", found.text)
    assert [split for *_, split in shown] == ["train", "validation", "test"]
    for key, person, length, windows, split in shown:
        number = int(key[1:])
        assert (person, split) == (f"p{number // 2}", made.SPLITS[number // 2 % 5])
        wanted = [sample for sample in made.windows(made.recordings()) if sample.recording == key]
        assert int(windows) == len(wanted)
        assert float(length) >= 100 + 7 * number
        assert any(f"Recording {key}, person {person}" in str(image["alt"]) for image in found.images)
    assert "8 s, one every 4 s, cut from recordings; splits as packed" in found.text
    assert "Labels: rest walk" in found.text
    assert f"from {len(made.recordings())} of 10 recordings" in found.text
    # eda of p1: present in r2 and not in r3, and 100 of its steps were not observed
    lengths = [max(len(r.values["acc"]) / 16, (len(r.values["eda"]) / 4 - 1.3) if r.values["eda"] is not None else 0)
               for r in made.recordings()[2:4]]  # fmt: skip
    observed = (len(made.recordings()[2].values["eda"]) - 100) / 4
    row = re.search(r"p1\|2\|(\d+)\|(\d+)\|(\d+)\|", found.text)  # person, recordings, then acc, age, eda
    assert row is not None
    assert row[3] == f"{100 * observed / sum(lengths):.0f}"


def test_windows_and_splits_as_a_run_cuts_them(tmp_path: Path) -> None:
    pack_recordings(tmp_path / "set", made.ABOUT, made.recordings())
    ways = ["data.window.length_s=20", "data.split.by=subject", "data.split.test=[p3]", "data.modalities=[acc,age]"]
    found = preview(tmp_path / "set", *ways, folder=tmp_path)
    assert "20 s, one every 20 s" in found.text
    assert "splits by subject" in found.text
    keys = re.findall(r"(r\d)-\d{6}(?:rest|walk), person p3", found.text)
    assert set(keys) <= {"r6", "r7"}
    assert len(keys) == 2
    assert "eda" not in found.text
    found = preview(tmp_path / "set", "--split", "test", *ways, folder=tmp_path)
    assert set(re.findall(r"(?:rest|walk), person (p\d)", found.text)) == {"p3"}


def test_by_time_a_recording_has_windows_of_several_splits(tmp_path: Path) -> None:
    pack_recordings(tmp_path / "set", made.ABOUT, made.recordings())
    ways = ["data.split.by=time", "data.split.allow_shared_people=true"]
    found = preview(tmp_path / "set", *ways, folder=tmp_path)
    assert re.search(r"r\d: person p\d, [\d.]+ s, \d+ windows in train, \d+ in no split, \d+ windows? in", found.text)
    assert "5 people have samples in both 'train' and 'test' (p0, p1" in found.text
    blue, vermilion = (sum(int(close_to(p, c).sum()) for p in found.pictures()) for c in ("#0072B2", "#D55E00"))
    assert min(blue, vermilion) > 1000


def test_regression_and_one_split(tmp_path: Path) -> None:
    about = replace(ABOUT, task="regression", classes=(), target="age in years")
    given = [replace(sample, split="test", label=20.0 + n) for n, sample in enumerate(samples(12))]
    pack(tmp_path / "set", about, given)
    found = preview(tmp_path / "set", folder=tmp_path)
    assert "Target: age in years" in found.text
    assert "test|25.5|3.452|20|31|" in found.text  # mean, std, min, max
    assert any(image["alt"] == "Histogram of the target age in years, by split" for image in found.images)
    assert re.search(r"w\d+2\d, person", found.text)
    assert "without samples: train, validation" in found.text
    assert "Mean and std: of test" in found.text


def test_no_labels_and_recordings_without_people(tmp_path: Path) -> None:
    about = replace(made.ABOUT, task="none", classes=(), target="")
    given = [replace(r, labels=None, subject="", split="") for r in made.recordings(6)]
    pack_recordings(tmp_path / "set", about, given)
    found = preview(tmp_path / "set", folder=tmp_path)
    assert "The data set has no labels." in found.text
    assert "People have no names in this data set." in found.text
    assert "no label, person unknown" in found.text


def test_regression_over_time(tmp_path: Path) -> None:
    about = replace(made.ABOUT, task="regression", classes=())
    given = [
        replace(r, labels=[(a, b, 5.0 + made.ABOUT.classes.index(c)) for a, b, c in r.labels])
        for r in made.recordings()
    ]
    pack_recordings(tmp_path / "set", about, given)
    found = preview(tmp_path / "set", folder=tmp_path)
    assert re.search(r"r\d-\d{6}[56](\.\d+)?, person p\d, from \d+ s of r\d", found.text)
