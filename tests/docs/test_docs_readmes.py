"""Every README: its links lead somewhere, it is short, and its commands work.

Each command of a shell block is run as it is printed, with a few words added so that it ends soon, or it is checked in
the way that `CHECKED_ELSEWHERE` names. A command that is not known here fails the test.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import runs

ROOT = runs.ROOT
FOLDERS = ["", "cluster", "configs", "maestro_dist", "tools", "tools/benchmarks", "tools/suite/results"]
FOLDERS += [f"maestro_dist/{name}" for name in ("callbacks", "checkpoint", "model", "parallel", "tracking")]
FOLDERS += [
    f"maestro_dist/{name}" for name in ("data", "data/converters", "data/recordings", "data/storage", "data/tables")
]
DOCUMENTS = [*(str(Path(folder, "README.md")) for folder in FOLDERS), "CONTRIBUTING.md"]
EXCERPTS = {
    "uci_hapt": "uci_hapt/HAPT_RawData_excerpt.tar.xz",
    "stress_predict": "stress_predict",
    "physionet2012": "physionet2012",
}
SHORT = ["optim.max_steps=4", "evaluation.test_rates=[0,0.4]", "evaluation.draws=[0]"]
CHECKED_ELSEWHERE = {
    r"make (dev|lint|test|test-slow)": ".ci/run",
    r"source \.venv/bin/activate": "Makefile",
    r"(export RAY_AUTH_MODE|ray (get-auth-token|start|job submit)) ?.*": "tests/ray/test_ray_job.py",
    r"(mlflow ui|make ui).*": "tests/docs/test_docs_readmes.py",
    r"python tools/run_suite.py configs/suite_smoke.yaml": "tests/suite/test_suite_run.py",
    r"python tools/run_suite.py .*--report": "tests/suite/test_suite_claims.py",
    r"python -m maestro_dist.train data.url=s3://.*": "tests/storage/test_storage_s3.py",
    r"python .*(my_tables|data/mine).*": "tests/dataset/test_data_readme.py",
    r"python -m pytest .*": ".ci/run",
}
"""What is not run here -> the file that runs it."""


def commands_of(document: str) -> list[str]:
    """The commands of the shell blocks, one line each, without comments."""
    text = (ROOT / document).read_text()
    found: list[str] = []
    for block in re.findall(r"```(?:bash|sh)\n(.*?)```", text, re.DOTALL):
        lines = block.replace("\\\n", " ").splitlines()
        found += [" ".join(line.split(" #")[0].split()) for line in lines if line.split(" #")[0].strip()]
    return found


COMMANDS = list(dict.fromkeys((document, command) for document in DOCUMENTS for command in commands_of(document)))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere_and_it_is_short(document: str) -> None:
    path = ROOT / document
    text = path.read_text()
    assert len(text.splitlines()) <= 150
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert [link for link in links if link and not (path.parent / link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_files_that_it_names_exist(document: str) -> None:
    """Names with a folder, `data/order.py`, from the root, from the package or from the document's own folder."""
    path = ROOT / document
    named = set(re.findall(r"(?<![\w/.-])((?:[a-z_]+/)+\w+\.(?:py|yaml|md|toml))\b", path.read_text()))
    named = {
        name
        for name in named
        if not name.startswith(("runs/", "data/ward")) and "yours" not in name and name != "configs/x.yaml"
    }
    places = (ROOT, ROOT / "maestro_dist", path.parent)
    assert sorted(name for name in named if not any((place / name).exists() for place in places)) == []


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a user has after a clone, apart from tests: commands may write there."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("configs", "tools"):
        shutil.copytree(ROOT / name, folder / name)
    (folder / "tests").mkdir()
    for name in ("maestro_dist", "tests/data", "Makefile", "pyproject.toml"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def shortened(command: str) -> list[str] | None:
    """The words of a command to run; None where it is checked elsewhere."""
    for pattern, file in CHECKED_ELSEWHERE.items():
        if re.fullmatch(pattern, command):
            assert (ROOT / file).exists()
            return None
    if command == "make demo":
        recipe = (ROOT / "Makefile").read_text().split("\ndemo: install\n")[1].splitlines()[0]
        command = recipe.strip().replace("$(BIN)/", "")
    words = shlex.split(command)
    if words[:2] == ["python", "tools/pack_dataset.py"]:
        words[words.index("--source") + 1] = f"tests/data/{EXCERPTS[words[2]]}"
        words[words.index("--out") + 1] = f"packed/{words[2]}"
        return words
    if words[:2] in (["python", "tools/lint_shards.py"], ["python", "tools/preview.py"]):
        return [*words[:2], f"packed/{Path(words[2]).name}", *words[3:]]  # packed by a command above it
    if words[:2] == ["python", "tools/benchmark.py"]:
        return [*words, *([] if "--quick" in words else ["--quick"])]
    if words[:2] == ["python", "tools/run_suite.py"]:
        return [*words, *([] if "--list" in words else ["--list"])]
    assert words[:2] == ["python", "-m"], f"not a known command: {command}"
    if words[2] == "maestro_dist.train":
        return [*words, *([] if {"--print-config", "--dry-run"} & set(words) or "gpu_" in command else SHORT)]
    assert words[2] in ("maestro_dist.evaluate", "maestro_dist.predict", "maestro_dist.track"), (
        f"not a known command: {command}"
    )
    return words


@pytest.mark.parametrize(("document", "command"), COMMANDS)
def test_every_command_is_known(document: str, command: str) -> None:
    shortened(command)


@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS)
def test_its_commands_work(document: str, checkout: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{checkout}/tools", "HOME": str(tmp_path)}
    environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment.pop("RAY_ADDRESS", None)
    shutil.rmtree(checkout / "runs", ignore_errors=True)  # documents use the same names for other runs
    if document == "configs/README.md":
        run_here(["python", "-m", "maestro_dist.train", "configs/quickstart.yaml", *SHORT], checkout, environment)
    if document in ("maestro_dist/data/README.md", "maestro_dist/data/recordings/README.md"):
        return  # tests/dataset/test_data_readme.py runs its snippets and its command
    for command in commands_of(document):
        words = shortened(command)
        if words is not None:
            run_here(words, checkout, environment)


def run_here(words: list[str], folder: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


def test_the_readmes_own_data_and_use_of_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The snippet that packs, a short run on what it packed, and the snippet that predicts, on a model of that name."""
    from maestro_dist.train import main

    monkeypatch.chdir(tmp_path)
    pack_snippet, predict_snippet = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    exec(pack_snippet, {"__name__": "own"})
    (train,) = re.findall(r"`python -m maestro_dist\.train ([^`]*data/ward[^`]*)`", (ROOT / "README.md").read_text())
    short = [*runs.TINY[:-1], "optim.max_steps=2", "run.launcher=inline", "evaluation.draws=[0]"]
    assert main([*shlex.split(train), *short]) == 0

    config = ["run.name=mine", "run.workers=1", f"data.source.path={ROOT}/tests/data/{EXCERPTS['uci_hapt']}"]
    assert main([str(ROOT / "configs/quickstart.yaml"), *config, *short, "model.normalize=dataset"]) == 0
    exec(predict_snippet, {"__name__": "use"})


@pytest.mark.slow
def test_the_ui_opens(tmp_path: Path) -> None:
    """`make ui` as it is in the Makefile, on another port and an empty folder."""
    import contextlib
    import socket
    import time
    import urllib.request

    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    recipe = (ROOT / "Makefile").read_text().split("\nui: install\n")[1].splitlines()[0].strip()
    command = recipe.replace("$(BIN)", str(Path(sys.executable).parent)).replace("$(CURDIR)", str(tmp_path))
    variables, _, rest = command.replace("$(RUNS)/", "").partition(" ")
    words = [*shlex.split(rest), "--port", str(port)]
    server = subprocess.Popen(
        words, env={**os.environ, **dict([variables.split("=")])}, cwd=tmp_path,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
                assert answer.status == 200
                return
            assert server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.5)
    finally:
        os.killpg(server.pid, 9)
        server.wait()
