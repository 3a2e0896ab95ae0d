"""An exported model: written after training, loaded for use, asked with any subset of its sensors.

A model is a folder with `model.json` (configuration, modalities, task) and `model.safetensors` (weights). It needs
neither DeepSpeed nor Ray nor MLflow, and holds no pickle.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from maestro_dist.config.learning import TaskConfig
from maestro_dist.config.model import ModelConfig
from maestro_dist.data.storage import ObjectMissing, Storage
from maestro_dist.errors import CheckpointError, DataError
from maestro_dist.task import make_task
from maestro_dist.types import Batch, Modality

if TYPE_CHECKING:
    from torch import Tensor

    from maestro_dist.model import Maestro
    from maestro_dist.task import Task

FORMAT = "maestro_dist/model/1"
DESCRIPTION, WEIGHTS = "model.json", "model.safetensors"

Sample = Mapping[str, Any]
"""Modality name -> array [T_j, D_j]; NaN where a step was not observed; a missing key or None: no such sensor."""


@dataclass(frozen=True)
class TaskDescription:
    """What a model answers: `classes`, or a number in the unit that `target` names.

    `target_mean` and `target_std` are those of the training split (regression).
    """

    kind: str
    classes: tuple[str, ...] = ()
    target: str = ""
    target_mean: float = 0.0
    target_std: float = 1.0


def export_model(
    folder: str,
    *,
    config: ModelConfig,
    modalities: Sequence[Modality],
    task: TaskDescription,
    weights: Mapping[str, Tensor],
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write a model to a folder or URL. `about` (plain JSON) says where it comes from; `model.json` is written last."""
    from safetensors.torch import save

    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()})
    description = {
        "format": FORMAT,
        "model": config.model_dump(mode="json"),
        "modalities": [asdict(modality) for modality in modalities],
        "task": asdict(task),
        "weights": {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()},
        "about": dict(about or {}),
    }
    storage = Storage(folder)
    storage.write(WEIGHTS, data)
    storage.write(DESCRIPTION, json.dumps(description, indent=1).encode())


def read_description(storage: Storage) -> dict[str, Any]:
    """`model.json` of an exported model. Raises CheckpointError if it is missing, damaged or of another format."""
    try:
        description: dict[str, Any] = json.loads(storage.read(DESCRIPTION))
    except ObjectMissing as error:
        raise CheckpointError(f"{storage.name()}: no exported model ({DESCRIPTION}, {WEIGHTS})") from error
    except ValueError as error:
        raise CheckpointError(f"{storage.name(DESCRIPTION)}: not JSON ({error})") from error
    if description.get("format") != FORMAT:
        raise CheckpointError(f"{storage.name(DESCRIPTION)}: format {description.get('format')!r} is not {FORMAT!r}")
    return description


def read_weights(storage: Storage) -> dict[str, Tensor]:
    """Parameters and buffers of an exported model. Raises CheckpointError if they are missing or damaged."""
    from safetensors.torch import load

    description = read_description(storage)
    try:
        data = storage.read(WEIGHTS)
    except ObjectMissing as error:
        raise CheckpointError(f"{storage.name()}: no exported model ({DESCRIPTION}, {WEIGHTS})") from error
    if hashlib.sha256(data).hexdigest() != description["weights"]["sha256"]:
        raise CheckpointError(f"{storage.name(WEIGHTS)}: damaged (its sha256 is not that of {DESCRIPTION})")
    return load(data)


def model_config(description: Mapping[str, Any]) -> ModelConfig:
    """The configuration of an exported model."""
    return ModelConfig.model_validate(description["model"])


def task_of(task: TaskDescription) -> Task:
    """What turns a model's logits into answers and metrics."""
    return make_task(
        TaskConfig(),
        kind=task.kind,
        classes=task.classes,
        target_mean=task.target_mean,
        target_std=task.target_std,
    )


def load_model(folder: str, *, device: str = "cpu") -> Predictor:
    """Load a model from a folder or URL.

    Raises CheckpointError if it is missing, damaged or of another format, or was pre-trained only.
    """
    from maestro_dist.model import Maestro

    storage = Storage(folder)
    description = read_description(storage)
    if description["task"]["kind"] == "pretrain":
        raise CheckpointError(
            f"{storage.name()}: this model was pre-trained only and has no head to answer with; fine-tune it first "
            "(run.start)"
        )
    weights = read_weights(storage)
    task = TaskDescription(**{**description["task"], "classes": tuple(description["task"]["classes"])})
    modalities = [
        Modality(**{**modality, "mean": tuple(modality["mean"]), "std": tuple(modality["std"])})
        for modality in description["modalities"]
    ]
    config = model_config(description)
    model = Maestro(config, modalities, len(task.classes) or 1, seed=0)
    model.load_state_dict(weights)
    return Predictor(model.eval().to(device), task, device=device)


class Predictor:
    """Answers for samples that have any subset of the model's modalities."""

    def __init__(self, model: Maestro, task: TaskDescription, *, device: str = "cpu") -> None:
        self.model = model
        self.modalities: list[Modality] = list(model.modalities)
        self.task = task
        self.device = device
        self.wants_recording = model.config.normalize == "recording"
        self._task = task_of(task)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the columns of `predict` (classification)."""
        return self.task.classes

    def predict(
        self, samples: Sequence[Sample], recording: Sequence[Sample] | None = None, *, batch: int = 256
    ) -> np.ndarray:
        """Class probabilities float64 [N, C], or values float64 [N] in the target's unit.

        `recording` holds, for a model with `normalize: recording`, mean and standard deviation [D_j, 2] of each
        present modality over the person's recording up to the window's end. Raises DataError naming the sample and
        modality whose array does not fit.
        """
        import torch

        if self.wants_recording and (recording is None or len(recording) != len(samples)):
            raise DataError("this model normalises by recording: give mean and std of the recording with each sample")
        logits = [np.zeros((0, self._task.outputs), dtype=np.float32)]
        with torch.no_grad():
            for start in range(0, len(samples), batch):
                chosen = slice(start, start + batch)
                made = self._batch(samples[chosen], recording[chosen] if recording is not None else None, start)
                logits.append(self.model(made.to(self.device))["logits"].float().cpu().numpy())
        return self._task.predictions(np.concatenate(logits))

    def _batch(self, samples: Sequence[Sample], recording: Sequence[Sample] | None, first: int) -> Batch:
        import torch

        known = {modality.name for modality in self.modalities}
        for number, sample in enumerate(samples, start=first):
            unknown = sorted(set(sample) - known)
            if unknown:
                raise DataError(
                    f"sample {number}: no modality {unknown[0]!r}; the model has {', '.join(sorted(known))}"
                )
        values, rows, statistics = {}, {}, {}
        present = np.array([[s.get(m.name) is not None for m in self.modalities] for s in samples])
        for column, modality in enumerate(self.modalities):
            name = modality.name
            having = np.flatnonzero(present[:, column]).tolist()
            shape = (modality.steps, modality.variates)
            arrays = [_array(samples[row][name], shape, f"sample {first + row}, {name}") for row in having]
            values[name] = torch.from_numpy(np.array(arrays, dtype=np.float32).reshape(-1, *shape))
            rows[name] = torch.tensor(having, dtype=torch.int64)
            if recording is not None:
                shape = (modality.variates, 2)
                arrays = [_array(recording[row].get(name), shape, f"recording {first + row}, {name}") for row in having]
                statistics[name] = torch.from_numpy(np.array(arrays, dtype=np.float32).reshape(-1, *shape))
        return Batch(
            values=values,
            rows=rows,
            present=torch.from_numpy(present),
            sample=torch.arange(first, first + len(samples)),
            target=torch.zeros(len(samples)),
            recording=statistics,
        )


def _array(given: Any, shape: tuple[int, int], where: str) -> np.ndarray:
    """float32 of the wanted shape; None inside nested lists is NaN."""
    try:
        array = np.array(given, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: not an array of numbers [{shape[0]}, {shape[1]}]") from error
    if array.shape != shape:
        raise DataError(f"{where}: shape {list(array.shape)} should be [{shape[0]}, {shape[1]}] (steps, variates)")
    return array
