"""Callbacks that a configuration names: the example of the README against a local server, secrets, errors."""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import runs
import yaml
from callback_states import make_record, make_state

from maestro_dist.callbacks import Callback, State, StepRecord
from maestro_dist.callbacks.configured import check_callbacks, configured_callbacks
from maestro_dist.config.load import load_config
from maestro_dist.errors import ConfigError

README = runs.ROOT / "maestro_dist" / "callbacks" / "README.md"
SECRET = "T0K3N-of-a-webhook"


class Server(ThreadingHTTPServer):
    """A chat server on loopback that keeps what is posted."""

    def __init__(self, status: int = 200) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status = status
        self.texts: list[str] = []
        self.paths: set[str] = set()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hooks/{SECRET}"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:  # the name that http.server calls
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.texts.append(body["text"])
        self.server.paths.add(self.path)
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.shutdown()


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The README's example as an importable module, with its settings as an override."""
    blocks = dict(re.findall(r"```(python|yaml)\n(.*?)```", README.read_text(), re.DOTALL))
    (tmp_path / "chat.py").write_text(blocks["python"])
    assert len(blocks["python"].splitlines()) <= 40
    monkeypatch.syspath_prepend(str(tmp_path))
    yield f"callbacks={json.dumps(yaml.safe_load(blocks['yaml'])['callbacks'])}"
    sys.modules.pop("chat", None)


def files_with(text: str, folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


@pytest.mark.slow
def test_the_example_posts_and_its_secret_is_nowhere(
    tmp_path: Path,
    synthetic: str,
    module: str,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("CHAT_WEBHOOK", server.url)
    storage = tmp_path / "storage"
    assert runs.train(storage, synthetic, module) == 0
    assert [text.split(",")[0] for text in server.texts] == ["tiny: step 14", "tiny: done after 3 validations"]
    assert server.paths == {f"/hooks/{SECRET}"}
    assert files_with(SECRET, storage) == []
    assert SECRET not in "".join(capfd.readouterr())
    assert "CHAT_WEBHOOK" in (storage / "tiny" / "config.yaml").read_text()

    saved = max((storage / "tiny" / "checkpoints").iterdir()) / "checkpoint.json"
    assert json.loads(saved.read_text())["metadata"]["callbacks"]["chat:ChatMessage"] == {"validations": 3}
    runs.rewind(storage / "tiny", 14, 21)
    server.texts.clear()
    assert runs.train(storage, synthetic, module) == 0
    assert [text.split(",")[0] for text in server.texts] == ["tiny: step 14", "tiny: done after 3 validations"]


def test_a_failure_is_told_with_its_step(
    tmp_path: Path, synthetic: str, module: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHAT_WEBHOOK", server.url)
    assert runs.train(tmp_path / "storage", synthetic, module, "optim.lr=1e30", "run.name=bad") == 1
    assert re.fullmatch(r"bad: failed at step \d+: step \d+ .* NaN or infinite .*", server.texts[-1])


def test_a_server_that_refuses_costs_a_warning(
    tmp_path: Path, synthetic: str, module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refusing = Server(status=403)
    monkeypatch.setenv("CHAT_WEBHOOK", refusing.url)
    assert runs.train(tmp_path, synthetic, module.replace('"every": 2', '"every": 1')) == 0
    refusing.shutdown()
    warnings = [line for line in "".join(capsys.readouterr()).splitlines() if "chat:ChatMessage" in line]
    assert warnings == [
        f"warning: chat:ChatMessage.{hook} failed: HTTP Error 403: Forbidden; training continues"
        for hook in ("on_validation", "on_test")
    ]


class Counts(Callback):
    def __init__(self, limit: int = 3, token: str = "") -> None:
        self.limit, self.token, self.closed = limit, token, False

    def on_step(self, state: State, record: StepRecord) -> None:
        if state.step >= self.limit:
            raise ValueError(f"step {state.step} with {self.token}")

    def close(self) -> None:
        self.closed = True


class KeepsAnObject(Callback):
    def state_dict(self) -> dict[str, Any]:
        return {"started": object()}


class NoCallback:
    pass


def config(*entries: dict[str, Any]) -> Any:
    return load_config(None, [f"callbacks={json.dumps(list(entries))}"])


def named(name: str, **settings: Any) -> dict[str, Any]:
    return {"class": f"{__name__}:{name}", **settings}


def test_an_error_stops_the_run_where_that_is_wished(capsys: pytest.CaptureFixture[str]) -> None:
    state = make_state({})
    state.step = 3
    (stops,) = configured_callbacks(config(named("Counts", on_error="stop")), {})
    with pytest.raises(ValueError, match="step 3"):
        stops.on_step(state, make_record(2))
    (warns,) = configured_callbacks(config(named("Counts", secrets={"token": "T"})), {"T": SECRET})
    warns.on_step(state, make_record(2))
    warns.on_step(state, make_record(2))
    said = capsys.readouterr().err.splitlines()
    assert said == [f"warning: {__name__}:Counts.on_step failed: step 3 with ***; training continues"]


def test_a_state_that_is_not_json_is_left_out_of_the_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    (callback,) = configured_callbacks(config(named("KeepsAnObject")), {})
    assert callback.state_dict() == {}
    assert "KeepsAnObject.state_dict failed: Object of type object is not JSON" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (named("Counts", options={"most": 1}), r"callbacks\[0\]\.options: .* does not take them: .*'most'"),
        (named("Counts", secrets={"token": "UNSET"}), r"callbacks\[0\]\.secrets\.token: .* UNSET is not set"),
        (named("Counts", options={"token": "a"}, secrets={"token": "HOME"}), "'token' is given in options too"),
        (named("NoCallback"), "is not a subclass of maestro_dist.callbacks.Callback"),
        (named("Missing"), "has no 'Missing'"),
        ({"class": "no_such_package.module:Name"}, "no module 'no_such_package'"),
    ],
)
def test_what_cannot_be_created_is_refused_before_a_run(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_callbacks(config(entry), {"HOME": "/"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[{class: os.system}]", r"callbacks\.class: string should match pattern"),
        ("[{options: {a: 1}}]", r"callbacks\.class: field required"),
        ("[{class: 'a:B', secret: {a: B}}]", r"secret"),
        ("[{class: 'a:B', secrets: {url: 'https://chat/x'}}]", "secrets"),
        ("[{class: 'a:B', options: {url: 'https://me:pass@chat/x'}}]", "credentials"),
    ],
)
def test_settings_are_checked(text: str, message: str) -> None:
    from maestro_dist.config.check import check

    with pytest.raises(ConfigError, match=message):
        check(load_config(None, ["data.url=x", f"callbacks={text}"]))


def test_options_are_read_as_yaml_means_them() -> None:
    options = "{a: 2, b: 0.5, c: 1e-3, d: true, e: no, f: 0042, g: ~, h: [1, x], i: {k: 3}, j: '7'}"
    (entry,) = load_config(None, [f"callbacks=[{{class: 'a:B', options: {options}}}]"]).callbacks
    wanted = {"a": 2, "b": 0.5, "d": True, "e": "no", "f": "0042", "g": None, "h": [1, "x"], "i": {"k": 3}, "j": "7"}
    assert {**entry.options, "c": float(entry.options["c"])} == {**wanted, "c": 0.001}


def test_two_callbacks_of_one_class_keep_states_of_their_own() -> None:
    from maestro_dist.callbacks import Callbacks

    class Kept(Callback):
        def __init__(self, value: int) -> None:
            self.value = value

        def state_dict(self) -> dict[str, Any]:
            return {"value": self.value}

        def load_state_dict(self, saved: dict[str, Any]) -> None:
            self.value = saved["value"]

    saved = Callbacks([Kept(1), Counts(), Kept(2)]).state_dict()
    assert saved == {"Kept": {"value": 1}, "Kept#2": {"value": 2}}
    again = [Kept(0), Kept(0), Kept(7)]
    Callbacks(again).load_state_dict(saved)
    assert [item.value for item in again] == [1, 2, 7]
