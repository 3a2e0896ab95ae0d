"""Learning from other models' answers (`task.teachers`): what they say of whole training samples becomes the target.

The mean answer of a few models is better than the model that any one training leaves. One that learns from it, with
modalities dropped before its own eyes alone, comes close to it, or goes beyond where sensors are missing (Hinton et al.
2015, "Distilling the knowledge in a neural network"; Furlanello et al. 2018, "Born again neural networks").
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

ANSWERS_FILE = "teachers.safetensors"
"""In the run's folder: it is gone on with where the teachers are no longer."""
_SAME = ("name", "rate_hz", "steps", "variates", "mean", "std")


def check_teachers(config: Config, manifest: Manifest) -> None:
    """Raise ConfigError for a teacher that is none of this data, or cannot answer on this grid. Reads no weights."""
    for url in config.task.teachers:
        _, model = _found(url, config, manifest)
        try:
            check_mesh(_own(config, model))
            reads_symbols(manifest, model, manifest.select(config.data.modalities))
        except MaestroError as error:
            raise ConfigError(f"task.teachers: {Storage(url).name()} cannot answer here: {error}") from None
        if model.normalize == "recording" and not manifest.recording:
            raise ConfigError(
                f"task.teachers: {Storage(url).name()} measures by recordings, of which the data has no statistics"
            )


def answers(
    config: Config, manifest: Manifest, mesh: Mesh, run_url: str, device: torch.device
) -> tuple[torch.Tensor, bool]:
    """Mean answers of `task.teachers` for all training samples, float32, and whether they had to be asked. Collective.

    [N, C], class probabilities, or [N], values in the target's unit. They are asked once, and then kept with the run.
    Raises ConfigError and CheckpointError for teachers that do not fit, or are damaged.
    """
    import torch

    from maestro_dist.evaluation.gather import broadcast

    run = Storage(run_url)
    split = manifest.split(config.data.train)
    shape = (split.samples, len(manifest.classes)) if manifest.task == "classification" else (split.samples,)
    known = _kept(run, shape) if mesh.rank == 0 else None
    asked = bool(broadcast(np.array([known is None], dtype=np.float64), mesh, device)[0])
    if asked:
        told = [_ask(url, config, manifest, mesh, device) for url in config.task.teachers]
        if mesh.rank == 0:
            known = np.mean(told, axis=0).astype(np.float32)
            _keep(run, known)
    found = broadcast(np.zeros(shape) if known is None else known.astype(np.float64), mesh, device)
    return torch.from_numpy(found.astype(np.float32)).to(device), asked


def _ask(url: str, config: Config, manifest: Manifest, mesh: Mesh, device: torch.device) -> np.ndarray:
    """One teacher's answers, on rank 0; what is returned elsewhere means nothing."""
    from maestro_dist.training.builder import build
    from maestro_dist.training.evaluation import evaluate_with

    storage, model = _found(url, config, manifest)
    own = _own(config, model)
    pieces = build(own, manifest, replace(mesh, expert=1))
    try:
        pieces.model.load_state_dict(read_weights(storage))
    except RuntimeError as error:
        raise CheckpointError(f"{storage.name()}: its weights are not those of its {DESCRIPTION} ({error})") from None
    teacher = pieces.model.eval().to(device)
    found = evaluate_with(
        lambda batch: teacher(batch.to(device)),
        own, mesh, manifest, pieces.modalities, pieces.task, config.data.train, rates=[0.0], draws=[0],
        device=device,
    )  # fmt: skip
    return pieces.task.predictions(found.logits) if found.logits is not None else np.zeros(0)


def _own(config: Config, model: ModelConfig) -> Config:
    """The run's configuration with a teacher's model; all of its experts are on every rank."""
    mesh = config.mesh.model_copy(update={"expert": 1})
    return config.model_copy(update={"model": model, "task": TaskConfig(), "mesh": mesh})


def _found(url: str, config: Config, manifest: Manifest) -> tuple[Storage, ModelConfig]:
    """A teacher's exported model, which fits the data, and what it is."""
    here = Storage(url)
    storage = here if here.exists(DESCRIPTION) else here.join("model")
    try:
        description = read_description(storage)
    except CheckpointError as error:
        if isinstance(error.__cause__, ObjectMissing):
            raise ConfigError(
                f"task.teachers: {here.name()} is neither an exported model (it has no {DESCRIPTION}) nor a run that "
                "has left one"
            ) from None
        raise
    task, wanted = description["task"], (manifest.task, list(manifest.classes))
    if (task["kind"], list(task["classes"])) != wanted:
        raise ConfigError(
            f"task.teachers: {here.name()} is for {_told(task['kind'], task['classes'])}, the data for {_told(*wanted)}"
        )
    theirs = [_plain(modality) for modality in description["modalities"]]
    ours = [_plain(asdict(modality)) for modality in manifest.select(config.data.modalities)]
    if theirs != ours:
        names = [[modality["name"] for modality in some] for some in (theirs, ours)]
        what = "others" if names[0] == names[1] else ", ".join(names[0])
        raise ConfigError(
            f"task.teachers: {here.name()} was trained on {what}, this run is on {', '.join(names[1])}; a teacher's "
            f"modalities must agree in {', '.join(_SAME)}"
        )
    return storage, model_config(description)


def _plain(modality: dict[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value := modality[key], tuple) else value for key in _SAME}


def _told(kind: str, classes: list[str]) -> str:
    return f"{kind} of {', '.join(classes)}" if classes else kind


def _kept(run: Storage, shape: tuple[int, ...]) -> np.ndarray | None:
    from safetensors.numpy import load

    try:
        data = run.read(ANSWERS_FILE)
    except ObjectMissing:
        return None
    try:
        found: np.ndarray = load(data)["answers"]
    except Exception as error:
        raise CheckpointError(f"{run.name(ANSWERS_FILE)}: damaged ({error}); remove it") from None
    if found.shape != shape:
        raise CheckpointError(f"{run.name(ANSWERS_FILE)}: shape {list(found.shape)} is not {list(shape)}; remove it")
    return found


def _keep(run: Storage, found: np.ndarray) -> None:
    from safetensors.numpy import save

    run.write(ANSWERS_FILE, save({"answers": found}))
