"""Find a checkpoint; load it into an engine on any mesh, or read its weights without an engine."""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maestro_dist.checkpoint.layout import (
    BUFFER,
    RECORD,
    CheckpointPart,
    CheckpointRecord,
    checkpoints,
    folder_name,
    folder_step,
    read_record,
    tensor_name,
)
from maestro_dist.checkpoint.reshard import check_tiling, plan_copies
from maestro_dist.checkpoint.retain import complete_steps_of
from maestro_dist.data.storage import ObjectDamaged, ObjectMissing, Storage
from maestro_dist.data.storage.verified_downloads import KnownContent, download_verified
from maestro_dist.engine.partition import (
    MASTER,
    buffers,
    create_moments,
    optimizer_name,
    owned_slices,
    parameter_shapes,
    publish_master,
)
from maestro_dist.errors import CheckpointError
from maestro_dist.optim import AVERAGE

if TYPE_CHECKING:
    from torch import Tensor

    from maestro_dist.engine.engine import Engine

_CHUNK = 1 << 24


@dataclass(frozen=True)
class CheckpointInfo:
    """A complete checkpoint: its folder and its checkpoint record."""

    folder: Storage
    record: CheckpointRecord

    @property
    def url(self) -> str:
        """The checkpoint's folder, without credentials."""
        return self.folder.name()

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return self.record.step

    @property
    def position(self) -> int:
        """Samples consumed."""
        return self.record.position

    @property
    def epoch(self) -> int:
        """0-based epoch in which it was written."""
        return self.record.epoch

    @property
    def attempt(self) -> int:
        """Attempt of the run that wrote it."""
        return self.record.attempt

    @property
    def averaged(self) -> bool:
        """Whether it contains an average of the weights (`optim.ema`)."""
        return AVERAGE in self.record.moments

    @property
    def metadata(self) -> dict[str, Any]:
        """The `metadata` argument of `Saver.save`."""
        return self.record.metadata


def complete_steps(run_url: str) -> list[int]:
    """Steps of the run's complete checkpoints, ascending."""
    storage = checkpoints(run_url)
    return complete_steps_of(storage, [step for step in map(folder_step, storage.list()) if step is not None])


def newest(run_url: str) -> CheckpointInfo | None:
    """The newest complete checkpoint of a run; None if there is none.

    Raises `CheckpointError` if its checkpoint record is damaged.
    """
    storage = checkpoints(run_url)
    steps = sorted((step for step in map(folder_step, storage.list()) if step is not None), reverse=True)
    remote = storage.local is None
    for step in steps:
        folder = storage.join(folder_name(step))
        if remote and RECORD not in folder.list():
            continue
        record = read_record(folder, expected=remote)  # one that is listed must not be taken for missing
        if record is not None:
            return CheckpointInfo(folder, _with_current_names(record))
    return None


def find(run_url: str, step: int, *, expected: bool = False) -> CheckpointInfo:
    """The complete checkpoint of a step. Raises `CheckpointError`, with a list of complete steps, if there is none.

    `expected`: it is known to be complete.
    """
    folder = checkpoints(run_url).join(folder_name(step))
    record = read_record(folder, expected=expected)
    if record is None:
        steps = ", ".join(str(other) for other in complete_steps(run_url)) or "none"
        raise CheckpointError(f"no complete checkpoint of step {step} at {folder.name()}; complete steps: {steps}")
    return CheckpointInfo(folder, _with_current_names(record))


def best(run_url: str) -> CheckpointInfo:
    """The checkpoint with the best validation score (`metadata["best_step"]`); the newest before the first validation.

    Raises `CheckpointError` if the run has no complete checkpoint.
    """
    latest = newest(run_url)
    if latest is None:
        raise CheckpointError(f"{Storage(run_url).name()}: no complete checkpoint yet")
    step = latest.metadata.get("best_step")
    return latest if step is None else find(run_url, step, expected=True)


def restore(engine: Engine, info: CheckpointInfo) -> None:
    """Load weights, moments, the optimizer's step count and buffers into an engine. A collective: all ranks call it.

    The number of ranks and the ZeRO stage may differ from the writer's: every number is copied, none is
    recomputed. Each rank reads only the parts that contain its slices, one at a time.
    Raises `CheckpointError`, which names the part or parameter, if data is damaged, missing or from another model.
    """
    import torch

    record = info.record
    _check_model(engine, info)
    _check_slices(info)
    create_moments(engine, record.moments, record.optimizer_steps)
    own_slices = {owned.name: owned for owned in owned_slices(engine)}
    engine_buffers = buffers(engine)
    copies = plan_copies(
        {name: (s.start, s.count) for name, s in own_slices.items()}, [part.slices for part in record.parts]
    )
    if engine_buffers:
        copies.setdefault(0, [])
    with torch.no_grad():
        for index, wanted in copies.items():
            with open_part(info.folder, record.parts[index]) as part:
                for copy in wanted:
                    for kind in (MASTER, *record.moments):
                        source = part.range(tensor_name(copy.name, kind), copy.source, copy.count)
                        own_slices[copy.name].tensors[kind].narrow(0, copy.target, copy.count).copy_(source)
                if index == 0:
                    for name, buffer in engine_buffers.items():
                        buffer.copy_(part.whole(tensor_name(name, BUFFER)))
        publish_master(engine)


def full_weights(info: CheckpointInfo, *, averaged: bool = True) -> dict[str, Tensor]:
    """All parameters (fp32) and buffers on the CPU, by name, for `load_state_dict`. Needs neither ranks nor DeepSpeed.

    If the checkpoint has averaged weights, these are returned, because they were validated. With
    `averaged=False`, the weights from which training continues are returned.
    Memory: one full copy of the model; parts are read through a memory map, one at a time.
    Raises `CheckpointError`, which names the part or parameter, if data is damaged or missing.
    """
    import torch

    record, kind = info.record, AVERAGE if averaged and info.averaged else MASTER
    _check_slices(info)
    weights = {name: torch.empty(shape, dtype=torch.float32) for name, shape in record.parameters.items()}
    flat = {name: weight.view(-1) for name, weight in weights.items()}
    for index, written in enumerate(record.parts):
        with open_part(info.folder, written) as part:
            for name, (start, count) in written.slices.items():
                flat[name][start : start + count] = part.range(tensor_name(name, kind), 0, count)
            if index == 0:
                weights |= {name: part.whole(tensor_name(name, BUFFER)).clone() for name in record.buffers}
    return weights


def _with_current_names(record: CheckpointRecord) -> CheckpointRecord:
    """The checkpoint record with the current names of parameters; its own names may be old."""
    from maestro_dist.model.names import current_name

    def renamed(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        return {current_name(name): shape for name, shape in shapes.items()}

    parts = [
        part.model_copy(update={"slices": {current_name(name): where for name, where in part.slices.items()}})
        for part in record.parts
    ]
    names = {"parameters": renamed(record.parameters), "buffers": renamed(record.buffers), "parts": parts}
    return record.model_copy(update=names)


class _OpenPart:
    """Tensors of a verified part, read on demand."""

    def __init__(self, handle: Any, name: str) -> None:
        from maestro_dist.model.names import current_name

        self._handle = handle
        self._name = name
        self._stored = {current_name(stored): stored for stored in handle.keys()}  # noqa: SIM118

    def range(self, tensor: str, start: int, count: int) -> Tensor:
        """`count` elements from `start` of a 1-D tensor."""
        elements = self._read(tensor, lambda stored: self._handle.get_slice(stored)[start : start + count])
        if tuple(elements.shape) != (count,):
            raise CheckpointError(f"{self._name}: tensor {tensor} is shorter than {start + count} elements")
        return elements

    def whole(self, tensor: str) -> Tensor:
        """A complete tensor."""
        return self._read(tensor, self._handle.get_tensor)

    def _read(self, tensor: str, get: Any) -> Any:
        from safetensors import SafetensorError

        try:
            return get(self._stored.get(tensor, tensor))
        except SafetensorError as error:
            raise CheckpointError(f"{self._name}: cannot read tensor {tensor}: {error}") from error


@contextmanager
def open_part(folder: Storage, part: CheckpointPart) -> Iterator[_OpenPart]:
    """Check a part's size and SHA-256, then open it. A remote part is first copied to a temporary file."""
    from safetensors import SafetensorError, safe_open

    name = folder.name(part.file)
    with tempfile.TemporaryDirectory(prefix="checkpoint-") as scratch:
        try:
            path = folder.local_path(part.file)
            if path is None:
                path = Path(scratch) / "part.safetensors"
                _download(folder, part, path)
            elif folder.size(part.file) != part.bytes:
                raise CheckpointError(
                    f"{name} is damaged: it has {folder.size(part.file)} bytes, but {part.bytes} were written; "
                    "remove this checkpoint's folder to continue from an older one"
                )
            elif sha256_of(path) != part.sha256:
                raise CheckpointError(
                    f"{name} is damaged: its sha256 is not that of {RECORD}; "
                    "remove this checkpoint's folder to continue from an older one"
                )
        except ObjectMissing as error:
            raise CheckpointError(f"{name} is missing from its checkpoint{error.asked}") from error
        try:
            with safe_open(path, framework="pt", device="cpu") as handle:
                yield _OpenPart(handle, name)
        except SafetensorError as error:
            raise CheckpointError(f"{name} is not a safetensors file: {error}") from error


def _download(folder: Storage, part: CheckpointPart, path: Path) -> None:
    try:
        download_verified(folder, part.file, path, KnownContent(part.bytes, part.sha256, RECORD))
    except ObjectDamaged as error:
        raise CheckpointError(
            f"{folder.name(part.file)} is damaged: {error.problem}{error.asked}; "
            "remove this checkpoint's folder to continue from an older one"
        ) from error


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a local file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _check_slices(info: CheckpointInfo) -> None:
    try:
        check_tiling(info.record.parameters, [part.slices for part in info.record.parts])
    except CheckpointError as error:
        raise CheckpointError(f"{info.folder.name(RECORD)}: {error}") from None


def _check_model(engine: Engine, info: CheckpointInfo) -> None:
    """Raise `CheckpointError` if parameters, buffers or optimizer differ from the engine's."""
    record = info.record
    shapes = {name: tuple(buffer.shape) for name, buffer in buffers(engine).items()}
    for what, needed, saved in (
        ("parameter", parameter_shapes(engine), record.parameters),
        ("buffer", shapes, record.buffers),
    ):
        for name in sorted(needed.keys() | saved.keys()):
            if name not in saved:
                raise CheckpointError(
                    f"{info.url} has no {what} {name}, which the model has: it belongs to another model"
                )
            if name not in needed:
                raise CheckpointError(
                    f"{info.url} has a {what} {name}, which the model does not have: it belongs to another model"
                )
            if tuple(needed[name]) != tuple(saved[name]):
                raise CheckpointError(
                    f"{info.url}: {what} {name} has shape {list(saved[name])}, in the model it is {list(needed[name])} "
                    f"({math.prod(needed[name])} elements): it belongs to another model"
                )
    if record.optimizer != optimizer_name(engine):
        raise CheckpointError(
            f"{info.url} was written with {record.optimizer}, this run has {optimizer_name(engine)}; "
            "keep optim.optimizer, or start a new run"
        )
