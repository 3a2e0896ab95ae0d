"""A loaded model, which predicts from samples with any subset of its sensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from maestro_dist.config.learning import TaskConfig
from maestro_dist.data.storage import Storage
from maestro_dist.errors import CheckpointError, ConfigError, DataError, NonFiniteError
from maestro_dist.inference.exported_model import (
    DESCRIPTION,
    RUN_FOLDER,
    WEIGHTS,
    TaskDescription,
    modalities_of,
    model_config,
    read_description,
    read_weights,
    task_description,
)
from maestro_dist.inference.inputs import as_list, check_modality_names, statistics, window
from maestro_dist.task import Labels, make_task
from maestro_dist.types import Batch, Modality

if TYPE_CHECKING:
    from maestro_dist.model import Maestro
    from maestro_dist.task import Task


Sample = Mapping[str, Any]
"""Modality name -> array or nested lists [T_j, D_j], of any real type; NaN, None or masked where nothing was observed.

An axis of length 1 may be left out ([T_j] for one variate). A missing key, None, or a window without any observed value
means that the sample does not have this sensor.
"""


def task_of(task: TaskDescription) -> Task:
    """The task that turns logits into predictions and metrics."""
    labels = Labels(
        task.kind,
        classes=task.classes,
        target_mean=task.target_mean,
        target_std=task.target_std,
        targets=task.targets,
        steps=task.label_steps,
    )
    return make_task(TaskConfig(), labels)


def load_model(folder: str | Path, *, device: str = "cpu") -> Predictor:
    """Load a model from the folder or URL of an exported model, or of a run that contains one.

    Raises CheckpointError if the model is missing, damaged, of another format or only pre-trained; ConfigError if the
    device does not exist.
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
            f"{storage.name()}: this model is only pre-trained and has no output head; fine-tune it first "
            "(run.init_from)"
        )
    weights = read_weights(storage)
    model = Maestro(model_config(description), modalities_of(description), task.shape, seed=0)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"{storage.name(WEIGHTS)}: the weights do not fit {DESCRIPTION} ({' '.join(str(error).split())[:200]})"
        ) from None
    try:
        model = model.eval().to(device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA raises AssertionError
        raise ConfigError(f"device {device!r}: {' '.join(str(error).split())[:200]}") from None
    return Predictor(model, task, device=device)


class Predictor:
    """Predicts for samples with any subset of the model's modalities."""

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

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the predicted numbers: the classes, the targets, or `value`."""
        return self.task.columns

    @property
    def starts_s(self) -> tuple[float, ...]:
        """When the predicted parts begin, in seconds after the window's start; (0,) for a prediction of the window."""
        return self.task.starts_s

    def predict(
        self,
        samples: Sample | Iterable[Sample],
        recording: Sample | Iterable[Sample] | None = None,
        *,
        batch: int = 256,
        unobserved: Literal["refuse", "nan"] = "refuse",
    ) -> np.ndarray:
        """Class probabilities float64 [N, C], or values float64 [N] (of several targets [N, K]) in the target's unit.

        Of a model that predicts over time: [N, S, C], [N, S] or [N, S, K], for the parts that begin at `starts_s`.

        One sample (a dict) is the same as a list of one sample. `recording` is for models with `normalize: recording`;
        others ignore it. For each sample it has mean and standard deviation [D_j, 2] of each present modality over the
        person's recording up to the end of the window. `unobserved`: a sample without any observed value is refused,
        or its prediction is NaN.

        Raises:
            DataError: a sample is not valid or has no observed value; the message names sample and modality.
            NonFiniteError: the output of the model is not a finite number.
        """
        import torch

        sample_list = as_list(samples)
        recordings = self._recordings(sample_list, recording)
        if batch < 1:
            raise ConfigError(f"batch: {batch} is not 1 or more")
        logits, observed = [np.zeros((0, self._task.outputs), dtype=np.float32)], [np.zeros(0, dtype=bool)]
        with torch.no_grad():
            for start in range(0, len(sample_list), batch):
                chosen = slice(start, start + batch)
                made_batch = self._batch(sample_list[chosen], recordings[chosen] if recordings else None, start)
                has_values = made_batch.present.any(dim=1).numpy()
                if unobserved == "refuse" and not has_values.all():
                    raise DataError(
                        f"sample {start + int(np.argmin(has_values))}: none of {', '.join(self.names)} was observed; "
                        "a prediction needs at least one observed value"
                    )
                observed.append(has_values)
                logits.append(self.model(made_batch.to(self.device))["logits"].float().cpu().numpy())
        return self.answers(np.concatenate(logits), np.concatenate(observed))

    def answers(self, logits: np.ndarray, observed: np.ndarray, names: Sequence[str] | None = None) -> np.ndarray:
        """The output of `predict` from logits [N, C]. `observed`, bool [N]: the sample has an observed value.

        `names` are the samples' names in messages; by default their numbers.
        """
        bad = np.flatnonzero(observed & ~np.isfinite(logits).all(axis=1))
        if len(bad):
            name = names[bad[0]] if names else bad[0]
            raise NonFiniteError(
                f"sample {name}: the model's output is not a finite number; check the values of this sample"
            )
        predictions = self._task.predictions(logits)
        predictions[~observed] = np.nan
        return predictions

    def _recordings(self, samples: Sequence[Sample], given: Any) -> list[Mapping[str, Any]]:
        """Statistics by sample; empty if the model does not use them."""
        if not self.wants_recording:
            return []
        recordings = [] if given is None else as_list(given)
        if len(recordings) != len(samples):
            raise DataError(
                "this model normalizes by recording: give mean and standard deviation of the recording with each "
                f"sample ({len(samples)} samples, {len(recordings)} recordings)"
            )
        for number, sample in enumerate(recordings):
            check_modality_names(sample, self.names, f"recording {number}")
        return recordings

    def _batch(self, samples: Sequence[Sample], recording: Sequence[Mapping[str, Any]] | None, first: int) -> Batch:
        import torch

        for number, sample in enumerate(samples, start=first):
            check_modality_names(sample, self.names, f"sample {number}")
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
