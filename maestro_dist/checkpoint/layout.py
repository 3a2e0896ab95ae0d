"""The files of a checkpoint, and their names.

```
<run>/checkpoints/step-000000120/
    checkpoint.json                                         `CheckpointRecord`; written last, never over another one
    checkpoint.attempt-0002.18c3a4f2d1e.0001.json           instead, by a later writer that finds a checkpoint.json
    rank-00000.attempt-0002.18c3a4f2d1e.0001.safetensors    slices of rank 0, and the module's buffers
    rank-00001.attempt-0002.18c3a4f2d1e.0001.safetensors
```
A checkpoint is complete if and only if it has a record. The name of a part contains the attempt, the session (one start
of the workers) and the number of the save in this session. Therefore no writer overwrites a part that a record names.
Of several records, that of the latest writer counts. Tensors are named `<parameter>/<kind>`; the kind is `master` (fp32
weights), a moment of the optimizer (`exp_avg`, ...) or `buffer`. All files are safetensors or JSON.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from maestro_dist.data.storage import ObjectDamaged, ObjectMissing, Storage
from maestro_dist.data.storage.plain_json import parse_json
from maestro_dist.errors import CheckpointDamaged

FORMAT: Final = "maestro_dist/checkpoint/1"
RECORD = "checkpoint.json"
"""Name of the checkpoint record, unless the folder has one already (`PartName.record`)."""
BUFFER = "buffer"

_FOLDER = re.compile(r"step-(\d{9,})")
_RECORD = re.compile(r"checkpoint(?:\.attempt-(\d{4,})\.([0-9a-f]+)\.(\d{4,}))?\.json")
_PART = re.compile(r"rank-(\d{5,})\.attempt-(\d{4,})\.([0-9a-f]+)\.(\d{4,})\.(safetensors|json)")


class _FrozenModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CheckpointPart(_FrozenModel):
    """The file of one rank. `slices` maps a parameter to (start, count) in its flattened elements."""

    rank: int
    file: Annotated[str, Field(pattern=rf"^{_PART.pattern}$")]
    bytes: int
    sha256: str
    slices: dict[str, tuple[int, int]]


class CheckpointRecord(_FrozenModel):
    """The content of `checkpoint.json`.

    step             optimizer steps taken
    position         samples consumed since the start of the run
    optimizer_steps  optimizer steps that were not skipped
    mesh, zero_stage mesh and stage of the writer; any other mesh and stage can read it
    moments          names of the optimizer's state tensors
    parameters       full shape of each parameter; `buffers` likewise
    metadata         plain JSON of the caller; the checkpoint of step `metadata["best_step"]` is never removed
    """

    format: Literal["maestro_dist/checkpoint/1"]
    step: int
    position: int
    epoch: int
    attempt: int
    mesh: dict[str, int]
    zero_stage: int
    optimizer: str
    optimizer_steps: int
    moments: list[str]
    parameters: dict[str, tuple[int, ...]]
    buffers: dict[str, tuple[int, ...]]
    parts: list[CheckpointPart]
    metadata: dict[str, Any]

    @property
    def writer(self) -> tuple[int, int, int]:
        """Attempt, session and save of the writer. A later one is greater."""
        return max(filter(None, (writer_of(part.file) for part in self.parts)), default=(self.attempt, 0, 0))


@dataclass(frozen=True)
class PartName:
    """The name of a part: the rank that wrote it, its attempt, session and save."""

    rank: int
    attempt: int
    session: int
    save: int

    def file(self, suffix: str = "safetensors") -> str:
        """The file's name. Older versions also wrote a note that the part is finished, with the suffix "json"."""
        return f"rank-{self.rank:05d}.attempt-{self.attempt:04d}.{self.session:x}.{self.save:04d}.{suffix}"

    def record(self) -> str:
        """Name of a record of the same save, where there is a `checkpoint.json` already."""
        return f"checkpoint.attempt-{self.attempt:04d}.{self.session:x}.{self.save:04d}.json"

    @classmethod
    def parse(cls, file: str) -> PartName | None:
        """Parse a file name; None if the file is not a part."""
        match = _PART.fullmatch(file)
        if match is None:
            return None
        rank, attempt, session, save, _ = match.groups()
        return cls(int(rank), int(attempt), int(session, 16), int(save))


def checkpoints(run_url: str) -> Storage:
    """The folder of a run's checkpoints."""
    return Storage(run_url).join("checkpoints")


def folder_name(step: int) -> str:
    """Name of the folder of a step."""
    return f"step-{step:09d}"


def folder_step(name: str) -> int | None:
    """Step of a folder name; None for any other name."""
    match = _FOLDER.fullmatch(name)
    return int(match.group(1)) if match else None


def is_record(name: str) -> bool:
    """Whether a file of a step's folder is a checkpoint record, by its name."""
    return _RECORD.fullmatch(name) is not None


def writer_of(name: str) -> tuple[int, int, int] | None:
    """Attempt, session and save of the writer of a part or a record, if its name tells it."""
    part = PartName.parse(name)
    if part is not None:
        return part.attempt, part.session, part.save
    match = _RECORD.fullmatch(name)
    return (int(match[1]), int(match[2], 16), int(match[3])) if match and match[1] else None


def tensor_name(parameter: str, kind: str) -> str:
    """Name of a tensor in a part."""
    return f"{parameter}/{kind}"


def dump(model: BaseModel) -> bytes:
    """A model as JSON, with NaN and infinities as `NaN` and `Infinity`. Raises TypeError for what JSON cannot hold."""
    return json.dumps(model.model_dump()).encode()


def read_record(folder: Storage, file: str) -> CheckpointRecord | None:
    """A checkpoint record, which is known to exist; None if it has been removed in the meantime.

    Raises `CheckpointDamaged` naming the file if it cannot be read.
    """
    try:
        content = folder.parsed(file, parse_json, expected=True)
    except ObjectMissing:
        return None
    except ObjectDamaged as error:
        raise CheckpointDamaged(f"{folder.name(file)} is damaged: {error.problem}{error.asked}") from error
    try:
        file_format = content.get("format") if isinstance(content, dict) else None
        if file_format != FORMAT:
            raise CheckpointDamaged(f"{folder.name(file)}: format is {file_format!r}, expected {FORMAT!r}")
        return CheckpointRecord.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(key) for key in first["loc"])
        raise CheckpointDamaged(f"{folder.name(file)} is damaged: {where}: {first['msg']}") from error
    except ValueError as error:
        raise CheckpointDamaged(f"{folder.name(file)} is damaged: {error}") from error
