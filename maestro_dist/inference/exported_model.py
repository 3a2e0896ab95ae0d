"""An exported model on storage: `model.json` (configuration, modalities, task) and `model.safetensors` (weights).

It contains no pickle. Loading it needs neither DeepSpeed nor Ray nor MLflow.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from maestro_dist.config.model import ModelConfig
from maestro_dist.config.renamed import current
from maestro_dist.data.storage import ObjectDamaged, ObjectMissing, Storage
from maestro_dist.data.storage.plain_json import parse_json
from maestro_dist.errors import CheckpointError
from maestro_dist.types import HeadShape, Modality, TargetScale

if TYPE_CHECKING:
    from torch import Tensor


FORMAT = "maestro_dist/model/1"
DESCRIPTION, WEIGHTS = "model.json", "model.safetensors"
RUN_FOLDER = "model"
"""Folder of the exported model in the folder of a run."""


@dataclass(frozen=True)
class TaskDescription:
    """The task of a model: `kind` is classification, regression or pretrain.

    classes                  names of the classes (classification)
    target                   name and unit of the target
    target_mean, target_std  mean and standard deviation of the target in the training split (regression)
    targets                  names, means and deviations of several targets (regression)
    label_steps              parts of a window that are predicted one by one, of `label_every_s` seconds each; 1: the
                             window as a whole
    """

    kind: str
    classes: tuple[str, ...] = ()
    target: str = ""
    target_mean: float = 0.0
    target_std: float = 1.0
    targets: tuple[TargetScale, ...] = ()
    label_steps: int = 1
    label_every_s: float = 0.0

    @property
    def outputs(self) -> int:
        """Outputs of the model."""
        return self.shape.steps * self.shape.numbers

    @property
    def shape(self) -> HeadShape:
        """What the model predicts."""
        return HeadShape(len(self.columns) or 1, self.label_steps, self.label_every_s)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the predicted numbers, of a part of the window over time: the classes, the targets, or `value`."""
        return self.classes or tuple(target.name for target in self.targets) or ("value",)

    @property
    def starts_s(self) -> tuple[float, ...]:
        """When each part begins, in seconds after the window's start."""
        return tuple(float(f"{part * self.label_every_s:.12g}") for part in range(self.label_steps))

    @property
    def flat_columns(self) -> tuple[str, ...]:
        """Names of all numbers of a sample: `columns`; over time `sit at 0 s`, `walk at 0 s`, `sit at 2 s`, ..."""
        if self.label_steps == 1:
            return self.columns
        return tuple(f"{name} at {start:.12g} s" for start in self.starts_s for name in self.columns)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; what earlier versions do not know is left out if it has its default."""
        later = {"targets": (), "label_steps": 1, "label_every_s": 0.0}
        return {name: value for name, value in asdict(self).items() if name not in later or value != later[name]}


def export_model(
    folder: str,
    *,
    config: ModelConfig,
    modalities: Sequence[Modality],
    task: TaskDescription,
    weights: Mapping[str, Tensor],
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write a model to a folder or URL; `model.json` is written last. `about`: its origin, as plain JSON."""
    from safetensors.torch import save

    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()})
    description = {
        "format": FORMAT,
        "model": config.model_dump(mode="json"),
        "modalities": [asdict(modality) for modality in modalities],
        "task": task.to_json(),
        "weights": {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()},
        "about": dict(about or {}),
    }
    storage = Storage(folder)
    storage.write(WEIGHTS, data)
    storage.write(DESCRIPTION, json.dumps(description, indent=1).encode())


def read_description(storage: Storage) -> dict[str, Any]:
    """`model.json` of an exported model. Raises CheckpointError if it is missing, damaged or of another format."""
    name = storage.name(DESCRIPTION)
    try:
        description: dict[str, Any] = storage.parsed(DESCRIPTION, parse_json)
    except ObjectMissing as error:
        raise CheckpointError(f"{storage.name()}: no exported model here ({DESCRIPTION}, {WEIGHTS})") from error
    except ObjectDamaged as error:
        raise CheckpointError(f"{name}: not JSON ({error.problem}){error.asked}") from error
    file_format = description.get("format") if isinstance(description, dict) else None
    if file_format != FORMAT:
        raise CheckpointError(f"{name}: format {file_format!r} is not {FORMAT!r}")
    try:
        model_config(description), modalities_of(description), task_description(description)
        str(description["weights"]["sha256"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{name}: damaged, or written by another version ({' '.join(str(error).split())[:200]})"
        ) from None
    return description


def model_config(description: Mapping[str, Any]) -> ModelConfig:
    """The model configuration in `model.json`."""
    return ModelConfig.model_validate(current(description["model"], "model"))


def modalities_of(description: Mapping[str, Any]) -> list[Modality]:
    """The modalities in `model.json`."""
    return [
        Modality(**{**modality, "mean": tuple(modality["mean"]), "std": tuple(modality["std"])})
        for modality in description["modalities"]
    ]


def task_description(description: Mapping[str, Any]) -> TaskDescription:
    """The task in `model.json`."""
    task = description["task"]
    targets = tuple(TargetScale(**target) for target in task.get("targets", ()))
    return TaskDescription(**{**task, "classes": tuple(task["classes"]), "targets": targets})


def read_weights(storage: Storage) -> dict[str, Tensor]:
    """Parameters and buffers of an exported model. Raises CheckpointError if they are missing or damaged."""
    from safetensors.torch import load

    from maestro_dist.model.names import current_name

    digest = read_description(storage)["weights"]["sha256"]

    def verified(data: bytes) -> bytes:
        if hashlib.sha256(data).hexdigest() != digest:
            raise ValueError(f"its sha256 differs from the one in {DESCRIPTION}")
        return data

    try:
        data = storage.parsed(WEIGHTS, verified)
    except ObjectMissing as error:
        raise CheckpointError(f"{storage.name()}: no exported model here ({DESCRIPTION}, {WEIGHTS})") from error
    except ObjectDamaged as error:
        raise CheckpointError(f"{storage.name(WEIGHTS)}: damaged ({error.problem}){error.asked}") from error
    return {current_name(name): tensor for name, tensor in load(data).items()}
