"""What a run says of its data before it begins, and what it refuses: to train, and in a dry run."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import runs
import synthetic

from maestro_dist.data.pack import RawSample, pack

Change = Callable[[RawSample], RawSample | None]


def packed(folder: Path, change: Change) -> str:
    """The generated data set, changed sample by sample; those that become None are left out."""
    samples = [changed for sample in synthetic.samples() if (changed := change(sample)) is not None]
    pack(str(folder), synthetic.describe(), samples)
    return str(folder)


def relabelled(split: str, label: int) -> Change:
    """All samples of a split of one class."""
    return lambda sample: dataclasses.replace(sample, label=label) if sample.split == split else sample


def alone(sample: RawSample) -> RawSample:
    """Each split has its own people."""
    return dataclasses.replace(sample, subject=f"{sample.split}-{sample.subject}")


def dry(folder: Path, data: str, *extra: str) -> int:
    return runs.train(folder / "runs", data, *extra, "--dry-run")


def test_clean_data_is_passed_over_in_silence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dry(tmp_path, packed(tmp_path / "data", alone)) == 0
    assert "warning" not in capsys.readouterr().out


def test_what_a_person_should_know_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def absurd(sample: RawSample) -> RawSample:
        if sample.key in ("train_0005", "train_0017"):
            sample.values["bvp" if "bvp" in sample.values else "acc"][:] = 1e30
        return relabelled("test", 1)(sample)

    data = packed(tmp_path / "data", absurd)
    assert dry(tmp_path, data, "data.train=train") == 0
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning    ")]
    assert [line for line in said if "bvp, variate 0: 256 values in 2 samples of split 'train' lie far from" in line]
    assert [line for line in said if "5 people have samples in both 'train' and 'test' (s0, s1, s2, s3, s4)" in line]
    assert "warning    2 classes ('slow', 'fast') have no sample in split 'test' (data.test): not tested" in (
        "\n".join(said)
    )
    assert dry(tmp_path, data, "data.modalities=[acc,temp]", "data.train=test") == 0
    said_of_some = capsys.readouterr().out
    assert "lie far from" not in said_of_some
    assert "data.train and data.test are both 'test': the results there say nothing" in said_of_some
    assert "2 classes ('slow', 'fast') have no sample in split 'test' (data.train): not learned" in said_of_some


def test_pretraining_does_not_ask_for_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dry(tmp_path, packed(tmp_path / "data", relabelled("train", 1)), "task.kind=pretrain") == 0
    assert "no sample in split" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "extra", "message"),
    [
        (alone, ["data.validation=test"], "data.validation and data.test are both 'test'"),
        (alone, ["data.train=training"], "data.train: no split 'training' in 'synthetic'; did you mean 'train'"),
        (
            lambda sample: None if sample.split == "validation" else sample,
            [],
            r"data.validation: split 'validation' of 'synthetic' has no samples; splits with samples: train \(101\), ",
        ),
        (
            lambda sample: sample if sample.split == "test" else None,
            [],
            r"data.train: split 'train' of 'synthetic' has no samples; splits with samples: test \(37\)",
        ),
        (
            relabelled("validation", 2),
            ["evaluation.metric=auroc"],
            "evaluation.metric=auroc: it needs samples of two .* data.validation=validation has fast 30 only",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_it_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Change, extra: list[str], message: str
) -> None:
    data = packed(tmp_path / "data", change)
    for options in (extra, [*extra, "--dry-run"]):
        assert runs.train(tmp_path / "runs", data, *options) == 2
        said = capsys.readouterr()
        assert re.search(message, said.err)
        assert "step" not in said.out
    assert not (tmp_path / "runs").exists()


def test_a_metric_that_needs_no_two_classes_is_fine(tmp_path: Path) -> None:
    data = packed(tmp_path / "data", relabelled("validation", 2))
    assert dry(tmp_path, data, "evaluation.metric=macro_f1") == 0


def test_a_run_that_chose_on_its_test_split_goes_on_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """New runs may not; one that was begun before that was refused is finished as it is."""
    data = packed(tmp_path / "data", alone)
    assert runs.train(tmp_path / "runs", data, "optim.max_steps=1", "evaluation.draws=[0]") == 0
    run = tmp_path / "runs" / "tiny"
    record = json.loads((run / "run.json").read_text())
    record["identity"]["data.validation"] = "test"
    (run / "run.json").write_text(json.dumps(record))
    capsys.readouterr()
    assert runs.train(tmp_path / "runs", data, "optim.max_steps=1", "evaluation.draws=[0]", "data.validation=test") == 0
    assert "the best weights are chosen on the test data" in capsys.readouterr().out
    assert dry(tmp_path / "other", data, "data.validation=test") == 2
