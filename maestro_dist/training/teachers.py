"""Knowledge distillation (`task.teachers`): the mean prediction of other models is the training target.

Teachers see complete training samples. The student sees the same samples with modalities dropped.
Sources: Hinton et al. 2015, "Distilling the knowledge in a neural network"; Furlanello et al. 2018, "Born again neural
networks".
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from maestro_dist.config.check import check_mesh
from maestro_dist.config.learning import TaskConfig
from maestro_dist.config.model import ModelConfig
from maestro_dist.config.schema import Config
from maestro_dist.data.manifest import Manifest
from maestro_dist.data.storage import ObjectMissing, Storage
from maestro_dist.data.symbols import reads_symbols
from maestro_dist.errors import CheckpointError, ConfigError, MaestroError
from maestro_dist.inference.exported_model import DESCRIPTION, model_config, read_description, read_weights

if TYPE_CHECKING:
    import torch

    from maestro_dist.parallel.mesh import Mesh

TEACHERS_FILE = "teachers.safetensors"
"""In the run's folder. A run can be resumed without its teachers, because their predictions are kept here."""
_SAME = ("name", "rate_hz", "steps", "variates", "mean", "std")


def check_teachers(config: Config, manifest: Manifest) -> None:
    """Check that each teacher fits the data and the grid of ranks. Reads no weights.

    Raises:
        ConfigError: a teacher does not fit; the message gives the reason.
    """
    for url in config.task.teachers:
        _, model = _open_teacher(url, config, manifest)
        try:
            check_mesh(_teacher_config(config, model))
            reads_symbols(manifest, model, manifest.select(config.data.modalities))
        except MaestroError as error:
            raise ConfigError(f"task.teachers: {Storage(url).name()} cannot be used here: {error}") from None
        if model.normalize == "recording" and not manifest.recording:
            raise ConfigError(
                f"task.teachers: {Storage(url).name()} normalizes by recording, but the data has no statistics of "
                "recordings"
            )


def teacher_predictions(
    config: Config, manifest: Manifest, mesh: Mesh, run_url: str, device: torch.device
) -> tuple[torch.Tensor, bool]:
    """Mean predictions of `task.teachers` for all training samples, and whether they were computed now.

    float32: class probabilities [N, C], or values [N] (of several targets [N, K]) in the target's unit; over
    time as `Task.predictions` returns them. They are computed once and kept with the run. All ranks call it.

    Raises:
        ConfigError: a teacher does not fit the data.
        CheckpointError: a teacher, or the file of kept predictions, is damaged.
    """
    import torch

    from maestro_dist.evaluation.gather import broadcast_array

    run = Storage(run_url)
    split = manifest.split(config.data.train)
    steps, width = manifest.label_steps, len(manifest.classes) or len(manifest.targets)
    shape = (split.samples, *([steps] if steps > 1 else []), *([width] if width else []))
    mean_prediction = _read_predictions(run, shape) if mesh.rank == 0 else None
    computed = bool(broadcast_array(np.array([mean_prediction is None], dtype=np.float64), mesh, device)[0])
    if computed:
        predictions = [_predict(url, config, manifest, mesh, device) for url in config.task.teachers]
        if mesh.rank == 0:
            mean_prediction = np.mean(predictions, axis=0).astype(np.float32)
            _write_predictions(run, mean_prediction)
    shared = broadcast_array(
        np.zeros(shape) if mean_prediction is None else mean_prediction.astype(np.float64), mesh, device
    )
    return torch.from_numpy(shared.astype(np.float32)).to(device), computed


def _predict(url: str, config: Config, manifest: Manifest, mesh: Mesh, device: torch.device) -> np.ndarray:
    """Predictions of one teacher, on rank 0. The value on other ranks is not used."""
    from maestro_dist.data.prefetch import Consumer
    from maestro_dist.evaluation import EvaluationPlan, evaluate_split
    from maestro_dist.training.builder import build, worker_name
    from maestro_dist.training.evaluation import evaluation_data

    storage, model = _open_teacher(url, config, manifest)
    teacher_config = _teacher_config(config, model)
    pieces = build(teacher_config, manifest, replace(mesh, expert=1))
    try:
        pieces.model.load_state_dict(read_weights(storage))
    except RuntimeError as error:
        raise CheckpointError(f"{storage.name()}: its weights are not those of its {DESCRIPTION} ({error})") from None
    teacher = pieces.model.eval().to(device)
    plan = EvaluationPlan(config.data.train, rates=[0.0], draws=[0])
    consumer = Consumer(worker_name(mesh), device)
    data = evaluation_data(teacher_config, manifest, pieces.modalities, plan.split, mesh, consumer)
    result = evaluate_split(lambda batch: teacher(batch.to(device)), pieces.task, data, plan, mesh)
    return pieces.task.predictions(result.logits) if result.logits is not None else np.zeros(0)


def _teacher_config(config: Config, model: ModelConfig) -> Config:
    """The configuration of the run with the model of a teacher, whose experts are all on every rank."""
    mesh = config.mesh.model_copy(update={"expert": 1})
    return config.model_copy(update={"model": model, "task": TaskConfig(), "mesh": mesh})


def _open_teacher(url: str, config: Config, manifest: Manifest) -> tuple[Storage, ModelConfig]:
    """The exported model of a teacher, checked against the data, and its configuration."""
    place = Storage(url)
    storage = place if place.exists(DESCRIPTION) else place.join("model")
    try:
        description = read_description(storage)
    except CheckpointError as error:
        if isinstance(error.__cause__, ObjectMissing):
            raise ConfigError(
                f"task.teachers: {place.name()} is neither an exported model (it has no {DESCRIPTION}) nor a run "
                "with one"
            ) from None
        raise
    task, run_task = description["task"], (manifest.task, list(manifest.classes))
    if (task["kind"], list(task["classes"])) != run_task:
        raise ConfigError(
            f"task.teachers: {place.name()} is for {_described(task['kind'], task['classes'])}, the data for "
            f"{_described(*run_task)}"
        )
    targets = [target["name"] for target in task.get("targets", ())]
    if targets != list(manifest.targets):
        found, wanted = (", ".join(of) if of else "one number" for of in (targets, manifest.targets))
        raise ConfigError(f"task.teachers: {place.name()} predicts {found}, the data has {wanted}")
    steps = task.get("label_steps", 1)
    if steps != manifest.label_steps:
        raise ConfigError(
            f"task.teachers: {place.name()} predicts {_parts(steps)}, the data has labels of "
            f"{_parts(manifest.label_steps)} (data.window.label_every_s)"
        )
    teacher_modalities = [_plain(modality) for modality in description["modalities"]]
    run_modalities = [_plain(asdict(modality)) for modality in manifest.select(config.data.modalities)]
    if teacher_modalities != run_modalities:
        names = [[modality["name"] for modality in modalities] for modalities in (teacher_modalities, run_modalities)]
        what = "others" if names[0] == names[1] else ", ".join(names[0])
        raise ConfigError(
            f"task.teachers: {place.name()} was trained on {what}, this run is on {', '.join(names[1])}; a teacher's "
            f"modalities must agree in {', '.join(_SAME)}"
        )
    return storage, model_config(description)


def _plain(modality: dict[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value := modality[key], tuple) else value for key in _SAME}


def _described(kind: str, classes: list[str]) -> str:
    return f"{kind} of {', '.join(classes)}" if classes else kind


def _parts(steps: int) -> str:
    return "whole windows" if steps == 1 else f"{steps:,} parts of each window"


def _read_predictions(run: Storage, shape: tuple[int, ...]) -> np.ndarray | None:
    from safetensors.numpy import load

    try:
        data = run.read(TEACHERS_FILE)
    except ObjectMissing:
        return None
    try:
        predictions: np.ndarray = load(data)["answers"]
    except Exception as error:
        raise CheckpointError(f"{run.name(TEACHERS_FILE)}: damaged ({error}); remove it") from None
    if predictions.shape != shape:
        raise CheckpointError(
            f"{run.name(TEACHERS_FILE)}: shape {list(predictions.shape)} is not {list(shape)}; remove it"
        )
    return predictions


def _write_predictions(run: Storage, predictions: np.ndarray) -> None:
    from safetensors.numpy import save

    run.write(TEACHERS_FILE, save({"answers": predictions}))
