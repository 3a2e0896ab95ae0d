"""The command `python -m maestro_dist.predict`: predictions for a data set or a file, as a table."""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from maestro_dist.data.storage import Storage
from maestro_dist.errors import ConfigError, DataError, StorageError, run_main
from maestro_dist.inference.find_model import check_writable, place_of, what_may_be_meant
from maestro_dist.system.terminal import lost, never_fail_to_print

if TYPE_CHECKING:
    from maestro_dist.data.manifest import Manifest
    from maestro_dist.inference.exported_model import TaskDescription
    from maestro_dist.inference.predictor import Predictor

HELP = """Predict with a trained model: `python -m maestro_dist.predict MODEL DATA`.

MODEL is a run (folder, URL, or its name in `runs/`) or an exported model. DATA is

  a packed data set        folder or URL; one split of it (--split): of the run's own data, as the run divided it
  FILE.npz                 one array per modality: [samples, steps, variates], or [steps, variates] for one sample
  FILE.json, FILE.jsonl    a list of samples, or one sample per line: {"ecg": [[.1], [null], ...], "spo2": ...}

A missing value is NaN or null; a missing sensor is left out. A model that normalizes by recording also needs
`ecg_recording` and so on: mean and standard deviation of each variate. The output is CSV, one line per sample: its key
or number, then the probability of each class, or the value of each target. The cells are empty if nothing was observed.
A model that predicts over time gives one line for each part, with the second at which it begins.

From Python:

    from maestro_dist.predict import load_model
    model = load_model("runs/mine")
    model.predict({"ecg": ecg, "spo2": spo2})        # or a list of samples; one row per sample, one column per class
"""

_START = "start_s"
Row = tuple[str, list[float | None]]
"""Sample and numbers; over time the second at which the part begins is the first of them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    never_fail_to_print()
    options = _parser().parse_args(arguments)
    return run_main(lambda: _predict(options), debug=options.debug)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m maestro_dist.predict", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("data", metavar="DATA")
    parser.add_argument("--split", default="test", help="split of a packed data set (default: test)")
    parser.add_argument(
        "--out", metavar="FILE", help="output file (default: stdout); JSON lines if its name ends in .jsonl"
    )
    parser.add_argument(
        "--any-units", action="store_true", help="predict even if units or scales of the data set do not fit the model"
    )
    parser.add_argument("--batch", type=int, default=256, metavar="N", help="batch size in samples (default: 256)")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors and debug messages")
    return parser


def _predict(options: argparse.Namespace) -> int:
    from maestro_dist.inference.predictor import load_model

    if options.batch < 1:
        raise ConfigError(f"--batch: {options.batch} is not 1 or more")
    out = Path(options.out).expanduser() if options.out else None
    if out:
        check_writable(out, "--out")
    place = _model_place(options.model)
    predictor = load_model(place)
    data = options.data.removeprefix("data.url=")  # accepted because `train` uses it
    suffix = Path(data).suffix.lower()
    if suffix in (".npz", ".json", ".jsonl") and not Path(data).is_dir():
        rows = _predict_file(predictor, data, suffix, options)
    else:
        rows = _predict_split(predictor, place, data, options)
    kept = list(rows)  # complete before it is written: an error must not leave an incomplete table
    columns, over_time = list(predictor.columns), len(predictor.starts_s) > 1
    if out is None:
        _write_csv(sys.stdout, columns, kept, over_time=over_time)
        if error := lost(sys.stdout):
            raise StorageError(f"the predictions were not written completely: {error.strerror}")
        return 0
    text = io.StringIO(newline="")
    (_write_json if out.suffix.lower() == ".jsonl" else _write_csv)(text, columns, kept, over_time=over_time)
    _replace_file(out, text.getvalue())
    return 0


def _replace_file(out: Path, text: str) -> None:
    """Replace a file by `text`, or leave it unchanged. A pipe or a device is written directly."""
    part = out.with_name(f".{out.name}.part")
    try:
        if out.exists() and not out.is_file():
            out.write_text(text, encoding="utf-8", newline="")
            return
        part.write_text(text, encoding="utf-8", newline="")
        os.replace(part, out)
    except OSError as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise StorageError(f"cannot write --out {out}: {error.strerror}") from error


def _model_place(text: str) -> str:
    """The URL of an exported model, or of a run that contains one."""
    from maestro_dist.inference.exported_model import DESCRIPTION, RUN_FOLDER

    place = place_of(text)
    if not any(place.exists(path) for path in (DESCRIPTION, f"{RUN_FOLDER}/{DESCRIPTION}")):
        raise ConfigError(
            f"{place.name()}: neither an exported model (it has no {DESCRIPTION}) nor a run with one"
            f"{what_may_be_meant(place)}"
        )
    return place.url


def _predict_file(predictor: Predictor, place: str, suffix: str, options: argparse.Namespace) -> Iterator[Row]:
    """Predictions for the samples of a file, numbered from 0."""
    from maestro_dist.inference.inputs import as_list, split_recordings

    storage = Storage(place if "://" in place else str(Path(place).expanduser()))
    content = storage.read()
    try:
        if suffix == ".npz":
            given: Any = _read_npz(content)
        elif suffix == ".json":
            given = json.loads(content)
        else:
            given = [json.loads(line) for line in content.decode().splitlines() if line.strip()]
    except Exception as error:  # zipfile, zlib, numpy and json raise errors of many types
        raise DataError(f"{storage.name()}: damaged ({' '.join(str(error).split())[:200]})") from error
    pairs = [split_recordings(sample, predictor.names) for sample in as_list(given)]
    predictions = predictor.predict(
        [windows for windows, _ in pairs], [found for _, found in pairs], batch=options.batch, unobserved="nan"
    )
    yield from _rows(map(str, range(len(pairs))), predictions, predictor.starts_s)


def _read_npz(content: bytes) -> list[Mapping[str, Any]]:
    """The samples of a .npz file."""
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    if all(array.ndim < 3 for array in arrays.values()):
        return [arrays] if arrays else []
    counts = {name: len(array) if array.ndim == 3 else -1 for name, array in arrays.items()}
    if len(set(counts.values())) > 1:
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
        raise ValueError(f"the arrays have different numbers of samples: {shapes}")
    return [{name: array[row] for name, array in arrays.items()} for row in range(max(counts.values()))]


def _manifest(place: str, url: str, task: TaskDescription) -> Manifest:
    """The manifest of the data set at `url`; if the run at `place` has divided or cut just this data set, the run's."""
    from maestro_dist.config.schema import DataConfig
    from maestro_dist.data.load import load_data
    from maestro_dist.data.manifest import load_manifest
    from maestro_dist.data.recordings.cut_data import RUN_FOLDER, made_of, windows_of_model
    from maestro_dist.inference.exported_model import RUN_FOLDER as MODEL_FOLDER

    stored = load_manifest(url)
    with suppress(DataError):  # a model outside of a run has none
        of_run = load_manifest(f"{place.removesuffix(f'/{MODEL_FOLDER}')}/{RUN_FOLDER}")
        if made_of(of_run, stored):
            return of_run
    over_time = task.label_steps > 1
    window = windows_of_model(stored, task.label_steps, task.label_every_s) if over_time else None
    return load_data(DataConfig(url=url, window=window))


def _predict_split(predictor: Predictor, place: str, url: str, options: argparse.Namespace) -> Iterator[Row]:
    """Predictions for the samples of a packed split, by key. `place`: of the model."""
    import torch

    from maestro_dist.config.schema import DataConfig
    from maestro_dist.data.compatibility import check_values, fit_modalities, log_notes
    from maestro_dist.data.manifest import MANIFEST_NAME
    from maestro_dist.data.reader import SplitSource
    from maestro_dist.data.stream import DataRank, evaluation_batches
    from maestro_dist.data.symbols import reads_symbols

    url = url if "://" in url else str(Path(url).expanduser().absolute())
    if not Storage(url).exists(MANIFEST_NAME):
        raise DataError(
            f"{Storage(url).name()}: not a packed data set (it has no {MANIFEST_NAME}) nor a .npz, .json or .jsonl file"
        )
    manifest, model = _manifest(place, url, predictor.task), predictor.model.config
    modalities = predictor.modalities
    try:
        manifest.split(options.split)
    except ConfigError as error:
        raise ConfigError(f"{error} (choose another with --split)") from None
    manifest, notes = fit_modalities(manifest, modalities, model, any_units=options.any_units)
    source = SplitSource(url, manifest, DataConfig(url=url), tuple(modalities), options.split)
    if model.needs_statistics:
        notes += check_values(source, any_units=options.any_units)
    log_notes(notes)
    source = replace(source, symbols=reads_symbols(manifest, model, modalities))
    with torch.no_grad():
        for batch in evaluation_batches(source, options.batch, DataRank()):
            logits = predictor.model(batch)["logits"].float().numpy()
            predictions = predictor.answers(logits, batch.present.any(dim=1).numpy(), batch.keys)
            yield from _rows(batch.keys, predictions, predictor.starts_s)


def _rows(keys: Any, predictions: np.ndarray, starts_s: Sequence[float]) -> Iterator[Row]:
    parts = len(starts_s)
    numbers = predictions.reshape(len(predictions), parts, -1).tolist() if len(predictions) else []
    for key, prediction in zip(keys, numbers, strict=True):
        for start, part in zip(starts_s, prediction, strict=True):
            found = [None if value != value else value for value in part]
            yield key, found if parts == 1 else [start, *found]


def _write_csv(file: TextIO, columns: Sequence[str], rows: Sequence[Row], *, over_time: bool) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["sample", *([_START] if over_time else []), *columns])
    writer.writerows([key, *prediction] for key, prediction in rows)


def _write_json(file: TextIO, columns: Sequence[str], rows: Sequence[Row], *, over_time: bool) -> None:
    for key, prediction in rows:
        start, numbers = ({_START: prediction[0]}, prediction[1:]) if over_time else ({}, prediction)
        answer = dict(zip(columns, numbers, strict=True))
        file.write(json.dumps({"sample": key, **start, "answer": answer}, ensure_ascii=False) + "\n")
