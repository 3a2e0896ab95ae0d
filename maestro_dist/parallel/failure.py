"""Failed ranks: their reports, how they free ranks that wait for them, and which report is the cause."""

from __future__ import annotations

import re
import traceback
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import NamedTuple

from maestro_dist import errors
from maestro_dist.errors import MaestroError, RunError

_FINAL = (errors.ConfigError, errors.DataError, errors.NonFiniteError, errors.RunError)
"""Errors that another start would repeat. After other errors (a store that does not answer) a restart can help."""
_GLOO = re.compile(r"gloo.*(by peer|timed out|timeout|broken pipe|connection refused)", re.IGNORECASE | re.DOTALL)
_UNUSED_TAG = 1 << 20
_TIMED_OUT = re.compile(r"timed out|timeout", re.IGNORECASE)


class Report(NamedTuple):
    """The error that ended a rank's work, as plain values that can be sent.

    kind     class of the error in `maestro_dist.errors`; None for other errors
    name     class of the error
    place    the innermost function, and the last line of this package that called it
    lost     a collective failed because another rank failed or did not join it: the cause is on that rank
    waited   like `lost`, after a wait up to the time limit
    """

    rank: int
    kind: str | None
    name: str
    message: str
    place: str
    lost: bool
    waited: bool
    traceback: str

    @property
    def final(self) -> bool:
        """Whether another start would repeat the error."""
        return self.kind is not None and issubclass(getattr(errors, self.kind), _FINAL)


def report_of(rank: int, error: BaseException) -> Report:
    """The report of this rank's error."""
    message = " ".join(str(error).split()) or "no message"
    kind = next((c.__name__ for c in type(error).__mro__ if c.__module__ == errors.__name__), None)
    lost = _is_loss(error)
    return Report(
        rank=rank,
        kind=kind,
        name=type(error).__name__,
        message=message,
        place=_place(error),
        lost=lost,
        waited=lost and bool(_TIMED_OUT.search(message)),
        traceback="".join(traceback.format_exception(error)),
    )


def leave_groups() -> None:
    """Abort all process groups of this rank, so that ranks that wait for it in a collective get an error immediately.

    A rank that has failed calls this; otherwise its peers wait until their timeout. No group exists afterwards.
    """
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        return
    for group in list(dist.distributed_c10d._world.pg_map):
        if group.size() > 1 and dist.get_backend(group) == "gloo":
            # gloo's abort leaves connections open if the group is still referenced (by the model and DeepSpeed). A
            # receive that times out closes them. No rank sends with this tag.
            with suppress(RuntimeError):
                peer = (group.rank() + 1) % group.size()
                group.recv([torch.empty(1)], peer, _UNUSED_TAG).wait(timedelta(milliseconds=1))
    dist.distributed_c10d._abort_process_group()


def root_cause(reports: Sequence[Report], ranks: int, timeout_s: int) -> MaestroError:
    """The error to show for these reports (one at least, in the order of arrival) of a world of `ranks`.

    The first error that is not a lost connection is the cause; the other ranks only lost their connection to that rank.
    If all ranks lost a connection, the cause is a rank without a report: it hangs, or was killed.
    """
    cause = next((report for report in reports if not report.lost), None)
    if cause is None:
        return _with_traceback(RunError(_silent_ranks_message(reports, ranks, timeout_s)), reports[0])
    if cause.kind:
        return _with_traceback(getattr(errors, cause.kind)(f"worker {cause.rank}: {cause.message}"), cause)
    what = f"{cause.name}: {cause.message[:300]}"
    return _with_traceback(RunError(f"worker {cause.rank} failed ({what}); --debug shows the traceback"), cause)


def _with_traceback(error: MaestroError, report: Report) -> MaestroError:
    error.add_note(f"On worker {report.rank}:\n{report.traceback}")
    return error


def _silent_ranks_message(reports: Sequence[Report], ranks: int, timeout_s: int) -> str:
    silent = sorted(set(range(ranks)) - {report.rank for report in reports})
    names = ", ".join(map(str, silent[:8])) + (", ..." if len(silent) > 8 else "")
    others = f"worker{'s' if len(silent) > 1 else ''} {names}" if silent else "the others"
    waited = next((report for report in reports if report.waited), None)
    if waited:
        return (
            f"worker {waited.rank} waited for {others} until the time limit of {timeout_s} s, in {waited.place}; find "
            "out what blocks them, or raise run.timeout_s if they are only slow"
        )
    lost = reports[0]
    return (
        f"worker {lost.rank} lost its connection to {others} in {lost.place}, and there is no error "
        "report from there; the process was killed (out of memory?) or the network failed"
    )


def _is_loss(error: BaseException) -> bool:
    import torch.distributed as dist

    # gloo's errors have no separate class
    return isinstance(error, dist.DistError) or (type(error) is RuntimeError and bool(_GLOO.search(str(error))))


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return "an unknown place"
    package_frames = [frame for frame in frames if "maestro_dist/" in frame.filename]
    if not package_frames:
        return frames[-1].name
    file = package_frames[-1].filename.rsplit("maestro_dist/", 1)[1]
    return f"{frames[-1].name} ({file}:{package_frames[-1].lineno}, {package_frames[-1].name})"
