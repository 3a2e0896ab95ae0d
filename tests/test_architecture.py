"""The walls of the house: imports run one way, rooms of one level do not know one another, nothing unpickles."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "maestro_dist"
LEVELS = [
    {"terminal", "redact"},
    {"errors", "types", "rng", "memory"},
    {"config"},
    {"model", "data", "task", "optim"},
    {"parallel"},
    {"checkpoint", "tracking", "evaluation", "lease", "predict"},
    {"callbacks"},
    {"loop"},
    {"worker"},
    {"launch"},
    {"train", "evaluate", "__main__"},
]
LEVEL_OF = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
SAME_ROOM = {
    "launch_ray": "launch",
    "ray_cluster": "launch",
    "ray_address": "launch",
    "dry_run": "launch",
    "run_record": "launch",
    "start": "worker",
    "standardise": "worker",
    "teachers": "worker",
    "summary": "launch",
    "evaluate_target": "evaluate",
    "places": "predict",
    "predict_command": "predict",
    "predict_input": "predict",
    "pyfunc_model": "predict",
}
MODEL_MAY_IMPORT = {"torch", "numpy", "pydantic", "maestro_dist", "__future__"}
UNSAFE_MODULES = {"pickle", "dill", "cloudpickle", "shelve", "joblib", "marshal"}
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(name: str) -> str:
    return SAME_ROOM.get(name, name)


def imports_of(tree: ast.AST) -> Iterator[str]:
    """Full dotted names of everything imported, at the top and inside functions alike."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the direction"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def violations(source: str, room: str) -> list[str]:
    """Imports of `maestro_dist` in `source` that a file of `room` may not have."""
    found = []
    for name in imports_of(ast.parse(source)):
        parts = name.split(".")
        if parts[0] != "maestro_dist" or len(parts) < 2 or parts[1] == "__version__":
            continue
        other = room_of(parts[1])
        if other != room and not LEVEL_OF[other] < LEVEL_OF[room]:
            found.append(name)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_in_one_direction(path: Path) -> None:
    room = room_of(path.relative_to(PACKAGE).parts[0].removesuffix(".py"))
    if room == "__init__":
        assert violations(path.read_text(), "terminal") == []
        return
    assert room in LEVEL_OF, f"{path.name}: a new room; give it its level here"
    assert violations(path.read_text(), room) == []


def test_the_check_sees_a_wrong_import() -> None:
    assert violations("from maestro_dist.worker import Job", "callbacks") == ["maestro_dist.worker.Job"]
    assert violations("def f():\n    import maestro_dist.data.stream", "model") == ["maestro_dist.data.stream"]
    assert violations("from maestro_dist import launch", "data") == ["maestro_dist.launch"]
    assert violations("from maestro_dist.rng import key", "model") == []


@pytest.mark.parametrize("path", sorted((PACKAGE / "model").glob("*.py")), ids=lambda path: path.name)
def test_model_needs_only_torch_numpy_pydantic(path: Path) -> None:
    import sys

    tops = {name.split(".")[0] for name in imports_of(ast.parse(path.read_text()))}
    assert {top for top in tops if top not in MODEL_MAY_IMPORT and top not in sys.stdlib_module_names} == set()


def unsafe_calls(source: str) -> list[str]:
    """Ways to load a pickle, run a shell or evaluate text."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found += [n for n in names if n.split(".")[0] in UNSAFE_MODULES]
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if name == "torch.load" and keywords.get("weights_only") != "True":
                found.append(name)
            if name.endswith(("read_array", "np.load", "numpy.load")) and keywords.get("allow_pickle") != "False":
                found.append(f"{name} without allow_pickle=False")
            if name in {"eval", "exec", "os.system", "os.popen"} or keywords.get("shell") == "True":
                found.append(name)
            if name.endswith(("read_pickle", "all_gather_object", "broadcast_object_list", "gather_object")):
                found.append(name)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_unpickles_or_runs_a_shell(path: Path) -> None:
    assert unsafe_calls(path.read_text()) == []


def test_the_check_sees_unsafe_calls() -> None:
    assert unsafe_calls("import torch\ntorch.load(p)") == ["torch.load"]
    assert unsafe_calls("torch.load(p, weights_only=True)") == []
    assert unsafe_calls("np.load(f)") == ["np.load without allow_pickle=False"]
    assert unsafe_calls("from pickle import loads") == ["pickle"]
    assert unsafe_calls("subprocess.run(c, shell=True)") == ["subprocess.run"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_stay_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 450
