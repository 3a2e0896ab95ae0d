"""Validation, early stop, health and progress."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from callback_states import make_record, make_state, said

from maestro_dist.callbacks import progress as progress_module
from maestro_dist.callbacks.base import Callback, Callbacks, State
from maestro_dist.callbacks.checkpointing import callback_states, resume, run_metadata
from maestro_dist.callbacks.health import Health
from maestro_dist.callbacks.metrics import Metrics
from maestro_dist.callbacks.progress import Progress, duration, short_number
from maestro_dist.callbacks.validation import Validation
from maestro_dist.errors import DataError, NonFiniteError
from maestro_dist.evaluation import Evaluation, Scenario
from maestro_dist.tracking import MetricLog


def scored(accuracies: list[float]) -> Callable[[], Evaluation]:
    """An evaluation that finds these accuracies, one after the other."""
    left = iter(accuracies)

    def evaluate() -> Evaluation:
        accuracy = next(left)
        scenarios = [Scenario(0.0, 0, {"accuracy": accuracy}), Scenario(0.4, 0, {"accuracy": accuracy - 0.1})]
        return Evaluation("validation", 10, ["accuracy"], scenarios)

    return evaluate


def drive(state: State, callback: Callback, **changes: dict[int, object]) -> None:
    """Run to the end; `changes` maps a field of the record to its values by 0-based step."""
    callback.on_start(state)
    while state.step < state.total_steps and not state.stop:
        step = state.step
        state.step += 1
        given = {name: values[step] for name, values in changes.items() if step in values}
        callback.on_step(state, make_record(step, **given))  # type: ignore[arg-type]
    callback.on_end(state)


def test_the_best_validation_is_remembered() -> None:
    state = make_state({})
    validation = Validation(scored([0.6, 0.9, 0.9, 0.7]), None)
    drive(state, validation)
    assert (state.best_step, state.best_score) == (10, pytest.approx(0.85)), "a tie keeps the earlier weights"
    assert state.validations_since_best == 2
    assert state.results == pytest.approx(
        {"validation/accuracy": 0.7, "validation/accuracy_missing_40": 0.6, "validation/score": 0.65}
    )


def test_lower_is_better_for_a_loss() -> None:
    def evaluate() -> Evaluation:
        return Evaluation("validation", 10, ["loss"], [Scenario(0.0, 0, {"loss": next(values)})])

    values = iter([0.9, 0.5, 0.7, 0.6])
    state = make_state({"evaluation": {"metric": "loss"}})
    drive(state, Validation(evaluate, None))
    assert (state.best_step, state.best_score) == (10, 0.5)


def test_every_second_epoch_and_the_end() -> None:
    steps: list[int] = []
    state = make_state({"evaluation": {"every_epochs": 2}}, steps=13)
    evaluate = scored([0.5, 0.6, 0.7])
    drive(state, Validation(lambda: (steps.append(state.step), evaluate())[1], None))
    assert steps == [10, 13]


def test_patience_stops_the_run_also_when_it_was_resumed_in_between() -> None:
    config = {"evaluation": {"patience": 2}}
    state = make_state(config)
    drive(state, Validation(scored([0.9, 0.8, 0.7, 0.6]), None))
    assert (state.step, state.stop, state.best_step) == (15, True, 5)

    first, second = make_state(config, steps=20), make_state(config, steps=20)
    first.total_steps = 10
    before, after = Validation(scored([0.9, 0.8]), None), Validation(scored([0.7, 0.6]), None)
    drive(first, before)
    resume(second, 10, 76, run_metadata(first))
    after.load_state_dict(before.state_dict())
    drive(second, after)
    assert (second.step, second.stop, second.best_step) == (15, True, 5)


def test_a_skipped_step_stops_the_run_and_names_its_samples() -> None:
    metrics = Metrics(None)
    with pytest.raises(NonFiniteError) as caught:
        drive(make_state({}), Callbacks([metrics, Health(metrics)]), applied={6: False}, loss={6: float("nan")})
    assert str(caught.value) == (
        "step 7 (epoch 2): loss or gradient is NaN or infinite (0 such steps allowed by optim.max_skipped); on rank 0 "
        "the loss is nan and the samples are r0s6n0, r0s6n1, r0s6n2, r0s6n3, r0s6n4, r0s6n5, r0s6n6, r0s6n7 and 2 "
        "more; look at them, or lower optim.lr"
    )


def test_skipped_steps_are_counted_up_to_the_limit(caplog: pytest.LogCaptureFixture) -> None:
    metrics, state = Metrics(None), make_state({"optim": {"max_skipped": 2}})
    with pytest.raises(NonFiniteError, match="step 12 "):
        drive(state, Callbacks([metrics, Health(metrics)]), applied={3: False, 8: False, 11: False})
    assert [line.split(":")[0] for line in said(caplog)] == ["step 4 (epoch 1)", "step 9 (epoch 2)"]


def test_a_loss_that_is_not_finite_is_seen_at_the_next_record() -> None:
    metrics, state = Metrics(None), make_state({"tracking": {"every_steps": 10}})
    with pytest.raises(NonFiniteError, match=r"step 7 \(epoch 2\).* the loss is inf and the samples are r0s6n0"):
        drive(state, Callbacks([metrics, Health(metrics)]), loss={6: float("inf")})
    assert state.step == 10


def test_bad_samples_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    metrics = Metrics(None)
    drive(make_state({}), Callbacks([metrics, Health(metrics)]), bad={4: 2})
    assert said(caplog) == [f"bad sample skipped: shard 1 sample {number}: wrong shape" for number in range(2)]


def test_the_end_says_how_many_were_skipped(caplog: pytest.LogCaptureFixture) -> None:
    bad_at({1: [7, 9], 12: [7]}, limit=2)
    assert said(caplog)[-1].startswith("2 training samples were skipped in this run because of bad data (2 allowed")


def bad_at(
    steps: dict[int, list[int]],
    limit: int,
    saved: dict[str, Any] | None = None,
    last: int = 20,
    log: MetricLog | None = None,
) -> tuple[State, Callbacks]:
    """Drive a run with these bad samples to step `last`; from step 10 on where it is resumed with `saved`."""
    metrics = Metrics(log)
    state = make_state({"data": {"max_bad_samples": limit}, "tracking": {"every_steps": 10}})
    callbacks = Callbacks([metrics, Health(metrics)])
    state.total_steps = last
    if saved is not None:
        resume(state, 10, 76, saved)
        callbacks.load_state_dict(callback_states(saved))
    lines = {step: [f"shard 1 sample {number}: wrong" for number in bad] for step, bad in steps.items()}
    drive(state, callbacks, bad_samples=steps, bad_lines=lines)
    return state, callbacks


def test_a_bad_sample_that_is_met_again_counts_once() -> None:
    state, _ = bad_at({1: [7, 9], 6: [9], 12: [7], 17: [9, 7]}, limit=2)
    assert (state.step, state.bad_samples) == (20, [7, 9])


@pytest.mark.parametrize("flat", [False, True], ids=["now", "written before callbacks had states of their own"])
def test_bad_samples_are_counted_over_restarts(flat: bool) -> None:
    _, first = bad_at({1: [7], 6: [9]}, limit=2, last=10)
    saved = {"bad_samples": [7, 9]} if flat else {"callbacks": json.loads(json.dumps(first.state_dict()))}
    with pytest.raises(
        DataError, match=r"^3 different bad samples .*data\.max_bad_samples is 2, at last shard 1 sample 8"
    ):
        bad_at({12: [9], 13: [8]}, limit=2, saved=saved)


def test_skipped_steps_are_counted_over_restarts() -> None:
    metrics, state = Metrics(None), make_state({"optim": {"max_skipped": 1}}, steps=10)
    first = Health(metrics)
    drive(state, Callbacks([metrics, first]), applied={3: False})
    again = make_state({"optim": {"max_skipped": 1}})
    metrics, second = Metrics(None), Health(Metrics(None))
    resume(again, 10, 76, run_metadata(state))
    second.load_state_dict(first.state_dict())
    with pytest.raises(NonFiniteError, match=r"step 13 .*1 such steps allowed"):
        drive(again, Callbacks([metrics, second]), applied={12: False})


def test_a_checkpoint_from_before_bad_samples_were_counted_is_resumed() -> None:
    state, _ = bad_at({}, limit=0, saved={"best_step": None, "stop": False})
    assert (state.step, state.bad_samples) == (20, [])


def test_progress_lines(caplog: pytest.LogCaptureFixture) -> None:
    metrics, state = Metrics(None), make_state({"tracking": {"every_steps": 4}}, steps=10)
    validation = Validation(scored([0.6, 0.5]), None)
    drive(state, Callbacks([metrics, validation, Progress(metrics)]))
    lines = said(caplog)
    assert [line.split()[0] for line in lines] == ["step", "validation", "step", "step", "validation"]
    assert lines[0].startswith(
        "step  4/10  epoch  0.80  loss  0.2375      80 samples/s      1k tokens/s  data wait 10 %"
    )
    assert lines[1] == "validation  accuracy 0.6000 complete, 0.5000 with 40 % missing; score 0.5500 (best so far)"
    assert lines[4].endswith("score 0.4500 (best 0.5500 at step 5)")
    assert "ETA 0:00" in lines[3]


def test_a_line_of_progress_that_fails_costs_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(seconds: float) -> str:
        raise ValueError("no such time")

    monkeypatch.setattr(progress_module, "duration", fails)
    metrics, state = Metrics(None), make_state({"tracking": {"every_steps": 2}})
    drive(state, Callbacks([metrics, Validation(scored([0.6] * 4), None), Progress(metrics)]))
    assert state.step == state.total_steps
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == ["a progress line could not be made (no such time); training continues"]


def test_a_step_without_samples_or_time_has_a_line(caplog: pytest.LogCaptureFixture) -> None:
    metrics, state = Metrics(None), make_state({"tracking": {"every_steps": 2}}, steps=2)
    callback = Callbacks([metrics, Progress(metrics)])
    callback.on_start(state)
    for step in range(2):
        state.step += 1
        nothing = {"samples": 0, "tokens": 0, "data_s": 0.0, "forward_s": 0.0, "backward_s": 0.0, "optimizer_s": 0.0}
        callback.on_step(state, replace(make_record(step, loss=float("nan")), **nothing))  # type: ignore[arg-type]
    assert len(said(caplog)) == 1
    assert "loss     nan       0 samples/s" in said(caplog)[0]


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", ["first", "later"])
def test_a_validation_that_is_undefined_chooses_nothing(
    value: float | None, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    scores = [value, 0.5, value, 0.6] if place == "first" else [0.5, value, value, 0.6]
    left = iter(scores)

    def evaluate() -> Evaluation:
        score = next(left)
        found = {} if score is None else {"accuracy": score}
        return Evaluation("validation", 10, ["accuracy"], [Scenario(0.0, 0, found)])

    metrics, state = Metrics(None), make_state({"evaluation": {"patience": 2, "rates": [0.0]}})
    drive(state, Callbacks([metrics, Validation(evaluate, None), Progress(metrics)]))
    assert (state.step, state.best_step, state.best_score) == (20, 20, 0.6), "neither chosen nor counted as worse"
    ours = [record for record in caplog.records if record.name.startswith("maestro_dist.callbacks")]
    warnings = [record.getMessage() for record in ours if record.levelno == logging.WARNING]
    assert len(warnings) == 2
    assert "accuracy" in warnings[0]
    assert warnings[0].endswith("there is no best step yet" if place == "first" else "the best is still step 5")
    assert state.results["validation/score"] == 0.6


def test_numbers_for_people() -> None:
    assert [short_number(value) for value in (3.14159, 45_600, 2_000_000)] == ["3.14", "45.6k", "2M"]
    assert [duration(value) for value in (5, 65, 3725)] == ["0:05", "1:05", "1:02:05"]
