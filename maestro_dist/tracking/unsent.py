"""`tracking.json`: what tracking lacks of a run that has ended."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import Any

from maestro_dist.data.storage import ObjectMissing, Storage
from maestro_dist.tracking.client import short

_LOG = logging.getLogger(__name__)

FILE = "tracking.json"
METRICS, FIGURES, MODEL, TAGS, STATUS = "metrics", "figures", "model", "tags", "status"
PARTS = (METRICS, FIGURES, MODEL, TAGS, STATUS)
_FORMAT = "maestro_dist/tracking/1"
_PATIENCE_S = 10.0


@dataclass(frozen=True)
class Unsent:
    """What MLflow lacks at the end of a run.

    parts     names of `PARTS`; empty if MLflow has everything
    status    status that the run has in truth: FINISHED, FAILED or KILLED
    ended_ms  end of the run in Unix milliseconds; None if it is unknown
    """

    parts: tuple[str, ...]
    status: str = "FINISHED"
    ended_ms: int | None = None


def read_unsent(run: Storage) -> Unsent | None:
    """What the end of the run has noted; None if there is no readable note, as in runs of earlier versions."""
    try:
        content: Any = json.loads(run.read(FILE))
        parts = tuple(part for part in PARTS if part in content["unsent"])
        status = content["status"] if content["status"] in ("FAILED", "KILLED") else "FINISHED"
        return Unsent(parts, status, None if content["ended_ms"] is None else int(content["ended_ms"]))
    except ObjectMissing:
        return None
    except Exception as error:  # the note only saves work: without it, MLflow is asked for everything
        _LOG.warning(f"{run.name(FILE)} cannot be read ({short(error)})")
        return None


def write_unsent(run: Storage, unsent: Unsent) -> bool:
    """Write the note. Returns False, after a warning, if the storage does not take it."""
    content = {"format": _FORMAT, "unsent": list(unsent.parts), "status": unsent.status, "ended_ms": unsent.ended_ms}
    try:
        Storage(run.url, patience_s=_PATIENCE_S).write(FILE, json.dumps(content, indent=1).encode())
    except Exception as error:  # no error of tracking may end a run
        _LOG.warning(f"{run.name(FILE)} cannot be written ({short(error)})")
        return False
    return True
