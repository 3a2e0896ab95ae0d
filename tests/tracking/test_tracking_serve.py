"""The printed command serves the logged model; what clients send is answered, or refused with 400."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from exported_models import CLASSES, FULL, MODALITIES, as_lists, exported

from maestro_dist.inference.predictor import load_model
from maestro_dist.run.summary import commands
from maestro_dist.tracking import open_run, tracking_uri
from maestro_dist.tracking.logged_model import log_model


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, empty: Path) -> Iterator[tuple[str, Path]]:
    """URL of a server that was started as a run's end prints it, and the exported model."""
    folder = tmp_path_factory.mktemp("it's a=b")
    (folder / "mlflow.db").write_bytes(empty.read_bytes())
    exported(folder / "exported")
    uri = tracking_uri(None, str(folder))
    run = open_run(uri, "study", "one")
    model = log_model(uri, run.run_id, folder / "exported", modalities=MODALITIES, columns=CLASSES)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = commands(str(folder / "one"), uri, model)["serve"]
    assert command.endswith("--port 5001")
    environment = {"HOME": str(folder), "PATH": os.defpath}  # no environment is active in this shell
    with (folder / "server.txt").open("wb") as output:
        server = subprocess.Popen(
            ["bash", "-c", f"{command.removesuffix('5001')}{port}"],
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"{url}/ping", timeout=1):
                    break
            except OSError:
                said = (folder / "server.txt").read_text()
                assert server.poll() is None, said
                assert time.monotonic() < deadline, said
                time.sleep(0.1)
        yield url, folder / "exported"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def post(url: str, content: object) -> tuple[int, str]:
    """Status and text of the answer to a request."""
    data = json.dumps(content).encode()
    request = urllib.request.Request(f"{url}/invocations", data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_null_and_missing_columns_are_answered(served: tuple[str, Path]) -> None:
    url, folder = served
    acc, eda = as_lists(FULL["acc"]), as_lists(FULL["eda"])
    gaps = [None, *FULL["eda"][1:, 0].tolist()]
    holed = FULL["eda"].copy()
    holed[0] = np.nan
    expected = load_model(folder).predict([FULL, {"acc": FULL["acc"]}, {"eda": holed}])
    rows = [{"acc": acc, "eda": eda}, {"acc": acc, "eda": None}, {"eda": gaps}]
    for content in (
        {"dataframe_records": rows},
        {"dataframe_split": {"columns": ["acc", "eda"], "data": [[acc, eda], [acc, None], [None, gaps]]}},
        {"inputs": {"acc": [acc, acc, None], "eda": [eda, None, gaps]}},
    ):
        status, text = post(url, content)
        assert status == 200, text
        found = [[row[name] for name in CLASSES] for row in json.loads(text)["predictions"]]
        assert np.array(found) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{}], "no column is one of the sensors acc, eda"),
        ([{"eda": [[1.0]] * 16}, {"eda": None}], "sample 1: none of acc, eda was observed"),
        ([{"eda": [[None]] * 16}], "sample 0: none of acc, eda was observed"),
        ([{"eda": [["Infinity"]] * 16}], "sample 0, eda: not an array of numbers"),
        ([{"eda": [[float("inf")]] + [[1.0]] * 15}], "sample 0, eda: contains an infinite value"),
        ([{"eda": [[1.0]] * 15}], "sample 0, eda: shape [15, 1] should be [16, 1]"),
    ],
)
def test_what_cannot_be_answered_is_the_clients_error(served: tuple[str, Path], rows: list[object], said: str) -> None:
    status, text = post(served[0], {"dataframe_records": rows})
    assert status == 400
    assert said in text
