"""What another data set must share with the data of a model: modalities, units, scales, classes, targets."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from maestro_dist.config.model import ModelConfig
from maestro_dist.data.compatibility import Answer, check_labels, fit_modalities
from maestro_dist.data.manifest import Manifest
from maestro_dist.errors import DataError
from maestro_dist.types import Modality

ECG = Modality("ecg", 1, 250.0, 500, "mV", (0.02,), (0.6,))
AGE = Modality("age", 2, 0.5, 1, "years, 1", (61.0, 0.4), (17.0, math.sqrt(0.24)))
OWN = [AGE, ECG]
MODEL = ModelConfig.model_validate({"normalize": "dataset", "word": 5})
UNSCALED = ModelConfig.model_validate({"normalize": "window", "summary": "none", "word": 5})


def manifest(*modalities: Modality, **changes: object) -> Manifest:
    """The manifest of another data set with these modalities."""
    names = ("name", "variates", "unit", "rate_hz", "steps", "mean", "std", "always")
    tree = {
        "format": "maestro_dist/1",
        "name": "other",
        "licence": "",
        "citation": "",
        "source": "",
        "task": "classification",
        "classes": ["calm", "stress"],
        "target": "state",
        "window_s": 2.0,
        "modalities": [{name: getattr(modality, name) for name in names} for modality in modalities],
        "splits": {"test": {"shards": [], "samples": 0, "class_counts": [0, 0]}},
    }
    return Manifest.model_validate({**tree, **changes})


def test_the_same_modalities_fit_without_a_word() -> None:
    same = manifest(*OWN)
    assert fit_modalities(same, OWN, MODEL) == (same, [])
    moved = replace(ECG, unit="  mV ", rate_hz=250.0000001, mean=(0.9,), std=(3.0,))
    assert fit_modalities(manifest(moved, AGE), OWN, MODEL)[1] == []
    micro = [replace(ECG, unit=f"{letter}V") for letter in "\u00b5\u03bc"]  # micro sign, Greek mu
    assert fit_modalities(manifest(micro[0]), micro[1:], MODEL)[1] == []


@pytest.mark.parametrize("unit", ["uV", "MV", ""])
def test_another_unit_is_refused_by_both_names(unit: str) -> None:
    other = manifest(replace(ECG, unit=unit), AGE)
    said = f"modality 'ecg' is in '{unit}' in 'other', in 'mV' in training"
    with pytest.raises(DataError, match=f"^{said}; convert .* --any-units"):
        fit_modalities(other, OWN, MODEL)
    assert fit_modalities(other, OWN, MODEL, any_units=True)[1] == [f"warning: {said}"]
    assert fit_modalities(other, OWN, UNSCALED)[1] == [f"warning: {said}"], "its scale means nothing to this model"


@pytest.mark.parametrize(
    ("mean", "std", "said"),
    [
        (20.0, 600.0, "modality 'ecg' is 0.02 \\+- 0.6 in training, 20 \\+- 600"),
        (2e-5, 6e-4, "2e-05 \\+- 0.0006 in 'other'"),
        (310.0, 0.6, "310 \\+- 0.6 in 'other'"),
        (-1e308, 1e308, "-1e\\+308 \\+- 1e\\+308 in 'other'"),
        (70.0, 0.0, "70 \\+- 0 in 'other'"),
    ],
)
def test_a_grossly_other_scale_is_refused_with_the_numbers(mean: float, std: float, said: str) -> None:
    other = manifest(replace(ECG, mean=(mean,), std=(std,)), AGE)
    with pytest.raises(DataError, match=said):
        fit_modalities(other, OWN, MODEL)
    (note,) = fit_modalities(other, OWN, MODEL, any_units=True)[1]
    assert note.startswith("warning: ")
    assert fit_modalities(other, OWN, UNSCALED)[1] == []


@pytest.mark.parametrize(("mean", "std"), [(0.0, 12.0), (0.0, 0.05), (9.0, 0.6)])
def test_a_large_difference_is_warned_of(mean: float, std: float) -> None:
    (note,) = fit_modalities(manifest(replace(ECG, mean=(mean,), std=(std,)), AGE), OWN, MODEL)[1]
    assert note.startswith("warning: modality 'ecg' is 0.02 +- 0.6 in training")


@pytest.mark.parametrize(
    ("own", "other", "word"),
    [
        ((0.0, 0.0), (0.0, 0.0), False),  # never observed in either
        ((0.3, 0.6), (0.0, 0.0), False),  # not observed there
        ((61.0, 17.0), (64.0, 0.0), False),  # one person's age
        ((61.0, 17.0), (64.0, 1e-9), False),  # the same, rounded
        ((0.5, 0.5), (1e-6, math.sqrt(1e-6)), False),  # a flag that is rare there
        ((0.0, 0.0), (0.5, 0.5), False),  # a flag that nobody had in training
        ((7.0, 0.0), (7.0, 0.0), False),  # constant in both
        ((7.0, 0.0), (9.0, 3.0), False),
        ((7.0, 0.0), (700.0, 3.0), True),  # constant in training: no unit to speak of, so no refusal
        ((0.0, 0.0), (5e4, 1e3), True),
    ],
)
def test_constant_unobserved_and_binary_variates_are_not_refused(
    own: tuple[float, float], other: tuple[float, float], word: bool
) -> None:
    one, two = (replace(ECG, mean=(mean,), std=(std,)) for mean, std in (own, other))
    assert len(fit_modalities(manifest(two), [one], MODEL)[1]) == word


def test_of_several_variates_the_worst_is_named() -> None:
    other = manifest(ECG, replace(AGE, mean=(61.0 * 365, 0.4)))
    with pytest.raises(DataError, match=r"^variate 0 of modality 'age' is 61 "):
        fit_modalities(other, OWN, MODEL)


def test_what_lacks_is_absent_and_what_is_more_is_left() -> None:
    other = manifest(ECG, replace(AGE, name="ages"))
    fitting, notes = fit_modalities(other, OWN, MODEL)
    assert notes == [
        "note: 'other' has no age: absent from all samples",
        "note: ages of 'other' are not among the model's modalities: not used",
    ]
    assert {modality.name for modality in fitting.modalities} == {"age", "ages", "ecg"}
    assert fitting.splits == other.splits
    with pytest.raises(DataError, match=r"'other' has none of the model's modalities \(age\); it has ecg"):
        fit_modalities(manifest(ECG), [AGE], MODEL)


def test_symbols_of_what_lacks_have_the_models_word() -> None:
    spec = {"alphabet": 20, "word": {"ecg": 5}, "normalize": "dataset", "raw": False}
    fitting, _ = fit_modalities(manifest(ECG, symbols=spec), OWN, MODEL)
    assert fitting.symbols is not None
    assert fitting.symbols.word == {"age": 5, "ecg": 5}


def test_other_shapes_and_rates_are_all_named() -> None:
    other = manifest(replace(ECG, steps=499), replace(AGE, rate_hz=1.0))
    with pytest.raises(DataError) as caught:
        fit_modalities(other, OWN, MODEL)
    said = str(caught.value)
    assert "'age' of 'other' is 2 x 1 @ 1 Hz, the model needs 2 x 1 @ 0.5 Hz" in said
    assert "'ecg' of 'other' is 1 x 499 @ 250 Hz, the model needs 1 x 500 @ 250 Hz" in said


def test_recordings_must_have_statistics_where_the_model_needs_them() -> None:
    model = ModelConfig.model_validate({"normalize": "recording", "word": 5})
    with pytest.raises(DataError, match="no statistics of recordings"):
        fit_modalities(manifest(*OWN), OWN, model)
    assert fit_modalities(manifest(*OWN, recording=True), OWN, model)[1] == []


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer("classification", ("stress", "calm")), "another order: calm, stress; .* trained on stress, calm"),
        (Answer("classification", ("calm", "fun")), "has other classes: calm, stress; .* trained on calm, fun"),
        (Answer("regression", (), "pulse"), r"for regression \(pulse\), 'other' for classification \(classes calm"),
    ],
)
def test_other_answers_are_refused_with_both(answer: Answer, said: str) -> None:
    with pytest.raises(DataError, match=said):
        check_labels(manifest(*OWN), "test", answer)


def test_a_set_without_labels_has_nothing_to_compare_with() -> None:
    with pytest.raises(DataError, match="no labels"):
        check_labels(manifest(*OWN, task="none", classes=[]), "test", Answer("classification", ("a", "b")))


def test_a_target_in_another_unit_is_refused() -> None:
    def numbers(mean: float, std: float, target: str = "pulse (1/min)") -> Manifest:
        shard = {"path": "a.tar", "index": "a.json", "samples": 1, "bytes": 1, "sha256": "0" * 64}
        split = {"shards": [shard], "samples": 1, "target_mean": mean, "target_std": std}
        return manifest(*OWN, task="regression", classes=[], target=target, splits={"test": split})

    answer = Answer("regression", (), "pulse (1/min)", 70.0, 9.0)
    assert check_labels(numbers(80.0, 11.0), "test", answer) == []
    assert len(check_labels(numbers(80.0, 11.0, "pulse (Hz)"), "test", answer)) == 1
    with pytest.raises(DataError, match=r"the target is 70 \+- 9 in training, 1.2 \+- 0.05 in 'other'"):
        check_labels(numbers(1.2, 0.05), "test", answer)
    assert len(check_labels(numbers(1.2, 0.05), "test", answer, any_units=True)) == 1
