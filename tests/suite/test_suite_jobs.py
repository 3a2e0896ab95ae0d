"""Jobs on servers that are not ready, or silent, or have old jobs; `test_suite_run` has a real server."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from finished_cells import make
from suite import jobs
from suite.archive import Archive, settings_digest
from suite.jobs import Jobs
from suite.work import Outcome, Worker

from maestro_dist.errors import RunError


class Starting:
    """A server's client that refuses some times."""

    def __init__(self, said: str, refusals: int) -> None:
        self.said, self.left, self.given = said, refusals, dict[str, Any]()

    def submit_job(self, **given: Any) -> str:
        if self.left:
            self.left -= 1
            raise RuntimeError(f"Request failed with status code 500: {self.said}.")
        self.given = given
        return str(given["submission_id"])


def made(client: Starting | Silent, code: Path) -> Jobs:
    found = object.__new__(Jobs)
    found._client, found._mark, found._code = client, "mark", code  # type: ignore[assignment]
    found._silent = None
    return found


class Silent:
    """A server's client whose answers are told; None: it does not answer."""

    def __init__(self, *answers: str | None) -> None:
        self.answers = list(answers)

    def get_job_status(self, job: str) -> Any:
        answer = self.answers.pop(0)
        if answer is None:
            raise ConnectionError("connection refused")
        return SimpleNamespace(value=answer)


def test_a_server_that_misses_a_request_is_asked_again_and_one_that_is_gone_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = made(Silent("PENDING", None, None, "SUCCEEDED", None), tmp_path)
    asked = [found.status("job") for _ in range(5)]
    assert asked == ["PENDING", "RUNNING", "RUNNING", "SUCCEEDED", "RUNNING"]
    monkeypatch.setattr(jobs, "_SILENCE_S", -1.0)
    with pytest.raises(RunError, match=r"job server has not answered for .* connection refused"):
        made(Silent(None), tmp_path).status("job")


def test_a_server_whose_node_is_not_there_yet_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_AGAIN_S", 0.0)
    cell = make(tmp_path).cells[0]
    client = Starting("No available agent to submit job, please try again later", 3)
    assert made(client, tmp_path).submit(cell).startswith(cell.name)
    assert client.given["metadata"] == {"suite": "mark", "cell": cell.name, "settings": settings_digest(cell)}
    monkeypatch.setattr(jobs, "_START_S", -1.0)
    with pytest.raises(RunError, match=r"cannot be submitted: .*No available agent"):
        made(Starting("No available agent to submit job", 1), tmp_path).submit(cell)


def test_other_refusals_are_told_at_once(tmp_path: Path) -> None:
    client = Starting("No space left", 2)
    with pytest.raises(RunError, match=r"cannot be submitted: .*No space left"):
        made(client, tmp_path).submit(make(tmp_path).cells[0])
    assert client.left == 1


class Left:
    """A job server with one job of an earlier start, with these settings."""

    def __init__(self, cell: str, settings: str) -> None:
        self.jobs, self.stopped, self.started = {cell: ("old", settings)}, list[str](), list[str]()

    def running(self) -> dict[str, tuple[str, str]]:
        return self.jobs

    def stop(self, jobs: list[str]) -> None:
        self.stopped += jobs

    def submit(self, cell: Any) -> str:
        self.started.append(cell.name)
        return "new"

    def status(self, job: str) -> str:
        return "FAILED"

    def log(self, job: str) -> str:
        return f"the log of {job}"


@pytest.mark.parametrize("same", [True, False])
def test_a_job_of_an_earlier_start_continues_if_it_has_the_same_settings(tmp_path: Path, same: bool) -> None:
    plan = make(tmp_path)
    cell = plan.cells[0]
    server = Left(cell.name, settings_digest(cell) if same else "other")
    outcome, said = Outcome(), list[str]()
    Worker(Archive(plan), cast(Jobs, server), outcome, [cell], said.append).work(parallel=1, cpus=1, deadline=None)
    assert server.started == ([] if same else [cell.name])
    assert server.stopped == ([] if same else ["old"])
    assert f"the log of {'old' if same else 'new'}" in outcome.failed[cell.name]
    assert any("still runs with other settings" in line for line in said) is not same
