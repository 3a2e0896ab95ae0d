"""Load a checkpoint into an engine on any mesh, or read its weights without an engine."""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maestro_dist.checkpoint.find import CheckpointInfo
from maestro_dist.checkpoint.layout import BUFFER, CheckpointPart, tensor_name
from maestro_dist.checkpoint.reshard import check_tiling, plan_copies
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
from maestro_dist.errors import CheckpointDamaged, CheckpointError
from maestro_dist.optim import AVERAGE

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from maestro_dist.engine.engine import Engine

_CHUNK = 1 << 24
_TEXT = 1000  # bytes of an error that all ranks raise


def restore(engine: Engine, info: CheckpointInfo) -> None:
    """Load weights, moments, the optimizer's step count and buffers into an engine. A collective: all ranks call it.

    The number of ranks and the ZeRO stage may differ from the writer's: every number is copied, none is
    recomputed. Each rank reads only the parts that contain its slices, one at a time.

    Raises:
        CheckpointError: the checkpoint belongs to another model.
        CheckpointDamaged: data is missing or damaged, for one rank at least: all ranks raise it, with the part or the
            parameter. The engine can then be restored from another checkpoint.
    """
    _check_model(engine, info)
    damage: CheckpointDamaged | None = None
    try:
        _restore_own(engine, info)
    except CheckpointDamaged as error:
        damage = error
    _raise_on_all(damage, engine.device)
    publish_master(engine)


def _restore_own(engine: Engine, info: CheckpointInfo) -> None:
    """Load what this rank owns."""
    import torch

    record = info.record
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


def _raise_on_all(damage: CheckpointDamaged | None, device: str | torch.device) -> None:
    """Raise the damage that a rank has found on all ranks: no rank may go on alone. A collective."""
    import torch
    import torch.distributed as dist

    world, rank = dist.get_world_size(), dist.get_rank()
    if world > 1:
        first = torch.tensor(world if damage is None else rank, device=device)
        dist.all_reduce(first, dist.ReduceOp.MIN)
        source = int(first)
        if source == world:
            return
        text = str(damage).encode()[:_TEXT].ljust(_TEXT) if rank == source else bytes(_TEXT)
        said = torch.tensor(list(text), dtype=torch.uint8, device=device)
        dist.broadcast(said, src=source)
        if damage is None:
            damage = CheckpointDamaged(bytes(said.tolist()).decode(errors="replace").strip())
    if damage is not None:
        raise damage


def full_weights(info: CheckpointInfo, *, averaged: bool = True) -> dict[str, Tensor]:
    """All parameters (fp32) and buffers on the CPU, by name, for `load_state_dict`. Needs neither ranks nor DeepSpeed.

    If the checkpoint has averaged weights, these are returned, because they were validated. With
    `averaged=False`, the weights from which training continues are returned.
    Memory: one full copy of the model; parts are read through a memory map, one at a time.
    Raises `CheckpointDamaged`, which names the part or parameter, if data is damaged or missing.
    """
    kind = AVERAGE if averaged and info.averaged else MASTER
    try:
        return _full_weights(info, kind)
    except CheckpointDamaged as error:
        raise CheckpointDamaged(f"{error}; use another checkpoint of the run") from error


def _full_weights(info: CheckpointInfo, kind: str) -> dict[str, Tensor]:
    import torch

    record = info.record
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
            raise CheckpointDamaged(f"{self._name}: tensor {tensor} is shorter than {start + count} elements")
        return elements

    def whole(self, tensor: str) -> Tensor:
        """A complete tensor."""
        return self._read(tensor, self._handle.get_tensor)

    def _read(self, tensor: str, get: Any) -> Any:
        from safetensors import SafetensorError

        try:
            return get(self._stored.get(tensor, tensor))
        except SafetensorError as error:
            raise CheckpointDamaged(f"{self._name}: cannot read tensor {tensor}: {error}") from error


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
                raise CheckpointDamaged(
                    f"{name} is damaged: it has {folder.size(part.file)} bytes, but {part.bytes} were written"
                )
            elif sha256_of(path) != part.sha256:
                raise CheckpointDamaged(f"{name} is damaged: its sha256 is not that of its record")
        except ObjectMissing as error:
            raise CheckpointDamaged(f"{name} is missing from its checkpoint{error.asked}") from error
        try:
            with safe_open(path, framework="pt", device="cpu") as handle:
                yield _OpenPart(handle, name)
        except SafetensorError as error:
            raise CheckpointDamaged(f"{name} is not a safetensors file: {error}") from error


def _download(folder: Storage, part: CheckpointPart, path: Path) -> None:
    try:
        download_verified(folder, part.file, path, KnownContent(part.bytes, part.sha256, "its record"))
    except ObjectDamaged as error:
        raise CheckpointDamaged(f"{folder.name(part.file)} is damaged: {error.problem}{error.asked}") from error


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
        raise CheckpointDamaged(f"{info.folder.name(info.file)}: {error}") from None


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
