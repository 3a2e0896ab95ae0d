"""Send to tracking what it lacks of a run that has ended; set the status of a run at its end."""

from __future__ import annotations

import json
import logging
import shlex
import sys
import tempfile
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maestro_dist.callbacks.final_test import MODEL_FOLDER, RESULT_FILE
from maestro_dist.data.storage import ObjectMissing, Storage, redact
from maestro_dist.errors import RunError
from maestro_dist.run.record import RunRecord
from maestro_dist.tracking.best_effort import BestEffort
from maestro_dist.tracking.client import client, short
from maestro_dist.tracking.end_limit import EndLimit, limit_s
from maestro_dist.tracking.unsent import (
    FIGURES,
    METRICS,
    MODEL,
    PARTS,
    STATUS,
    TAGS,
    Unsent,
    read_unsent,
    write_unsent,
)
from maestro_dist.training.worker import work_folder

if TYPE_CHECKING:
    from mlflow.entities import Run

_LOG = logging.getLogger(__name__)


def end_tracking(run: Storage, record: RunRecord, status: str) -> None:
    """Set the final status in MLflow, within the time that the end of a run may take; say what MLflow lacks.

    Raises nothing: an error is a warning, with the command that sends the rest.
    """
    from maestro_dist.tracking.run import close_run

    finished = status == "FINISHED"
    found = read_unsent(run) if finished else None
    if finished and (found is None or found.status != status):  # an earlier driver died before workers noted anything
        send_unsent(run, record, again=True)
        return
    uri, ended_ms = record.tracking_uri, int(time.time() * 1000)
    try:
        limit = EndLimit(uri, limit_s() / 3)
        closed = limit.run("the status", lambda: close_run(uri, str(record.mlflow_run), status))
    except TimeoutError as error:
        _LOG.warning(f"could not set the tracked run to {status} ({error})")
        closed = False
    parts = (*(found.parts if found else ()), *(() if closed else (STATUS,)))
    if parts:
        write_unsent(run, Unsent(parts, status, ended_ms))
        _LOG.warning(_lacks(run, uri, parts))


def send_unsent(run: Storage, record: RunRecord, *, again: bool = False) -> None:
    """Send what MLflow lacks of a run that has ended well, if anything, within the limit of the end of a run.

    `again`: whatever the run's own note says. Raises nothing: what fails is a warning, with the command that sends it.
    """
    found = None if again else read_unsent(run)
    if found is not None and not found.parts:
        return
    uri, parts = record.tracking_uri, PARTS if found is None else found.parts
    note = Unsent(parts, "FINISHED", None if found is None else found.ended_ms)
    try:
        EndLimit(uri, limit_s()).run("sending", lambda: catch_up(run, record, uri, note, parts))
    except Exception as error:  # no error of tracking may end a run
        left = read_unsent(run) or note
        _LOG.warning(f"{short(error)}; {_lacks(run, uri, left.parts)}")
        return
    _LOG.info(f"tracking at {redact(uri)} has everything of this run now")


def catch_up(run: Storage, record: RunRecord, uri: str, note: Unsent, parts: Collection[str]) -> None:
    """Send `parts` to the server or database `uri` where it lacks them, and note in the run's storage what is left.

    To call it again changes nothing. There is no limit of time. `note`: what the run's own note says.

    Raises:
        RunError: the server does not answer, does not know the run, or does not accept a part.
    """
    tracked, effort = _tracked(uri, record), BestEffort()
    if METRICS in parts:
        effort.attempt(METRICS, lambda: _send_metrics(run, uri, tracked.info.run_id))
    result = _result(run) if {FIGURES, MODEL, TAGS} & set(parts) else None
    if result is not None:
        _send_files(run, (uri, tracked), result, note, parts, effort)
    if STATUS in parts or MODEL in parts:  # to log a model changes the status
        effort.attempt(STATUS, lambda: _set_status(uri, tracked.info.run_id, note))
    write_unsent(run, Unsent(tuple(part for part in PARTS if part in effort.left_out), note.status, note.ended_ms))
    if effort.left_out:
        raise RunError(f"tracking at {redact(uri)} did not accept: {effort.text()}")


def _tracked(uri: str, record: RunRecord) -> Run:
    """The run as the server knows it."""
    file = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:///") and not file.exists():  # MLflow would create an empty one
        raise RunError(f"tracking: {file} does not exist")
    try:
        return client(uri).get_run(str(record.mlflow_run))
    except Exception as error:
        gone = getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST"
        what = f"has no run {record.mlflow_run}" if gone else f"does not answer ({short(error)})"
        raise RunError(f"tracking at {redact(uri)} {what}") from error


def _send_metrics(run: Storage, uri: str, run_id: str) -> bool:
    from maestro_dist.tracking.metric_copy import fetch_metrics
    from maestro_dist.tracking.resend import send_missing_metrics

    folder = work_folder(run.url)
    fetch_metrics(folder, run.url)
    rows = send_missing_metrics(folder, uri, run_id)
    if rows:
        _LOG.info(f"{rows:,} rows of metrics sent")
    return True


def _send_files(
    run: Storage,
    at: tuple[str, Run],
    result: dict[str, Any],
    note: Unsent,
    parts: Collection[str],
    effort: BestEffort,
) -> None:
    """Send figures, model and tags, with scratch space for those that are in remote storage."""
    from maestro_dist.tracking.uploads import EndUploads

    uri, tracked = at
    wanted = {part for part in (FIGURES, MODEL, TAGS) if part in parts}
    if MODEL in wanted and (result["mlflow_model"] or not _predicts(run)):
        wanted.discard(MODEL)
    uploads = EndUploads(uri, tracked.info.run_id, result, tuple(wanted))
    with tempfile.TemporaryDirectory() as scratch:
        figures: Sequence[Path] = ()
        if FIGURES in wanted:
            figures = effort.attempt(FIGURES, lambda: _figures(run, at, note, Path(scratch))) or ()
        done = uploads.send(figures, lambda: _log_model(run, uri, tracked, Path(scratch)))
    for part in uploads.unsent:
        effort.left_out.setdefault(part, done.text())
    if uploads.model_uri != result["mlflow_model"]:
        named = json.dumps({**result, "mlflow_model": uploads.model_uri}, indent=1).encode()
        effort.attempt(MODEL, lambda: run.write(RESULT_FILE, named))


def _figures(run: Storage, at: tuple[str, Run], note: Unsent, scratch: Path) -> list[Path]:
    """The figures to send: all if they were not sent before, else those that MLflow does not list."""
    from maestro_dist.tracking.figures import FOLDER, figure_files

    uri, tracked = at
    files = figure_files(work_folder(run.url))
    if not files and run.local is None:  # they were drawn on another machine
        for name in run.list(FOLDER):
            path = scratch / FOLDER / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(run.read(f"{FOLDER}/{name}"))
            files.append(path)
    if FIGURES in note.parts:
        return files
    listed = {Path(file.path).name for file in client(uri).list_artifacts(tracked.info.run_id, FOLDER)}
    return [path for path in files if path.name not in listed]


def _predicts(run: Storage) -> bool:
    """Whether the run has an exported model that predicts: a pre-trained one is not logged."""
    from maestro_dist.inference.exported_model import DESCRIPTION, read_description

    model = run.join(MODEL_FOLDER)
    return model.exists(DESCRIPTION) and read_description(model)["task"]["kind"] != "pretrain"


def _log_model(run: Storage, uri: str, tracked: Run, scratch: Path) -> str | None:
    """The URI of the logged model, which is uploaded unless the run has it."""
    from maestro_dist.inference.exported_model import DESCRIPTION, WEIGHTS
    from maestro_dist.inference.predictor import load_model
    from maestro_dist.tracking.logged_model import find_logged_model, log_model

    known = find_logged_model(uri, tracked)
    if known:
        return known
    folder = run.local_path(MODEL_FOLDER)
    if folder is None:
        folder = scratch / MODEL_FOLDER
        folder.mkdir()
        for name in (DESCRIPTION, WEIGHTS):
            (folder / name).write_bytes(run.read(f"{MODEL_FOLDER}/{name}"))
    predictor = load_model(str(folder))
    return log_model(
        uri,
        tracked.info.run_id,
        folder,
        modalities=predictor.modalities,
        columns=predictor.task.flat_columns,
        recording=predictor.wants_recording,
    )


def _set_status(uri: str, run_id: str, note: Unsent) -> bool:
    """Set the status that the run has in truth, if it is another one."""
    server = client(uri)
    status = server.get_run(run_id).info.status
    # of a run that has not ended well, what MLflow says is kept: it may know more than the note
    if status != note.status and (note.status == "FINISHED" or status == "RUNNING"):
        server.set_terminated(run_id, note.status, note.ended_ms)
    return True


def _result(run: Storage) -> dict[str, Any] | None:
    """Content of `result.json`; None before the final test."""
    try:
        content: dict[str, Any] = json.loads(run.read(RESULT_FILE))
    except (ObjectMissing, ValueError):
        return None
    return content


def _lacks(run: Storage, uri: str, parts: Sequence[str]) -> str:
    command = f"{shlex.quote(sys.executable)} -m maestro_dist.track {shlex.quote(redact(run.url))}"
    return (
        f"tracking at {redact(uri)} lacks of this run: {', '.join(parts)}; to send this, start the server and run "
        f"`{command}`, or start the run again"
    )
