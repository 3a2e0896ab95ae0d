"""Write checkpoints in the background: every rank its slices, then rank 0 the checkpoint record. No collectives."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maestro_dist.checkpoint.layout import (
    BUFFER,
    FORMAT,
    RECORD,
    CheckpointPart,
    CheckpointRecord,
    PartName,
    checkpoints,
    dump,
    folder_name,
    tensor_name,
)
from maestro_dist.checkpoint.load import sha256_of
from maestro_dist.checkpoint.reshard import Range, check_tiling
from maestro_dist.checkpoint.retain import apply_retention
from maestro_dist.data.storage import Storage
from maestro_dist.engine.partition import buffers, optimizer_name, optimizer_state, owned_slices, parameter_shapes
from maestro_dist.errors import CheckpointError, MaestroError
from maestro_dist.parallel.mesh import Mesh

if TYPE_CHECKING:
    from torch import Tensor

    from maestro_dist.engine.engine import Engine

_POLL_S = (0.05, 2.0)  # first and longest pause between polls for the parts of other ranks


@dataclass(frozen=True)
class Snapshot:
    """CPU copies of the tensors that this rank owns, and their slices."""

    tensors: dict[str, Tensor]
    slices: dict[str, Range]


class Saver:
    """Saves an engine under `<run_url>/checkpoints`. The constructor is a collective: ranks agree on a session.

    attempt    number of this attempt of the run; file names contain it
    keep_last  number of newest complete checkpoints to keep, in addition to the best (`metadata["best_step"]`)
    timeout_s  how long rank 0 waits for the other ranks' parts
    """

    def __init__(self, run_url: str, mesh: Mesh, *, attempt: int, keep_last: int, timeout_s: float = 600.0) -> None:
        self.mesh = mesh
        self.attempt = attempt
        self.keep_last = keep_last
        self.timeout_s = timeout_s
        self._checkpoints = checkpoints(run_url)
        self._session = _agree_on_session(mesh)
        self._saves = 0
        self._thread: threading.Thread | None = None
        self._error: MaestroError | None = None
        self._completed: queue.SimpleQueue[int] = queue.SimpleQueue()

    def save(
        self,
        engine: Engine,
        *,
        step: int,
        position: int,
        epoch: int,
        metadata: dict[str, Any],
        fence: Callable[[], None] | None = None,
    ) -> None:
        """Copy the state now and write it in the background. All ranks call it at the same step.

        Waits for the previous save first. `metadata` must be plain JSON. Rank 0 calls `fence` right before it writes
        the checkpoint record; `fence` raises if this run may no longer write.
        Raises the error of the previous save (`CheckpointError`, `StorageError`, or the error of `fence`).
        """
        self.wait()
        self._saves += 1
        moments, optimizer_steps = optimizer_state(engine)
        record = CheckpointRecord(
            format=FORMAT,
            step=step,
            position=position,
            epoch=epoch,
            attempt=self.attempt,
            mesh={name: getattr(self.mesh, name) for name in ("world", "data", "sequence", "expert")},
            zero_stage=engine.zero_stage,
            optimizer=optimizer_name(engine),
            optimizer_steps=optimizer_steps,
            moments=moments,
            parameters=parameter_shapes(engine),
            buffers={name: tuple(buffer.shape) for name, buffer in buffers(engine).items()},
            parts=[],
            metadata=metadata,
        )
        dump(record)  # metadata that is not JSON raises here, not in the background
        snapshot = take_snapshot(engine, with_buffers=self.mesh.rank == 0)
        self._thread = threading.Thread(
            target=self._write, args=(snapshot, record, fence), name=f"checkpoint-{step}", daemon=True
        )
        self._thread.start()

    def wait(self) -> None:
        """Wait until the last save is on storage (on rank 0: complete). Raises its error, once."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def completed(self) -> list[int]:
        """Steps whose checkpoints have become complete since the last call; on rank 0 (elsewhere none)."""
        return [self._completed.get() for _ in range(self._completed.qsize())]

    def close(self, timeout_s: float = 30.0) -> None:
        """Wait at most `timeout_s` for the current save. Its error is not raised."""
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _write(self, snapshot: Snapshot, record: CheckpointRecord, fence: Callable[[], None] | None) -> None:
        folder = self._checkpoints.join(folder_name(record.step))
        try:
            part = self._write_part(folder, snapshot)
            if self.mesh.rank > 0:
                folder.write(self._name(self.mesh.rank).file("json"), dump(part))
                return
            complete = record.model_copy(update={"parts": [part, *self._other_parts(folder)]})
            check_tiling(complete.parameters, [written.slices for written in complete.parts])
            if fence is not None:
                fence()
            folder.write(RECORD, dump(complete))
            self._completed.put(record.step)
            self._tidy(folder)
            best = record.metadata.get("best_step")
            apply_retention(
                self._checkpoints,
                current=record.step,
                keep_last=self.keep_last,
                best=[] if best is None else [best],
            )
        except MaestroError as error:
            self._error = error
        except Exception as error:  # any error is raised by the next `save` or `wait`
            self._error = CheckpointError(f"cannot write checkpoint {folder.name()}: {error}")
            self._error.__cause__ = error

    def _name(self, rank: int) -> PartName:
        return PartName(rank, self.attempt, self._session, self._saves)

    def _write_part(self, folder: Storage, snapshot: Snapshot) -> CheckpointPart:
        from safetensors.torch import save_file

        file = self._name(self.mesh.rank).file()
        with folder.writer(file) as spool:
            path = Path(spool.name)
            save_file(snapshot.tensors, path)
            size, digest = path.stat().st_size, sha256_of(path)
        return CheckpointPart(rank=self.mesh.rank, file=file, bytes=size, sha256=digest, slices=snapshot.slices)

    def _other_parts(self, folder: Storage) -> list[CheckpointPart]:
        """Wait for the notes of ranks 1, 2, ... of this save."""
        missing = set(range(1, self.mesh.world))
        parts: dict[int, CheckpointPart] = {}
        deadline = time.monotonic() + self.timeout_s
        pause, longest = _POLL_S
        while missing:
            files = set(folder.list())
            for rank in sorted(missing):
                note = self._name(rank).file("json")
                if note in files:
                    parts[rank] = CheckpointPart.model_validate_json(folder.read(note))
            missing -= parts.keys()
            if missing and time.monotonic() > deadline:
                ranks = ", ".join(str(rank) for rank in sorted(missing)[:8]) + (", ..." if len(missing) > 8 else "")
                raise CheckpointError(
                    f"checkpoint {folder.name()} is incomplete: no part from rank {ranks} within {self.timeout_s:g} s; "
                    "look at the log of that rank"
                )
            if missing:
                time.sleep(pause)
                pause = min(2 * pause, longest)
        return [parts[rank] for rank in sorted(parts)]

    def _tidy(self, folder: Storage) -> None:
        """Remove the notes of this save, and parts of earlier saves of the same step."""
        for file in folder.list():
            name = PartName.parse(file)
            if name is None or name.attempt > self.attempt:
                continue
            of_this_session = name.attempt == self.attempt and name.session == self._session
            note = of_this_session and name.save == self._saves and file.endswith(".json")
            if note or not of_this_session or name.save < self._saves:
                folder.remove(file)


def take_snapshot(engine: Engine, *, with_buffers: bool) -> Snapshot:
    """Copy the tensors that this rank owns, and with `with_buffers` the buffers. Training may continue immediately."""
    tensors: dict[str, Tensor] = {}
    slices: dict[str, Range] = {}
    for owned in owned_slices(engine):
        slices[owned.name] = (owned.start, owned.count)
        for kind, tensor in owned.tensors.items():
            tensors[tensor_name(owned.name, kind)] = tensor.detach().to("cpu", copy=True)
    if with_buffers:
        for name, buffer in buffers(engine).items():
            tensors[tensor_name(name, BUFFER)] = buffer.detach().to("cpu", copy=True)
    return Snapshot(tensors, slices)


def _agree_on_session(mesh: Mesh) -> int:
    """A number for this start of the workers: the same on all ranks, different at each start."""
    if mesh.world == 1:
        return time.time_ns()
    import torch
    import torch.distributed as dist

    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    session = torch.tensor(time.time_ns(), dtype=torch.int64, device=device)
    dist.broadcast(session, src=0)
    return int(session)
