"""Divisions of PhysioNet 2012 other than that of the challenge."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import stays
from converting import conversion_of, packed

from maestro_dist.data.converters import physionet2012_division
from maestro_dist.errors import ConfigError, DataError


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """All three sets, 24 stays, of which P12 leaves out 140501."""
    for part, first, count in (("a", 132539, 12), ("b", 142675, 8), ("c", 152871, 4)):
        records = [first + 2 * number for number in range(count)] + ([140501] if part == "a" else [])
        texts = {record: stays.stay(record, "01:00,HR,70") for record in records}
        stays.write(tmp_path, part, texts, {record: record % 2 for record in records})
    return tmp_path


def splits_of(source: Path, **options: Any) -> dict[str, str]:
    return {sample.key: sample.split for sample in conversion_of("physionet2012", source, **options).samples()}


def test_random_divisions(three: Path) -> None:
    found = [splits_of(three, division="random", fold=number) for number in (0, 1, 0)]
    assert Counter(found[0].values()) == {"train": 19, "validation": 2, "test": 3}
    assert found[0] == found[2] != found[1]
    assert "140501" not in found[0]
    conversion = conversion_of("physionet2012", three, division="random")
    assert conversion.warnings == (
        "stays that P12 leaves out (1): 140501",
        "the random division is not one of the published ones of P12",
    )
    assert len(splits_of(three)) == 21  # the challenge: set-c is left out, 140501 is not


def test_a_published_division(three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "split1.json"
    places = {"train": list(range(3, 24)), "validation": [1, 2], "test": [0]}
    file.write_text(json.dumps(places))
    with pytest.raises(DataError, match=r"published divisions are of 11,988 stays .* the source has 24 of them"):
        splits_of(three, division=file)
    monkeypatch.setattr(physionet2012_division, "PUBLISHED_STAYS", 24)
    found = splits_of(three, division=file)
    assert [key for key, split in found.items() if split == "test"] == ["132539"]
    assert [key for key, split in found.items() if split == "validation"] == ["132541", "132543"]
    assert found["152877"] == "train"
    for wrong in (
        places | {"test": [1]},
        places | {"test": []},
        places | {"test": [24]},
        places | {"test": [True]},
        places | {"test": 0},
        {"train": list(range(24))},
        [1],
    ):
        file.write_text(json.dumps(wrong))
        with pytest.raises(DataError, match=r"split1\.json: (each whole number from 0 to 23|write lists)"):
            splits_of(three, division=file)
    file.write_bytes(b"\x93NUMPY")
    with pytest.raises(DataError, match="not a JSON file"):
        splits_of(three, division=file)
    with pytest.raises(ConfigError, match="--division nothing"):
        splits_of(three, division="nothing")


def test_the_order_is_that_of_the_sets_and_record_ids() -> None:
    records = {"c": [9, 8], "a": [140501, 5, 3], "b": [7]}
    assert physionet2012_division.stays_of_p12(records) == [3, 5, 7, 8, 9]


def test_packed_with_the_tool(three: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    out = tmp_path_factory.mktemp("out")
    manifest = packed("physionet2012", three, out / "p12", "--division", "random")
    assert {name: split.samples for name, split in manifest.splits.items()} == {"train": 19, "validation": 2, "test": 3}
