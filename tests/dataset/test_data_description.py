"""A description is checked before the first sample is read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny import MODALITIES, describe

from maestro_dist.data.description import checked_description
from maestro_dist.data.pack import RawSample, pack
from maestro_dist.errors import DataError
from maestro_dist.types import Modality

ECG = Modality("ecg", 1, 64.0, 128, "mV")


def one(**changes: object) -> dict[str, object]:
    """A description of one modality, changed."""
    return {"modalities": (Modality(**{**vars(ECG), **changes}),)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": " "}, "name is empty"),
        ({"name": 3}, "name 3 is of type int, not text"),
        ({"name": "a\nb"}, "contains a control character"),
        ({"licence": None}, "licence None is of type NoneType, not text"),
        ({"citation": "x" * 20_000}, "citation has 20,000 letters"),
        ({"target": "\ud800"}, "broken letter"),
        ({"task": "ranking"}, "task 'ranking' is not one of classification, multilabel, regression, none"),
        ({"task": None}, "task None is not one of"),
        ({"classes": ("only",)}, "two classes or more, not 1"),
        ({"classes": ()}, "two classes or more, not 0"),
        ({"classes": "ab"}, "classes 'ab' is of type str, not a list"),
        ({"classes": (0, 1)}, "class 0 is of type int"),
        ({"classes": ("a", "")}, "class 1 has an empty name"),
        ({"classes": ("a", "a ")}, "two classes are named 'a'"),
        ({"classes": ("a", "b\t")}, "class 1 'b.*control character"),
        ({"task": "regression"}, "classes are given, but task is regression"),
        ({"task": "none"}, "classes are given, but task is none"),
        ({"window_s": 0}, "window_s 0 is not a positive number"),
        ({"window_s": "2"}, "window_s '2' is not a positive number"),
        ({"window_s": float("inf")}, "window_s inf is not a positive number"),
        ({"recording": "yes"}, "recording 'yes' is neither True nor False"),
        ({"notice": 1}, "notice 1 is of type int, not text"),
        ({"modalities": ()}, "there are no modalities"),
        ({"modalities": ECG}, "modalities .* is of type Modality, not a list"),
        ({"modalities": ("ecg",)}, "modality 'ecg' is of type str, not a Modality"),
        ({"modalities": (ECG, ECG)}, "two modalities are named 'ecg'"),
        ({"modalities": (ECG, Modality("ecg_recording", 1, 64.0, 128))}, "'ecg_recording' has the name that a model"),
        (one(name="ECG"), "modality 'ECG': a name has up to 40 small letters"),
        (one(name="a.b"), r"modality 'a\.b': a name has"),
        (one(name=""), "modality '': a name has"),
        (one(name="a" * 41), "a name has up to 40"),
        (one(name=7), "modality 7: a name has"),
        (one(variates=0), "variates 0 is not a whole number from 1"),
        (one(steps=True), "steps True is not a whole number from 1"),
        (one(steps=12.5), "steps 12.5 is not a whole number from 1"),
        (one(rate_hz=0.0), "rate_hz 0.0 is not a positive number"),
        (one(rate_hz=float("nan")), "rate_hz nan is not a positive number"),
        (one(unit=None), "unit None is of type NoneType, not text"),
        (one(always="no"), "always 'no' is neither True nor False"),
        (one(steps=64), "64 steps at 64 Hz are 1 s, but window_s is 2 s, or 128 steps"),
        (one(rate_hz=1.6), "128 steps at 1.6 Hz are 80 s, but window_s is 2 s, or 3.2 steps"),
        (one(steps=2, rate_hz=64.0, always=True), "2 steps at 64 Hz"),
    ],
)
def test_a_wrong_description_is_told_before_a_sample_is_read(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    def unread() -> Iterator[RawSample]:
        pytest.fail("a sample was read")
        yield

    with pytest.raises(DataError, match=message) as caught:
        pack(str(tmp_path / "data"), describe(**changes), unread())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"splits": ()}, "splits is empty"),
        ({"splits": "train"}, "splits 'train' is of type str"),
        ({"splits": ("a b",)}, "split 'a b': a name has"),
        ({"splits": ("train", "Train")}, "split 'train' is named twice"),
        ({"shard_bytes": 0}, "shard_bytes 0 is not a whole number from 1"),
        ({"shard_bytes": "1M"}, "shard_bytes '1M' is not"),
    ],
)
def test_wrong_options_are_told_before_a_sample_is_read(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        pack(str(tmp_path), describe(), iter([]), **options)


@pytest.mark.parametrize(
    ("window_s", "rate_hz", "steps", "always"),
    [
        (8.0, 700.0, 5600, False),  # WESAD
        (48 * 3600.0, 1 / 3600, 48, False),  # hourly, without and with the last hour
        (48 * 3600.0, 1 / 3600, 49, False),
        (48 * 3600.0, 0.0167, 2880, False),  # a rate that was rounded
        (2.56, 50.0, 128, False),
        (1.0, 12.5, 12, False),  # half a step
        (1.0, 12.5, 13, False),
        (60.0, 1 / 60, 1, False),
        (60.0, 1.0, 1, True),  # always known: its rate means nothing
    ],
)
def test_steps_that_fit_the_window(window_s: float, rate_hz: float, steps: int, always: bool) -> None:
    modality = Modality("x", 1, rate_hz, steps, always=always)
    assert checked_description(describe(window_s=window_s, modalities=[modality])).modalities == (modality,)


def test_numbers_of_numpy_become_plain_ones() -> None:
    given = Modality("ecg", np.int64(1), np.float32(64.0), np.int32(128), np.str_("mV"), always=np.bool_(True))
    found = checked_description(describe(window_s=np.float64(2.0), modalities=[given], recording=np.bool_(False)))
    plain = found.modalities[0]
    assert [type(value) for value in (plain.variates, plain.rate_hz, plain.steps, plain.unit, plain.always)] == [
        int,
        float,
        int,
        str,
        bool,
    ]
    assert (type(found.window_s), found.recording) == (float, False)
    assert checked_description(describe()).modalities == MODALITIES
