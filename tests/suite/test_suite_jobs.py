"""How jobs are handed to a server that is not ready yet; `test_suite_run` hands them to a real one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from finished_cells import make_plan
from suite import jobs
from suite.jobs import Jobs

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


def made(client: Starting, code: Path) -> Jobs:
    found = object.__new__(Jobs)
    found._client, found._mark, found._code = client, "mark", code  # type: ignore[assignment]
    return found


def test_a_server_whose_node_is_not_there_yet_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_AGAIN_S", 0.0)
    cell = make_plan(tmp_path).cells[0]
    client = Starting("No available agent to submit job, please try again later", 3)
    assert made(client, tmp_path).submit(cell).startswith(cell.name)
    assert client.given["metadata"] == {"suite": "mark", "cell": cell.name}
    monkeypatch.setattr(jobs, "_START_S", -1.0)
    with pytest.raises(RunError, match=r"cannot be submitted: .*No available agent"):
        made(Starting("No available agent to submit job", 1), tmp_path).submit(cell)


def test_other_refusals_are_told_at_once(tmp_path: Path) -> None:
    client = Starting("No space left", 2)
    with pytest.raises(RunError, match=r"cannot be submitted: .*No space left"):
        made(client, tmp_path).submit(make_plan(tmp_path).cells[0])
    assert client.left == 1
