"""The target of `evaluate`: a run, one of its checkpoints, or an exported model; and how to load it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from maestro_dist.config.renamed import current
from maestro_dist.config.schema import Config
from maestro_dist.data.compatibility import Answer
from maestro_dist.data.storage import ObjectMissing, Storage
from maestro_dist.errors import CheckpointError, ConfigError, DataError
from maestro_dist.inference.exported_model import DESCRIPTION, RUN_FOLDER
from maestro_dist.inference.find_model import CONFIG, place_of, what_may_be_meant
from maestro_dist.inference.predictor import load_model, task_of

if TYPE_CHECKING:
    from torch import Tensor

    from maestro_dist.data.manifest import Manifest
    from maestro_dist.model import Trunk
    from maestro_dist.task.base import Task
    from maestro_dist.types import Modality


@dataclass(frozen=True)
class Target:
    """A run (`step`: one of its checkpoints), or an exported model (`exported`)."""

    url: str
    step: int | None = None
    exported: bool = False

    @property
    def name(self) -> str:
        """The place without credentials."""
        return Storage(self.url).name()


@dataclass(frozen=True)
class Loaded:
    """A model in evaluation mode.

    answer    what the model predicts
    about     one line that describes the source of the weights
    manifest  the manifest of the run's own data; None for an exported model
    """

    model: Trunk
    modalities: list[Modality]
    task: Task
    answer: Answer
    about: str
    manifest: Manifest | None


def find_target(text: str) -> Target:
    """The target that a command line names: a folder or URL, or the name of a run in `runs/`.

    Raises `ConfigError` if there is none, and suggests a similar name.
    """
    url = place_of(text.rstrip("/")).url.removesuffix(f"/{CONFIG}")
    match = re.fullmatch(r"(.+)/checkpoints/step-(\d+)", url)
    run_url, step = (match[1], int(match[2])) if match else (url, None)
    storage = Storage(run_url)
    if storage.exists(CONFIG):
        return Target(run_url, step)
    if storage.exists(DESCRIPTION):
        return Target(run_url, exported=True)
    if storage.exists("run.json"):
        raise ConfigError(
            f"{storage.name()}: this run ended before training started (it has no {CONFIG}); train it first"
        )
    raise ConfigError(
        f"{storage.name()}: not a run (it has no {CONFIG}) nor a checkpoint of one, nor an exported model "
        f"(it has no {DESCRIPTION}){what_may_be_meant(storage)}"
    )


def read_config(target: Target) -> dict[str, Any]:
    """The configuration of a target as plain values; it always has the sections `data` and `evaluation`.

    For an exported model inside a run these two sections come from the run; otherwise they are defaults with an empty
    `data.url`. Raises ConfigError if the `config.yaml` of a run is damaged.
    """
    if not target.exported:
        return _read(Storage(target.url))
    folder, _, name = target.url.rpartition("/")
    tree = Config().model_dump(mode="json")
    if name == RUN_FOLDER and Storage(folder or "/").exists(CONFIG):
        with contextlib.suppress(ConfigError):  # the model does not need it
            run = _read(Storage(folder or "/"))
            tree |= {"data": run["data"], "evaluation": run["evaluation"]}
    return tree


def _read(run: Storage) -> dict[str, Any]:
    import yaml

    try:
        tree = current(yaml.safe_load(run.read(CONFIG)))
        sections = {name: dict(tree[name]) for name in ("data", "evaluation")}
        for key in ("url", "test"):
            if not isinstance(sections["data"][key], str):
                raise TypeError(f"data.{key} is not text")
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"{run.name(CONFIG)} is damaged ({type(error).__name__}); repair it, or evaluate the run's exported model "
            f"({RUN_FOLDER}/) with --data"
        ) from None
    return {**tree, **sections}


def load(target: Target, config: Config) -> Loaded:
    """Build the model of a target and load its weights.

    Raises:
        CheckpointError: there are no weights yet, they are damaged, or they do not fit `config.yaml`.
        DataError: the run's copy of its manifest is missing or damaged.
    """
    if target.exported:
        predictor = load_model(target.url)
        description, task = predictor.task, task_of(predictor.task)
        answer = Answer(
            description.kind, description.classes, description.target, description.target_mean, description.target_std,
            description.targets, description.label_steps, description.label_every_s,
        )  # fmt: skip
        return Loaded(predictor.model, predictor.modalities, task, answer, f"{target.name}: exported model", None)

    from maestro_dist.checkpoint import best, find, full_weights
    from maestro_dist.data.manifest import load_manifest
    from maestro_dist.run.record import DATA_FOLDER
    from maestro_dist.training.builder import build

    checkpoint = best(target.url) if target.step is None else find(target.url, target.step)
    try:
        manifest = load_manifest(f"{target.url}/{DATA_FOLDER}")
    except DataError as error:
        what = "missing" if isinstance(error.__cause__, ObjectMissing) else "damaged"
        raise DataError(
            f"{Storage(target.url).name(DATA_FOLDER)}: the run's own copy of its manifest is {what}; copy the run again"
        ) from error
    # the model is built for the run's own manifest; another data set only provides samples
    pieces = build(config, manifest)
    _fill(pieces.model, full_weights(checkpoint), checkpoint.url)
    about = f"{checkpoint.url}: {'averaged ' if checkpoint.averaged else ''}weights of step {checkpoint.step}"
    train = manifest.split(config.data.train)
    answer = Answer(
        pieces.task.kind,
        tuple(manifest.classes),
        manifest.target,
        0.0 if train.target_mean is None else train.target_mean,
        1.0 if train.target_std is None else train.target_std,
        manifest.target_scales(config.data.train),
        manifest.label_steps,
    )
    return Loaded(pieces.model, pieces.modalities, pieces.task, answer, about, manifest)


def _fill(model: Trunk, weights: Mapping[str, Tensor], url: str) -> None:
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"{url} does not fit the model in {CONFIG}: {' '.join(str(error).split())[:200]}"
        ) from None
    model.eval()
