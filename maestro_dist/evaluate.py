"""Evaluate a trained model: `python -m maestro_dist.evaluate MODEL`.

MODEL is the folder, URL or name (in `runs/`) of a run, whose best checkpoint is evaluated; or one of its
`checkpoints/step-*` folders; or an exported model (`runs/NAME/model`, or a copy of it together with `--data`).
Prints the metrics of one split, complete and with modalities missing.

Another data set (`--data`) may lack some of the model's modalities. Its classes, shapes, rates and units must be equal
to those of the training data, and its scales must be similar. Its own splits are used, not `data.split` of the run.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from maestro_dist.errors import ConfigError, DataError, StorageError, run_main
from maestro_dist.inference.find_model import check_writable
from maestro_dist.system.terminal import lost, never_fail_to_print

if TYPE_CHECKING:
    import numpy as np

    from maestro_dist.config.schema import Config, DataConfig
    from maestro_dist.data.manifest import Manifest
    from maestro_dist.run.target import Loaded, Target


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m maestro_dist.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("target", metavar="MODEL")
    parser.add_argument("--split", help="split to evaluate (default: the run's test split)")
    parser.add_argument("--data", metavar="URL", help="data set to evaluate on (default: the run's own)")
    parser.add_argument(
        "--any-units", action="store_true", help="evaluate even if units or scales of --data do not fit the model"
    )
    parser.add_argument(
        "--rates",
        type=_share,
        nargs="+",
        metavar="RATE",
        help="shares of modalities to remove, 0 to 1 (default: the run's)",
    )
    parser.add_argument(
        "--draws",
        type=_count,
        nargs="+",
        metavar="N",
        help="numbers of the random draws of missing modalities (default: the run's)",
    )
    parser.add_argument("--batch", type=_positive, metavar="N", help="batch size in samples (default: the run's)")
    parser.add_argument("--threads", type=_positive, metavar="N", help="torch threads (default: all cores)")
    parser.add_argument("--json", metavar="FILE", help="also write the results to this file")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors and debug messages")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    never_fail_to_print()
    options = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    return run_main(lambda: evaluate(options), debug=options.debug)


def evaluate(options: argparse.Namespace) -> int:
    """Load the weights, evaluate in this process, print the table. Writes no file except `--json`."""
    from maestro_dist.run.target import find_target, load

    if options.json:
        check_writable(Path(options.json).expanduser(), "--json")
    target = find_target(options.target)
    config = _configuration(target, options)

    import torch

    from maestro_dist.data.compatibility import log_notes
    from maestro_dist.data.mixture.source import source_of
    from maestro_dist.data.stream import DataRank
    from maestro_dist.data.symbols import reads_symbols
    from maestro_dist.evaluation import EvaluationData, EvaluationPlan, evaluate_split
    from maestro_dist.evaluation.table import results_table
    from maestro_dist.parallel.mesh import Mesh

    if options.threads:
        torch.set_num_threads(options.threads)
    loaded, split = load(target, config), config.data.test
    manifest, notes = _fitted_manifest(loaded, config, options)
    symbols = reads_symbols(manifest, config.model, loaded.modalities)
    source = source_of(config.data.url, manifest, config.data, tuple(loaded.modalities), split, symbols)
    data = EvaluationData.of(source, config.evaluation.batch, DataRank())
    log_notes([*_unfinished(target), *notes, *_unobserved(data.present, manifest.name, split)])
    plan = EvaluationPlan(split, config.evaluation.test_rates, config.evaluation.draws, progress=True)
    result = evaluate_split(loaded.model, loaded.task, data, plan, Mesh(rank=0, world=1, data=1))
    print(loaded.about)
    print(results_table(result), flush=True)
    if options.json:
        _save_json(Path(options.json).expanduser(), json.dumps(result.to_json(), indent=1))
    if error := lost(sys.stdout):
        raise StorageError(f"the table was not written completely: {error.strerror}")
    return 0


def _configuration(target: Target, options: argparse.Namespace) -> Config:
    """The configuration of the target, with the values of the command line."""
    from maestro_dist.config.load import parse
    from maestro_dist.data.storage import Storage
    from maestro_dist.data.storage.settings import configure
    from maestro_dist.run.target import read_config

    tree = read_config(target)
    data, evaluation = tree["data"], tree["evaluation"]
    data["test"] = options.split or data["test"]
    if options.data:
        data |= {"url": options.data, "sources": []}
    if not data["url"] and not data.get("sources"):
        raise ConfigError(
            f"{target.name}: an exported model does not name its data; add --data URL (a packed data set)"
        )
    if data["url"] and "://" not in data["url"]:
        data["url"] = str(Path(data["url"]).expanduser().absolute())
    options_by_key = {"test_rates": options.rates, "draws": options.draws, "batch": options.batch}
    evaluation.update({name: value for name, value in options_by_key.items() if value})
    config = parse(tree, Storage(target.url).name("config.yaml"))
    configure(config)
    if target.exported:
        from maestro_dist.inference.exported_model import model_config, read_description

        config = config.model_copy(update={"model": model_config(read_description(Storage(target.url)))})
    return config


def _fitted_manifest(loaded: Loaded, config: Config, options: argparse.Namespace) -> tuple[Manifest, list[str]]:
    """The manifest as the model reads it, and notes for the user. Raises an error if the data set does not fit."""
    from maestro_dist.data.compatibility import check_labels, check_values, fit_modalities

    run_manifest, split, any_units = loaded.manifest, config.data.test, options.any_units
    try:
        manifest = _manifest(config.data, loaded, other=bool(options.data))
    except DataError as error:
        raise error if options.data else DataError(f"{error} (choose another place with --data)") from None
    if run_manifest is not None and not options.data and run_manifest.fingerprint() != manifest.fingerprint():
        raise DataError(
            f"the data at the run's data.url is not the {run_manifest.name!r} with which the run started; "
            "to evaluate on it anyway, name it with --data"
        )
    try:
        manifest.split(split)
    except ConfigError as error:
        raise ConfigError(f"{error} (choose another with --split)") from None
    if run_manifest is not None and run_manifest.fingerprint() == manifest.fingerprint():
        return manifest, []
    notes = []
    if options.data and config.data.split is not None and manifest is not run_manifest:
        notes.append(f"note: data.split of the run is not used: split {split!r} is that of {manifest.name!r} itself")
    if loaded.task.kind != "pretrain":
        notes += check_labels(manifest, split, loaded.answer, any_units=any_units)
    manifest, more = fit_modalities(manifest, loaded.modalities, config.model, any_units=any_units)
    notes += more
    if config.model.needs_statistics:
        from maestro_dist.data.mixture.source import source_of

        source = source_of(config.data.url, manifest, config.data, tuple(loaded.modalities), split)
        notes += check_values(source, any_units=any_units)
    return manifest, notes


def _manifest(data: DataConfig, loaded: Loaded, *, other: bool) -> Manifest:
    """The run's manifest if its windows or splits were made of this data set; else that of the data set.

    An `other` data set has its own splits, and, if it holds recordings, windows of the run's length, or, for a model
    without a run, with as many labels over time as it predicts.
    """
    from maestro_dist.data.load import load_data
    from maestro_dist.data.manifest import load_manifest
    from maestro_dist.data.recordings.cut_data import made_of, windows_of_model

    if data.sources:
        return load_data(data)
    stored, run_manifest, answer = load_manifest(data.url), loaded.manifest, loaded.answer
    if run_manifest is not None and made_of(run_manifest, stored):
        return run_manifest
    if other:
        window = data.window
        if window is None and run_manifest is not None and run_manifest.cut is not None:
            window = run_manifest.cut.window
        if window is None and run_manifest is None:
            window = windows_of_model(stored, answer.label_steps, answer.label_every_s)
        changes = {"window": window if stored.recordings is not None else None, "split": None}
        data = data.model_copy(update=changes)
    return load_data(data)


def _unfinished(target: Target) -> list[str]:
    from maestro_dist.callbacks.final_test import RESULT_FILE
    from maestro_dist.data.storage import Storage

    if target.exported or Storage(target.url).exists(RESULT_FILE):
        return []
    return ["note: the run has not ended; this is its best checkpoint so far"]


def _unobserved(present: np.ndarray, name: str, split: str) -> list[str]:
    """Warn about samples without any of the model's modalities. Raises `DataError` if no sample has any."""
    count = int((~present.any(axis=1)).sum())
    if count == len(present):
        raise DataError(f"split {split!r} of {name!r}: no sample has any of the model's modalities")
    if not count:
        return []
    return [
        f"warning: {count:,} of {len(present):,} samples of split {split!r} have none of the model's modalities; they "
        "are counted, with the average prediction of the training data"
    ]


def _save_json(path: Path, content: str) -> None:
    """Write the results to a file. The table has already been printed, so the error only concerns the file."""
    try:
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"the results were not saved: cannot write --json {path}: {error.strerror}") from error


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return int(text)


def _count(text: str) -> int:
    if int(text) < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return int(text)


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
