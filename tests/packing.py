"""A data set of made-up parts, for tests of packing; `python -m packing URL WORKERS ...` packs it in a process."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maestro_dist.data.description import Description
from maestro_dist.data.fragments import PackFormat
from maestro_dist.data.manifest import Manifest
from maestro_dist.data.pack_parts import PackWorkers, PartsPacking, ThisProcess, pack_parts
from maestro_dist.data.parts import Remarks
from maestro_dist.data.sample_checks import RawSample
from maestro_dist.types import Modality

SHARD = 20_000
ABOUT = Description(
    name="numbered",
    licence="CC0",
    citation="",
    source="made for tests",
    task="classification",
    classes=("a", "b"),
    target="parity",
    window_s=2.0,
    modalities=(Modality("ecg", 1, 64.0, 128, "mV"), Modality("acc", 3, 8.0, 16, "g")),
)


@dataclass(frozen=True)
class Numbered:
    """A part. `log`: a folder that gets a file for each time that samples are made.

    fault    what happens at sample `at`: "bad", "stop", "die" (its process is killed, the first time), "die always"
    pause_s  before each sample
    """

    number: int
    count: int
    log: str
    fault: str = ""
    at: int = 0
    pause_s: float = 0.0

    @property
    def name(self) -> str:
        return f"part-{self.number}"

    def samples(self, remarks: Remarks) -> Iterator[RawSample]:
        Path(self.log).mkdir(parents=True, exist_ok=True)
        Path(self.log, f"{self.number}-{uuid.uuid4().hex}").touch()
        draw = np.random.default_rng(self.number)
        remarks.count("samples made", self.count)
        if not self.count:
            remarks.warn("parts without samples", self.name)
        for row in range(self.count):
            time.sleep(self.pause_s)
            values: dict[str, Any] = {"ecg": draw.normal(3, 2, (128, 1))}
            if draw.random() < 0.5:
                values["acc"] = draw.normal(size=(16, 3))
            if self.fault and row == self.at:
                values = self._fail(values)
            who = {"subject": f"p{self.number}", "recording": f"r{self.number}"}
            split = ("train", "train", "validation", "test")[row % 4]
            key = f"s{self.number}-{row}"
            yield RawSample(split, key, row % 2, **who, start_s=row * 2.0, duration_s=2.0, values=values)

    def _fail(self, values: dict[str, Any]) -> dict[str, Any]:
        if self.fault == "bad":
            return {"ecg": np.full((128, 1), np.inf)}
        if self.fault == "stop":
            raise KeyboardInterrupt
        if self.fault == "die always" or (self.fault == "die" and made(self.log)[self.number] == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        return values


COUNTS = (5, 1, 0, 400, 1, 1, 1, 30, 0, 1, 2, 60, 1, 0)
"""Samples of the parts: one is larger than many shards, many are tiny, some are empty; the last one too."""


def parts(log: Path | str, counts: Sequence[int] = COUNTS, **faults: Any) -> list[Numbered]:
    """The parts; `faults` (fault, at, pause_s) are for part 7."""
    pause_s = faults.pop("pause_s", 0.0)
    made_up = [Numbered(number, count, str(log), pause_s=pause_s) for number, count in enumerate(counts)]
    if faults:
        made_up[7] = Numbered(7, counts[7], str(log), pause_s=pause_s, **faults)
    return made_up


def made(log: Path | str) -> Counter[int]:
    """How often the samples of each part were made."""
    return Counter(int(name.partition("-")[0]) for name in os.listdir(log))


def packed(
    url: Path | str, made_up: Sequence[Any], workers: PackWorkers | None = None, **options: Any
) -> tuple[Manifest, Remarks]:
    """Pack parts."""
    shard_bytes = options.pop("shard_bytes", SHARD)
    about = PackFormat.checked(options.pop("about", ABOUT), ("train", "validation", "test"), shard_bytes)
    return pack_parts(str(url), PartsPacking(made_up, about, **options), workers or ThisProcess())


def digests(folder: Path | str) -> dict[str, str]:
    """The hash of each file in a folder, hidden ones too."""
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def main(url: str, workers: str, log: str, fault: str = "", pause_s: str = "0") -> None:
    """Pack the parts in this process or with workers of Ray."""
    from maestro_dist.run.ray_packing import ray_workers

    made_up = parts(log, pause_s=float(pause_s), **({"fault": fault, "at": 20} if fault else {}))
    with ray_workers(int(workers), SHARD, 3) if int(workers) else nullcontext(ThisProcess()) as those:
        packed(url, made_up, those)


if __name__ == "__main__":
    import packing  # parts get the name of the module, which workers import

    packing.main(*sys.argv[1:])
