"""Pretrained weights that a run starts with (`run.init_from`), from a run, a checkpoint, or an exported model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from maestro_dist.config.metadata import DefinesWeights, marked
from maestro_dist.config.model import ModelConfig
from maestro_dist.config.renamed import current
from maestro_dist.config.schema import Config
from maestro_dist.data.storage import ObjectMissing, Storage
from maestro_dist.errors import ConfigError
from maestro_dist.inference.exported_model import DESCRIPTION, model_config, read_description, read_weights

if TYPE_CHECKING:
    from torch import Tensor

    from maestro_dist.data.manifest import Manifest
    from maestro_dist.model.maestro import Trunk

HEADS = ("head.", "modality_heads.")
"""Parameters of a task's head; they are always initialized with random values."""
_SAME = tuple(marked(ModelConfig, DefinesWeights))
"""Settings of the model that must match although the shapes of the weights do not depend on them."""


@dataclass(frozen=True)
class PretrainedModel:
    """A model on storage.

    url       folder of a checkpoint or of an exported model
    exported  whether it is an exported model
    model     configuration of the model
    names     names of its modalities
    shapes    shapes of parameters and buffers by name; None for an exported model, whose shapes are in its weights
    """

    url: str
    exported: bool
    model: ModelConfig
    names: tuple[str, ...]
    shapes: dict[str, tuple[int, ...]] | None

    def weights(self) -> dict[str, Tensor]:
        """Parameters and buffers by name, on the CPU. Raises CheckpointError if they are damaged or missing."""
        from maestro_dist.checkpoint import find, full_weights

        if self.exported:
            return read_weights(Storage(self.url))
        run_url, step = _checkpoint(self.url)
        return full_weights(find(run_url, int(step or 0)))


def find_pretrained(url: str) -> PretrainedModel:
    """The model that `run.init_from` names: a run (its best checkpoint so far), a checkpoint, or an exported model.

    Raises:
        ConfigError: `url` is none of these.
        CheckpointError: it is damaged.
    """
    from maestro_dist.checkpoint import best, find

    storage = Storage(url)
    if storage.exists(DESCRIPTION):
        description = read_description(storage)
        names = tuple(modality["name"] for modality in description["modalities"])
        return PretrainedModel(storage.url, True, model_config(description), names, None)
    run_url, step = _checkpoint(storage.url)
    model = _model_of(Storage(run_url))
    checkpoint = best(run_url) if step is None else find(run_url, step)
    shapes = {**checkpoint.record.parameters, **checkpoint.record.buffers}
    names = tuple(sorted({name.split(".")[1] for name in shapes if name.startswith("embeddings.")}))
    return PretrainedModel(checkpoint.folder.url, False, model, names, shapes)


def check_pretrained(config: Config, manifest: Manifest) -> str:
    """Check that the weights of `run.init_from` fit, and return their URL; "" without `run.init_from`.

    Builds only the shapes of the model, and reads no weights of a checkpoint.

    Raises:
        ConfigError: they do not fit; the message lists the differences.
    """
    import torch

    from maestro_dist.training.builder import build

    if config.run.init_from is None:
        return ""
    start = find_pretrained(config.run.init_from)
    with torch.device("meta"):
        model = build(config, manifest).model
    shapes = start.shapes
    if shapes is None:
        shapes = {name: tuple(tensor.shape) for name, tensor in start.weights().items()}
    _check(start, model, shapes)
    return start.url


def load_pretrained(model: Trunk, url: str) -> tuple[int, int]:
    """Load the weights at `url`, which `check_pretrained` returned, into `model` before it is sharded.

    Returns the number of loaded parameters and the number of all parameters. If experts are spread, each rank
    loads its own rows.
    """
    import torch

    start = find_pretrained(url)
    weights = start.weights()
    _check(start, model, {name: tuple(tensor.shape) for name, tensor in weights.items()})
    parameters = dict(model.named_parameters())
    taken = 0
    with torch.no_grad():
        for name, target in model.state_dict(keep_vars=True).items():
            if name not in weights or name.startswith(HEADS):
                continue
            first = getattr(target, "expert_rank", 0) * len(target) if target.ndim else 0
            source = weights[name] if not target.ndim else weights[name][first : first + len(target)]
            target.copy_(source)
            taken += name in parameters
    return taken, len(parameters)


def _check(start: PretrainedModel, model: Trunk, shapes: Mapping[str, Sequence[int]]) -> None:
    from maestro_dist.model.embedding import word_steps

    if set(start.names) != set(model.names):
        raise ConfigError(
            f"run.init_from: {Storage(start.url).name()} was trained on {', '.join(sorted(start.names))}, but this "
            f"run uses {', '.join(model.names)}; use the same modalities (data.modalities)"
        )
    pairs = [(key, getattr(start.model, key), getattr(model.config, key)) for key in _SAME]
    words = zip(model.names, model.words, strict=True)
    pairs += [(f"word of {name}", word_steps(start.model, name), word) for name, word in words]
    differences = [
        f"model.{key} {saved!r} there, {current_value!r} here"
        for key, saved, current_value in pairs
        if saved != current_value
    ]
    for name, target in model.state_dict(keep_vars=True).items():
        shape = _shape(target)
        if name in shapes and not name.startswith(HEADS) and tuple(shapes[name]) != shape:
            differences.append(f"{name} {list(shapes[name])} there, {list(shape)} here")
    if differences:
        more = f" and {len(differences) - 8} more" if len(differences) > 8 else ""
        raise ConfigError(
            f"run.init_from: {Storage(start.url).name()} does not fit this model: {'; '.join(differences[:8])}{more}"
        )


def _shape(tensor: Tensor) -> tuple[int, ...]:
    """The shape with the experts of all ranks."""
    ranks = getattr(tensor, "expert_ranks", 1)
    return (tensor.shape[0] * ranks, *tensor.shape[1:]) if tensor.ndim else ()


def _checkpoint(url: str) -> tuple[str, int | None]:
    """The URL of the run, and the step if `url` is one of its checkpoints."""
    match = re.fullmatch(r"(.+)/checkpoints/step-(\d+)", url.rstrip("/"))
    return (match[1], int(match[2])) if match else (url, None)


def _model_of(run: Storage) -> ModelConfig:
    import yaml

    try:
        tree: Any = yaml.safe_load(run.read("config.yaml"))
        return ModelConfig.model_validate(current(tree["model"], "model"))
    except ObjectMissing:
        raise ConfigError(
            f"run.init_from: {run.name()} is neither a run (it has no config.yaml), nor a checkpoint of one, nor an "
            f"exported model (it has no {DESCRIPTION})"
        ) from None
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"run.init_from: {run.name('config.yaml')} is damaged ({type(error).__name__})") from None
