"""An exported model: written after training, loaded for use, asked with any subset of its sensors.

A model is a folder with `model.json` (configuration, modalities, task) and `model.safetensors` (weights). It needs
neither DeepSpeed nor Ray nor MLflow, and holds no pickle.

    from maestro_dist.predict import load_model

    model = load_model("runs/mine")
    model.predict({"ecg": ecg, "spo2": spo2})        # one sample: [[.9, .1]], a probability for each of model.classes
    model.predict([{"ecg": ecg}, {"spo2": spo2}])    # several, each with the sensors that it has
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from maestro_dist.config.learning import TaskConfig
from maestro_dist.config.model import ModelConfig
from maestro_dist.config.renamed import current
from maestro_dist.data.storage import ObjectMissing, Storage
from maestro_dist.errors import CheckpointError, ConfigError, DataError, NonFiniteError
from maestro_dist.predict_input import as_list, check_names, statistics, window
from maestro_dist.task import make_task
from maestro_dist.types import Batch, Modality

if TYPE_CHECKING:
    from torch import Tensor

    from maestro_dist.model import Maestro
    from maestro_dist.task import Task

FORMAT = "maestro_dist/model/1"
DESCRIPTION, WEIGHTS = "model.json", "model.safetensors"
RUN_FOLDER = "model"
"""Where a run's folder holds its exported model."""

Sample = Mapping[str, Any]
"""Modality name -> array or nested lists [T_j, D_j], of any real type; NaN, None or masked where nothing was observed.

An axis of length 1 may be left out ([T_j] where there is one variate). A missing key, None, or a window in which
nothing was observed: no such sensor.
"""


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
    name = storage.name(DESCRIPTION)
    try:
        description: dict[str, Any] = json.loads(storage.read(DESCRIPTION))
    except ObjectMissing as error:
        raise CheckpointError(f"{storage.name()}: no exported model ({DESCRIPTION}, {WEIGHTS})") from error
    except ValueError as error:
        raise CheckpointError(f"{name}: not JSON ({error})") from error
    found = description.get("format") if isinstance(description, dict) else None
    if found != FORMAT:
        raise CheckpointError(f"{name}: format {found!r} is not {FORMAT!r}")
    try:
        model_config(description), modalities_of(description), task_description(description)
        str(description["weights"]["sha256"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{name}: damaged, or written by another version ({' '.join(str(error).split())[:200]})"
        ) from None
    return description


def model_config(description: Mapping[str, Any]) -> ModelConfig:
    """The configuration that `model.json` holds."""
    return ModelConfig.model_validate(current(description["model"], "model"))


def modalities_of(description: Mapping[str, Any]) -> list[Modality]:
    """The modalities that `model.json` holds."""
    return [
        Modality(**{**modality, "mean": tuple(modality["mean"]), "std": tuple(modality["std"])})
        for modality in description["modalities"]
    ]


def task_description(description: Mapping[str, Any]) -> TaskDescription:
    """The task that `model.json` holds."""
    return TaskDescription(**{**description["task"], "classes": tuple(description["task"]["classes"])})


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


def task_of(task: TaskDescription) -> Task:
    """What turns a model's logits into answers and metrics."""
    return make_task(
        TaskConfig(),
        kind=task.kind,
        classes=task.classes,
        target_mean=task.target_mean,
        target_std=task.target_std,
    )


def load_model(folder: str | Path, *, device: str = "cpu") -> Predictor:
    """Load a model from a folder or URL: that of an exported model, or of the run that it lies in.

    Raises CheckpointError if it is missing, damaged or of another format, or was pre-trained only; ConfigError if there
    is no such device.
    """
    from maestro_dist.model import Maestro

    place = str(folder)
    storage = Storage(place if "://" in place else str(Path(place).expanduser()))
    if not storage.exists(DESCRIPTION) and storage.exists(f"{RUN_FOLDER}/{DESCRIPTION}"):
        storage = storage.join(RUN_FOLDER)
    description = read_description(storage)
    task = task_description(description)
    if task.kind == "pretrain":
        raise CheckpointError(
            f"{storage.name()}: this model was pre-trained only and has no head to answer with; fine-tune it first "
            "(run.init_from)"
        )
    weights = read_weights(storage)
    model = Maestro(model_config(description), modalities_of(description), len(task.classes) or 1, seed=0)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"{storage.name(WEIGHTS)}: not the weights of {DESCRIPTION} ({' '.join(str(error).split())[:200]})"
        ) from None
    try:
        model = model.eval().to(device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        raise ConfigError(f"device {device!r}: {' '.join(str(error).split())[:200]}") from None
    return Predictor(model, task, device=device)


class Predictor:
    """Answers for samples that have any subset of the model's modalities."""

    def __init__(self, model: Maestro, task: TaskDescription, *, device: str = "cpu") -> None:
        self.model = model
        self.modalities: list[Modality] = list(model.modalities)
        self.names = [modality.name for modality in self.modalities]
        self.task = task
        self.device = device
        self.wants_recording = model.config.normalize == "recording"
        self._task = task_of(task)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the columns of `predict` (classification)."""
        return self.task.classes

    def predict(
        self,
        samples: Sample | Iterable[Sample],
        recording: Sample | Iterable[Sample] | None = None,
        *,
        batch: int = 256,
        unobserved: Literal["refuse", "nan"] = "refuse",
    ) -> np.ndarray:
        """Class probabilities float64 [N, C], or values float64 [N] in the target's unit.

        One sample (a dict) is taken as a list of one, so N is 1. `recording` holds, for a model with `normalize:
        recording`, mean and standard deviation [D_j, 2] of each present modality over the person's recording up to the
        window's end, sample by sample; other models do not look at it. An answer needs something observed:
        `unobserved` says whether a sample without is refused, or has NaN for an answer.

        Raises:
            DataError: a sample does not fit, or nothing was observed in it; the message names sample and modality.
            NonFiniteError: the model's answer is not a finite number.
        """
        import torch

        given = as_list(samples)
        recordings = self._recordings(given, recording)
        if batch < 1:
            raise ConfigError(f"batch: {batch} is not 1 or more")
        logits, observed = [np.zeros((0, self._task.outputs), dtype=np.float32)], [np.zeros(0, dtype=bool)]
        with torch.no_grad():
            for start in range(0, len(given), batch):
                chosen = slice(start, start + batch)
                made = self._batch(given[chosen], recordings[chosen] if recordings else None, start)
                there = made.present.any(dim=1).numpy()
                if unobserved == "refuse" and not there.all():
                    raise DataError(
                        f"sample {start + int(np.argmin(there))}: none of {', '.join(self.names)} was observed; "
                        "there is nothing to answer from"
                    )
                observed.append(there)
                logits.append(self.model(made.to(self.device))["logits"].float().cpu().numpy())
        return self.answers(np.concatenate(logits), np.concatenate(observed))

    def answers(self, logits: np.ndarray, observed: np.ndarray, names: Sequence[str] | None = None) -> np.ndarray:
        """What `predict` returns, from logits [N, C] of samples in which something was observed, bool [N], or not.

        `names` are the samples' names for messages; by default their numbers.
        """
        bad = np.flatnonzero(observed & ~np.isfinite(logits).all(axis=1))
        if len(bad):
            name = names[bad[0]] if names else bad[0]
            raise NonFiniteError(f"sample {name}: the model's answer is not a finite number; are its values sound?")
        answers = self._task.predictions(logits)
        answers[~observed] = np.nan
        return answers

    def _recordings(self, samples: Sequence[Sample], given: Any) -> list[Mapping[str, Any]]:
        """Statistics by sample; none where the model does not look at them."""
        if not self.wants_recording:
            return []
        found = [] if given is None else as_list(given)
        if len(found) != len(samples):
            raise DataError(
                "this model normalises by recording: give mean and standard deviation of the recording with each "
                f"sample ({len(samples)} samples, {len(found)} recordings)"
            )
        for number, sample in enumerate(found):
            check_names(sample, self.names, f"recording {number}")
        return found

    def _batch(self, samples: Sequence[Sample], recording: Sequence[Mapping[str, Any]] | None, first: int) -> Batch:
        import torch

        for number, sample in enumerate(samples, start=first):
            check_names(sample, self.names, f"sample {number}")
        values, rows, stored = {}, {}, {}
        present = np.zeros((len(samples), len(self.modalities)), dtype=bool)
        for column, modality in enumerate(self.modalities):
            name, shape = modality.name, (modality.steps, modality.variates)
            arrays, pairs = [], []
            for row, sample in enumerate(samples):
                where = f"sample {first + row}, {name}"
                array = None if sample.get(name) is None else window(sample[name], modality, where)
                if array is None:
                    continue
                present[row, column] = True
                arrays.append(array)
                if recording is not None:
                    pairs.append(statistics(recording[row].get(name), modality.variates, where))
            values[name] = torch.from_numpy(np.array(arrays, dtype=np.float32).reshape(-1, *shape))
            rows[name] = torch.from_numpy(np.flatnonzero(present[:, column]))
            if recording is not None:
                pair = np.array(pairs, dtype=np.float32).reshape(-1, modality.variates, 2)
                stored[name] = torch.from_numpy(pair)
        return Batch(
            values=values,
            rows=rows,
            present=torch.from_numpy(present),
            sample=torch.arange(first, first + len(samples)),
            target=torch.zeros(len(samples)),
            recording=stored,
        )


if __name__ == "__main__":
    from maestro_dist.predict_command import main

    sys.exit(main())
