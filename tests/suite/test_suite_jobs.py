"""How jobs are handed to a server that is not ready yet; `test_suite_run` hands them to a real one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from finished_cells import make_plan
from suite import jobs
from suite.jobs import Jobs
from suite.record import settings_digest

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
    cell = make_plan(tmp_path).cells[0]
    client = Starting("No available agent to submit job, please try again later", 3)
    assert made(client, tmp_path).submit(cell).startswith(cell.name)
    assert client.given["metadata"] == {"suite": "mark", "cell": cell.name, "settings": settings_digest(cell)}
    monkeypatch.setattr(jobs, "_START_S", -1.0)
    with pytest.raises(RunError, match=r"cannot be submitted: .*No available agent"):
        made(Starting("No available agent to submit job", 1), tmp_path).submit(cell)


def test_other_refusals_are_told_at_once(tmp_path: Path) -> None:
    client = Starting("No space left", 2)
    with pytest.raises(RunError, match=r"cannot be submitted: .*No space left"):
        made(client, tmp_path).submit(make_plan(tmp_path).cells[0])
    assert client.left == 1
