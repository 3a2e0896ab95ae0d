"""What packing finds out: statistics without outliers, people in two splits, data sets without a training split."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from tiny import describe

from maestro_dist.config.schema import DataConfig
from maestro_dist.data.manifest import Manifest, load_manifest
from maestro_dist.data.pack import RawSample, pack
from maestro_dist.data.reader import SplitSource
from maestro_dist.data.subjects import keys_and_subjects
from maestro_dist.data.symbols import add_symbols
from maestro_dist.errors import DataError, StorageError
from maestro_dist.types import Modality

ACC = Modality("acc", 2, 32.0, 64, "g")
COUNTS = {"train": 60, "validation": 12, "test": 12}


def describe_acc() -> dict[str, object]:
    return {"modalities": (ACC,), "recording": False}


def samples(
    change: Callable[[RawSample, int], RawSample] = lambda sample, number: sample, **counts: int
) -> Iterator[RawSample]:
    draw = np.random.default_rng(1)
    for split, count in (counts or COUNTS).items():
        for number in range(count):
            values = {"acc": draw.normal(size=(64, 2))}
            who = f"{split}{number % 3}"
            yield change(RawSample(split, f"{split}{number}", number % 3, who, who, 0.0, 2.0, values), number)


def packed(folder: Path, given: Iterator[RawSample], **options: object) -> tuple[Manifest, list[str]]:
    manifest, said = told(lambda: pack(str(folder), describe(**describe_acc()), given, **options))  # type: ignore[arg-type]
    assert load_manifest(str(folder)) == manifest
    return manifest, said


def told(call: Callable[[], Manifest]) -> tuple[Manifest, list[str]]:
    """What `call` returns, and the warnings that it logs."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logger = logging.getLogger("maestro_dist.data.pack")
    logger.addHandler(handler)
    try:
        manifest = call()
    finally:
        logger.removeHandler(handler)
    assert {record.levelname for record in records} <= {"WARNING"}
    return manifest, [record.getMessage() for record in records]


def test_absurd_numbers_are_told_and_left_out(tmp_path: Path) -> None:
    def absurd(sample: RawSample, number: int) -> RawSample:
        if number == 5 and sample.split != "test":
            sample.values["acc"][:, 1] = -9999.0
        return sample

    clean, nothing = packed(tmp_path / "clean", samples())
    manifest, said = packed(tmp_path / "data", samples(absurd))
    assert nothing == []
    assert "outliers" not in clean.to_json()
    (kept,), (bad,) = clean.modalities, manifest.modalities
    assert (bad.mean[0], bad.std[0]) == (kept.mean[0], kept.std[0])  # the other variate, to the bit
    assert bad.std[1] == pytest.approx(kept.std[1], rel=0.05)
    assert [(o.split, o.modality, o.variate, o.samples, o.values, o.largest) for o in manifest.outliers] == [
        ("train", "acc", 1, 1, 64, -9999.0),
        ("validation", "acc", 1, 1, 64, -9999.0),
    ]
    assert len(said) == 2
    assert "acc, variate 1: 64 values in 1 sample of split 'train' lie far from all others, up to -9999" in said[0]


def test_absurd_targets_are_told(tmp_path: Path) -> None:
    def target(sample: RawSample, number: int) -> RawSample:
        return dataclasses.replace(sample, label=-9999.0 if number == 7 else 36.5 + number / 10)

    about = describe(**describe_acc(), task="regression", classes=())
    _, said = told(lambda: pack(str(tmp_path), about, samples(target, train=60)))
    assert len(said) == 1
    assert "targets of 1 sample of split 'train' lie far from all others, up to -9999, and dominate" in said[0]
    assert load_manifest(str(tmp_path)).outliers[0].modality is None


def test_people_in_two_splits_are_told(tmp_path: Path) -> None:
    def shared(sample: RawSample, number: int) -> RawSample:
        who = {"train": number, "validation": str(number + 50), "test": ""}[sample.split]
        return dataclasses.replace(sample, subject=who)

    manifest, said = packed(tmp_path, samples(shared))
    (found,) = manifest.shared_people
    assert (found.splits, found.people, found.some) == (["train", "validation"], 10, ["50", "51", "52", "53", "54"])
    assert said == [
        "10 people have samples in both 'train' and 'validation' (50, 51, 52, 53, 54, ...): results there "
        "say little about new people"
    ]


def test_what_is_told_of_a_set_does_not_make_it_another(tmp_path: Path) -> None:
    """A run on a data set of an earlier release continues after the data set was packed again."""
    manifest, said = packed(tmp_path, samples(lambda sample, number: dataclasses.replace(sample, subject="one")))
    assert said
    assert manifest.shared_people
    assert manifest.fingerprint() == manifest.model_copy(update={"shared_people": []}).fingerprint()


def test_a_number_and_its_text_are_one_person(tmp_path: Path) -> None:
    def numbered(sample: RawSample, number: int) -> RawSample:
        return dataclasses.replace(sample, subject=[0, "0", 0.0, np.int64(0), "", None][number % 6])

    manifest, _ = packed(tmp_path, samples(numbered, test=12))
    source = SplitSource(str(tmp_path), manifest, DataConfig(url=str(tmp_path)), tuple(manifest.select(None)), "test")
    keys, people = keys_and_subjects(source)
    assert people.tolist() == [key if number % 6 > 3 else "0" for number, key in enumerate(keys)]


@pytest.mark.parametrize("splits", [("test",), ("train", "validation", "test")])
def test_a_set_with_a_test_split_alone(tmp_path: Path, splits: tuple[str, ...]) -> None:
    manifest, said = packed(tmp_path, samples(test=12), splits=splits)
    values = np.concatenate([sample.values["acc"] for sample in samples(test=12)]).astype(np.float32)
    assert manifest.statistics_of == "test"
    assert manifest.modalities[0].mean == pytest.approx(values.mean(0, dtype=np.float64).tolist())
    assert list(manifest.splits) == list(splits)
    expected = ["means and standard deviations are of split 'test', not 'train'"]
    assert said == (expected if "train" in splits else [])


def test_statistics_are_those_of_train_wherever_it_stands(tmp_path: Path) -> None:
    one, _ = packed(tmp_path / "one", samples())
    other, _ = packed(tmp_path / "other", samples(), splits=("test", "validation", "train"))
    assert other.modalities == one.modalities
    assert other.statistics_of is None


def test_a_path_is_a_place_too(tmp_path: Path) -> None:
    manifest = pack(tmp_path / "here", describe(**describe_acc()), list(samples(train=3)))
    assert load_manifest(str(tmp_path / "here")) == manifest


def test_something_that_is_no_list_of_samples(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="samples is of type NoneType, not an iterable"):
        pack(str(tmp_path), describe(), None)  # type: ignore[arg-type]


def test_no_sample_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there was no sample for any of the splits train, validation, test"):
        pack(str(tmp_path), describe(), [])
    assert list(tmp_path.iterdir()) == []


def test_a_key_used_twice(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="train, sample k: this key is used twice in shard train-000000"):
        packed(tmp_path, samples(lambda sample, number: dataclasses.replace(sample, key="k")))


def test_symbols_keep_what_was_found(tmp_path: Path) -> None:
    from maestro_dist.data.manifest import SymbolSpec

    manifest, _ = packed(tmp_path / "raw", samples(lambda s, n: dataclasses.replace(s, subject="p"), test=2))
    spec = SymbolSpec(alphabet=4, word={"acc": 8}, normalize="window", raw=False)
    made = add_symbols(str(tmp_path / "raw"), str(tmp_path / "made"), spec, lambda *_: np.ones((8, 2), np.uint8))
    assert (made.statistics_of, made.shared_people) == (manifest.statistics_of, manifest.shared_people)


class Stop(BaseException):
    pass


@pytest.mark.parametrize("error", [ValueError("mine"), OSError(28, "mine"), Stop(), KeyboardInterrupt()])
def test_what_the_samples_raise_comes_through_and_nothing_is_left(tmp_path: Path, error: BaseException) -> None:
    def broken() -> Iterator[RawSample]:
        yield from samples()
        raise error

    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(type(error)) as caught:
        packed(tmp_path, broken(), shard_bytes=2_000)
    assert caught.value is error
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_stopped_packing_leaves_the_shards_of_another_alone(tmp_path: Path) -> None:
    def overtaken() -> Iterator[RawSample]:
        yield from samples()
        packed(tmp_path, samples(), shard_bytes=2_000)
        raise Stop

    with pytest.raises(Stop):
        packed(tmp_path, overtaken(), shard_bytes=2_000)
    manifest = load_manifest(str(tmp_path))
    assert all((tmp_path / shard.path).exists() for split in manifest.splits.values() for shard in split.shards)


def test_shards_that_another_packing_removed_are_missed_in_time(tmp_path: Path) -> None:
    def robbed() -> Iterator[RawSample]:
        yield from samples()
        (tmp_path / "train-000000.tar").unlink()

    with pytest.raises(DataError, match=r"train-000000\.tar has vanished: another process packs to this place"):
        packed(tmp_path, robbed(), shard_bytes=2_000)
    assert not (tmp_path / "manifest.json").exists()


def test_a_failure_at_the_end_leaves_nothing_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import maestro_dist.data.pack as module

    def full(*_: object) -> None:
        raise StorageError("full")

    monkeypatch.setattr(module, "write_manifest", full)
    with pytest.raises(StorageError, match="full"):
        packed(tmp_path, samples())
    assert list(tmp_path.iterdir()) == []


def test_manifests_without_findings_are_as_before(packed: str) -> None:
    body = json.loads((Path(packed) / "manifest.json").read_text())
    assert set(body) & {"statistics_of", "outliers"} == set()
    body.pop("shared_people")  # one person is in all splits of these samples
    assert Manifest.model_validate(body).to_json() == body


def test_arrays_of_absurd_samples_are_stored_as_they_are(tmp_path: Path) -> None:
    def absurd(sample: RawSample, number: int) -> RawSample:
        if number == 5:
            sample.values["acc"][:] = 1e30
        return sample

    manifest, _ = packed(tmp_path, samples(absurd))
    source = SplitSource(str(tmp_path), manifest, DataConfig(url=str(tmp_path)), tuple(manifest.select(None)), "train")
    with closing(source.open()) as reader:
        assert (reader.decode(5, reader.stored(5)).values["acc"] == np.float32(1e30)).all()
