"""Write checkpoints in the background: every rank its slices, then rank 0 the checkpoint record. No collectives."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maestro_dist.checkpoint.fence import Fence, Writer, begin_session
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
    is_record,
    tensor_name,
    writer_of,
)
from maestro_dist.checkpoint.load import sha256_of
from maestro_dist.checkpoint.reshard import Range, check_tiling
from maestro_dist.checkpoint.retain import Retention, is_later
from maestro_dist.data.storage import Storage
from maestro_dist.engine.partition import buffers, optimizer_name, optimizer_state, owned_slices, parameter_shapes
from maestro_dist.errors import CheckpointError, MaestroError
from maestro_dist.parallel.mesh import Mesh

if TYPE_CHECKING:
    from torch import Tensor

    from maestro_dist.engine.engine import Engine

_LOG = logging.getLogger(__name__)

_POLL_S = (0.02, 1.0)  # first and longest pause between looks for the notes of other ranks


@dataclass(frozen=True)
class Snapshot:
    """CPU copies of the tensors that this rank owns, and their slices."""

    tensors: dict[str, Tensor]
    slices: dict[str, Range]


@dataclass
class _Save:
    """A save in the background. Its record is written after the record of the save before it.

    uploaded  set when this rank's part is on storage, or has failed; its snapshot is no longer in memory
    earlier   files of the step's folder that this save replaces; on rank 0
    """

    number: int
    record: CheckpointRecord
    fence: Callable[[], None] | None
    before: _Save | None
    uploaded: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None
    earlier: list[str] = field(default_factory=list)

    def join(self, timeout_s: float | None = None) -> None:
        """Wait until it has ended, with or without an error."""
        if self.thread is not None:
            self.thread.join(timeout_s)


class Saver:
    """Saves an engine under `<run_url>/checkpoints`. The constructor is a collective: ranks agree on a session.

    Rank 0 checks before each record and each removal that no later driver and no later start of the workers has taken
    over the run (`fence.Fence`).

    attempt    number of this attempt of the run; file names contain it
    keep_last  number of newest complete checkpoints to keep, in addition to the best (`metadata["best_step"]`)
    timeout_s  how long rank 0 waits for the other ranks' parts, in seconds
    """

    def __init__(self, run_url: str, mesh: Mesh, *, attempt: int, keep_last: int, timeout_s: float = 600.0) -> None:
        self.mesh = mesh
        self.attempt = attempt
        self.timeout_s = timeout_s
        self._checkpoints = checkpoints(run_url)
        self._session = _agree_on_session(mesh, run_url, attempt)
        self.fence = Fence(run_url, attempt, self._session)
        self._retention = Retention(self._checkpoints, keep_last, Writer(attempt, self._session))
        self._saves = 0
        self._last: _Save | None = None
        self._lock = threading.Lock()  # of the next two
        self._cleaning: threading.Thread | None = None
        self._to_clean: list[_Save] = []
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

        Waits first until this rank's part of the previous save, and all of the save before that, are on storage.
        `metadata` must be plain JSON. Rank 0 calls `fence` (by default that of this saver) right before it writes the
        checkpoint record; `fence` raises if this run may no longer write.
        Raises the error of an earlier save (`CheckpointError`, `StorageError`, or the error of `fence`).
        """
        if self._last is not None:
            if self._last.before is not None:
                self._last.before.join()
                self._last.before = None
            self._last.uploaded.wait()
        self._raise()
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
        self._last = save = _Save(self._saves, record, fence, self._last)
        save.thread = threading.Thread(
            target=self._write, args=(save, [snapshot]), name=f"checkpoint-{step}", daemon=True
        )
        save.thread.start()

    def wait(self, *, removals: bool = True) -> None:
        """Wait until all saves are on storage (on rank 0: complete). Raises their error, once.

        removals  wait also until older checkpoints are removed
        """
        if self._last is not None:
            self._last.join()
            self._last = None
        if removals:
            self._join_cleaning()
        self._raise()

    def _raise(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def completed(self) -> list[int]:
        """Steps whose checkpoints have become complete since the last call; on rank 0 (elsewhere none)."""
        return [self._completed.get() for _ in range(self._completed.qsize())]

    def close(self, timeout_s: float = 30.0) -> None:
        """Wait at most `timeout_s` for the saves, and as long for removals. An error that was not raised is logged."""
        if self._last is not None:
            self._last.join(timeout_s)
        self._join_cleaning(timeout_s)
        if self._error is not None:
            _LOG.warning("%s", self._error)

    def _write(self, save: _Save, snapshots: list[Snapshot]) -> None:
        record, folder = save.record, self._checkpoints.join(folder_name(save.record.step))
        try:
            part = self._write_part(folder, snapshots.pop(), self._name(self.mesh.rank, save.number).file())
            save.uploaded.set()
            if self.mesh.rank > 0:
                _notes().set(self._note(self.mesh.rank, save.number), dump(part))
                return
            complete = record.model_copy(update={"parts": [part, *self._other_parts(folder, save.number)]})
            check_tiling(complete.parameters, [written.slices for written in complete.parts])
            before = save.before  # `save` may remove the reference at any time
            if before is not None:
                before.join()
            self._write_record(save, folder, complete)
            self._completed.put(record.step)
            self._clean_soon(save)
        except Exception as error:
            self._keep(error, f"cannot write checkpoint {folder.name()}")
        finally:
            save.uploaded.set()  # after the error is kept, so that the next save raises it

    def _clean_soon(self, save: _Save) -> None:
        """Remove in the background what this complete save has made superfluous: no save waits for removals."""
        with self._lock:
            self._to_clean.append(save)
            if self._cleaning is None:
                self._cleaning = threading.Thread(target=self._clean, name="retention", daemon=True)
                self._cleaning.start()

    def _clean(self) -> None:
        while True:
            with self._lock:
                saves, self._to_clean = self._to_clean, []
                if not saves:
                    self._cleaning = None
                    return
            best = saves[-1].record.metadata.get("best_step")
            try:
                self.fence.check()  # it may have waited for storage since the record was written
                for save in saves:
                    self._checkpoints.join(folder_name(save.record.step)).remove_many(save.earlier)
                self._retention.completed([save.record.step for save in saves], [] if best is None else [best])
            except Exception as error:
                self._keep(error, f"cannot remove older checkpoints in {self._checkpoints.name()}")

    def _join_cleaning(self, timeout_s: float | None = None) -> None:
        cleaning = self._cleaning
        if cleaning is not None:
            cleaning.join(timeout_s)

    def _keep(self, error: Exception, what: str) -> None:
        """Keep an error, which the next `save` or `wait` raises."""
        if isinstance(error, MaestroError):
            self._error = error
            return
        self._error = CheckpointError(f"{what}: {error}")
        self._error.__cause__ = error

    def _name(self, rank: int, save: int) -> PartName:
        return PartName(rank, self.attempt, self._session, save)

    def _note(self, rank: int, save: int) -> str:
        return f"checkpoint-part/{self._name(rank, save).file('json')}"

    def _write_part(self, folder: Storage, snapshot: Snapshot, file: str) -> CheckpointPart:
        from safetensors.torch import save_file

        with folder.writer(file) as spool:
            path = Path(spool.name)
            save_file(snapshot.tensors, path)
            size, digest = path.stat().st_size, sha256_of(path)
        return CheckpointPart(rank=self.mesh.rank, file=file, bytes=size, sha256=digest, slices=snapshot.slices)

    def _other_parts(self, folder: Storage, save: int) -> list[CheckpointPart]:
        """Wait for the notes of ranks 1, 2, ...: each tells what part it has written in this save."""
        missing = set(range(1, self.mesh.world))
        parts: dict[int, CheckpointPart] = {}
        notes: Any = _notes() if missing else None
        deadline = time.monotonic() + self.timeout_s
        pause, longest = _POLL_S
        while missing:
            for rank in sorted(missing):
                note = self._note(rank, save)
                if notes.check([note]):
                    parts[rank] = CheckpointPart.model_validate_json(notes.get(note))
                    notes.delete_key(note)
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

    def _write_record(self, save: _Save, folder: Storage, record: CheckpointRecord) -> None:
        """Write the record once all parts are there. It never replaces another one: readers take the latest writer's.

        Raises:
            CheckpointError: a part has been removed.
        """
        sizes = folder.sizes()
        for part in record.parts:
            if sizes.get(part.file) != part.bytes:
                raise CheckpointError(
                    f"{folder.name(part.file)} was written and is not there any more, or has another size; does "
                    "another program remove files of this run?"
                )
        writer = Writer(self.attempt, self._session)
        later = {name for name in sizes if is_later(name, writer)}
        kept = later | {part.file for part in record.parts}
        if later:
            kept.add(RECORD)  # it may be the later writer's
        save.earlier = [name for name in sizes if name not in kept and (is_record(name) or writer_of(name))]
        # The guard is called before each attempt: another driver may take over the run while storage does not answer.
        guard, data = save.fence or self.fence.check, dump(record)
        name = self._name(0, save.number).record()
        if not any(map(is_record, sizes)):
            try:
                folder.write(RECORD, data, create=True, guard=guard)
                return
            except FileExistsError:
                pass  # of an earlier writer, which was held up
        folder.write(name, data, create=True, guard=guard)


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


def _notes() -> Any:
    """Where ranks leave notes for rank 0: the store in which the process group was formed. It costs no request."""
    import torch.distributed as dist

    return dist.distributed_c10d._get_default_store()


def _agree_on_session(mesh: Mesh, run_url: str, attempt: int) -> int:
    """A number for this start of the workers: the same on all ranks, greater at each start."""
    if mesh.world == 1:
        return begin_session(run_url, attempt)
    import torch
    import torch.distributed as dist

    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    number = begin_session(run_url, attempt) if mesh.rank == 0 else 0
    session = torch.tensor(number, dtype=torch.int64, device=device)
    dist.broadcast(session, src=0)
    return int(session)
