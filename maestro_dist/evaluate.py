"""Evaluate a trained model: `python -m maestro_dist.evaluate RUN_OR_CHECKPOINT`.

RUN is a run's folder or URL (its best checkpoint is taken), or the name of a run in `runs/`; CHECKPOINT is one of its
`checkpoints/step-*` folders. Prints the metrics of the split, complete and with modalities missing.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maestro_dist.errors import CheckpointError, ConfigError, DataError, run_main
from maestro_dist.terminal import never_fail_to_print

if TYPE_CHECKING:
    from torch import Tensor

    from maestro_dist.data.manifest import Manifest
    from maestro_dist.model import Trunk
    from maestro_dist.types import Modality


@dataclass(frozen=True)
class Target:
    """A run and, where one was named, the step of a checkpoint."""

    run_url: str
    step: int | None


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m maestro_dist.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("target", metavar="RUN_OR_CHECKPOINT")
    parser.add_argument("--split", help="split to evaluate; by default the run's test split")
    parser.add_argument("--data", metavar="URL", help="data set to evaluate on; by default the run's own")
    parser.add_argument("--rates", type=_share, nargs="+", metavar="RATE", help="missing rates; by default the run's")
    parser.add_argument("--draws", type=_count, nargs="+", metavar="N", help="mask draws; by default the run's")
    parser.add_argument("--batch", type=_positive, metavar="N", help="samples at a time; by default the run's")
    parser.add_argument("--threads", type=_positive, metavar="N", help="torch threads; by default all cores")
    parser.add_argument("--json", metavar="FILE", help="write the results there too")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    never_fail_to_print()
    options = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    return run_main(lambda: evaluate(options), debug=options.debug)


def evaluate(options: argparse.Namespace) -> int:
    """Load the weights into one process, evaluate, print the table."""
    if options.json and not Path(options.json).absolute().parent.is_dir():
        raise ConfigError(f"--json {options.json}: no such folder")
    target = find_target(options.target)
    config = _configuration(target, options)

    import torch

    from maestro_dist.checkpoint import best, find, full_weights
    from maestro_dist.data.manifest import load_manifest
    from maestro_dist.data.stream import evaluation_batches, presence
    from maestro_dist.data.symbols import reads_symbols
    from maestro_dist.evaluation import evaluate_split
    from maestro_dist.evaluation.table import results_table
    from maestro_dist.parallel.mesh import Mesh
    from maestro_dist.run_record import DATA_FOLDER
    from maestro_dist.worker import build

    if options.threads:
        torch.set_num_threads(options.threads)
    checkpoint = best(target.run_url) if target.step is None else find(target.run_url, target.step)
    # The run's own manifest says what the model was made for; another data set gives samples only.
    pieces = build(config, load_manifest(f"{target.run_url}/{DATA_FOLDER}"))
    manifest = load_manifest(config.data.url)
    labelled = pieces.task.kind != "pretrain"
    _check_same(pieces.manifest, manifest, pieces.modalities, named=bool(options.data), labelled=labelled)
    _load(pieces.model, full_weights(checkpoint), checkpoint.url)
    mesh = Mesh(rank=0, world=1, data=1)
    split, symbols = config.data.test, reads_symbols(manifest, config.model, pieces.modalities)
    found = evaluate_split(
        pieces.model,
        pieces.task,
        lambda keep: evaluation_batches(
            config.data.url,
            manifest,
            config.data,
            pieces.modalities,
            split,
            batch=config.evaluation.batch,
            rank=0,
            ranks=1,
            keep=keep,
            symbols=symbols,
        ),
        presence(config.data.url, manifest, pieces.modalities, split, symbols=symbols),
        rates=config.evaluation.test_rates,
        draws=config.evaluation.draws,
        mesh=mesh,
        split=split,
        always=[modality.always for modality in pieces.modalities],
        progress=True,
    )
    print(f"{checkpoint.url}: {'averaged ' if checkpoint.averaged else ''}weights of step {checkpoint.step}")
    print(results_table(found))
    if options.json:
        Path(options.json).write_text(json.dumps(found.to_json(), indent=1), encoding="utf-8")
    return 0


def find_target(text: str) -> Target:
    """What `RUN_OR_CHECKPOINT` means. Raises `ConfigError` where it names neither."""
    from maestro_dist.data.storage import Storage

    url = text.rstrip("/")
    if "://" not in url:
        path = Path(url).expanduser()
        if not path.exists() and (Path("runs") / url).exists():
            path = Path("runs") / url
        url = str(path.absolute())
    match = re.fullmatch(r"(.+)/checkpoints/step-(\d+)", url)
    run_url, step = (match[1], int(match[2])) if match else (url, None)
    if not Storage(run_url).exists("config.yaml"):
        raise ConfigError(f"{Storage(run_url).name()}: not a run (it has no config.yaml) nor a checkpoint of one")
    return Target(run_url, step)


def _configuration(target: Target, options: argparse.Namespace) -> Any:
    import yaml

    from maestro_dist.config.load import parse
    from maestro_dist.data.storage import Storage

    run = Storage(target.run_url)
    try:
        tree = yaml.safe_load(run.read("config.yaml"))
        data, evaluation = dict(tree["data"]), dict(tree["evaluation"])
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{run.name('config.yaml')} is damaged ({type(error).__name__})") from None
    data["test"] = options.split or data["test"]
    data["url"] = options.data or data["url"]
    if "://" not in data["url"]:
        data["url"] = str(Path(data["url"]).expanduser().absolute())
    evaluation["test_rates"] = options.rates or evaluation["test_rates"]
    evaluation["draws"] = options.draws or evaluation["draws"]
    evaluation["batch"] = options.batch or evaluation["batch"]
    return parse({**tree, "data": data, "evaluation": evaluation}, run.name("config.yaml"))


def _check_same(own: Manifest, other: Manifest, modalities: Sequence[Modality], *, named: bool, labelled: bool) -> None:
    """The data must mean the same to the model: its classes in order, its modalities with their shapes and rates."""
    if not named and own.fingerprint() != other.fingerprint():
        raise DataError(
            f"the data at the run's data.url is not what {own.name!r} was when the run began; "
            "name a data set with --data to evaluate on it all the same"
        )
    if labelled and (own.task, own.classes) != (other.task, other.classes):
        raise DataError(f"--data: task and classes of {other.name!r} are not those that the model was trained for")
    shapes = {m.name: (m.variates, m.steps, m.rate_hz) for m in other.modalities}
    for modality in modalities:
        wanted = (modality.variates, modality.steps, modality.rate_hz)
        if shapes.get(modality.name) != wanted:
            found = shapes.get(modality.name, "not there")
            raise DataError(
                f"--data: modality {modality.name!r} of {other.name!r} is {found}, the model needs {wanted} "
                "(variates, steps, Hz)"
            )


def _load(model: Trunk, weights: dict[str, Tensor], url: str) -> None:
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"{url} is of another model than config.yaml says: {' '.join(str(error).split())[:200]}"
        ) from None
    model.eval()


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
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
