"""The structure of the package: imports run one way, names are unique, files are small, nothing unpickles."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "maestro_dist"
ROOT_MODULES = {"__init__", "__main__", "train", "evaluate", "predict", "track", "types", "rng", "errors"}
LAYERS = [
    {"system"},
    {"errors", "types", "rng"},
    {"config"},
    {"model", "data", "task", "optim"},
    {"parallel"},
    {"engine"},
    {"checkpoint", "tracking", "evaluation", "inference"},
    {"callbacks"},
    {"training"},
    {"run"},
    {"train", "evaluate", "predict", "track", "__main__"},
]
"""A module imports from its own folder and from lower layers only; folders of one layer do not import one another."""
LAYER_OF = {name: number for number, names in enumerate(LAYERS) for name in names}
MOST_LINES = 400
MOST_PARAMETERS = 6
MODEL_MAY_IMPORT = {"torch", "numpy", "pydantic", "maestro_dist", "__future__"}
UNSAFE_MODULES = {"pickle", "dill", "cloudpickle", "shelve", "joblib", "marshal"}
FILES = sorted(PACKAGE.rglob("*.py"))


def imports_of(tree: ast.AST) -> Iterator[str]:
    """Full dotted names of everything imported: at the top, inside functions and for type checking alike."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the direction"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def top_of(path: Path) -> str:
    """The folder, or the module of the root, that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def upward_imports(source: str, top: str) -> list[str]:
    """Imports of `maestro_dist` in `source` that a file of `top` may not have."""
    found = []
    for name in imports_of(ast.parse(source)):
        parts = name.split(".")
        if parts[0] != "maestro_dist" or len(parts) < 2 or parts[1] == "__version__":
            continue
        if parts[1] != top and not LAYER_OF[parts[1]] < LAYER_OF[top]:
            found.append(name)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_in_one_direction(path: Path) -> None:
    top = top_of(path)
    if top == "__init__":
        assert upward_imports(path.read_text(), "system") == []
        return
    assert top in LAYER_OF, f"{path.name}: a new folder; give it its layer here"
    assert upward_imports(path.read_text(), top) == []


def test_the_check_sees_a_wrong_import() -> None:
    assert upward_imports("from maestro_dist.training.job import WorkerJob", "callbacks") == [
        "maestro_dist.training.job.WorkerJob"
    ]
    assert upward_imports("def f():\n    import maestro_dist.data.stream", "model") == ["maestro_dist.data.stream"]
    assert upward_imports("from maestro_dist import run", "data") == ["maestro_dist.run"]
    assert upward_imports("from maestro_dist.rng import key", "model") == []


def test_the_root_holds_what_users_call_and_the_shared_words() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} == ROOT_MODULES


def import_graph(sources: dict[str, str]) -> dict[str, set[str]]:
    """Module -> modules of the package that it imports anywhere in it."""
    graph: dict[str, set[str]] = {}
    for module, source in sources.items():
        graph[module] = set()
        for name in imports_of(ast.parse(source)):
            while name and name not in sources:
                name = name.rpartition(".")[0]
            graph[module] |= {name} - {"", module, PACKAGE.name}
    return graph


def circle_in(graph: dict[str, set[str]]) -> list[str]:
    """The modules of one circle of imports; empty where there is none."""
    left = dict(graph)
    while free := [module for module, others in left.items() if not others & left.keys()]:
        for module in free:
            del left[module]
    if not left:
        return []
    walk = [next(iter(left))]
    while walk[-1] not in walk[:-1]:
        walk.append(min(left[walk[-1]] & left.keys()))
    return walk[walk.index(walk[-1]) :]


def test_no_circle_of_imports() -> None:
    names = {path: ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in FILES}
    sources = {name.removesuffix(".__init__"): path.read_text() for path, name in names.items()}
    assert circle_in(import_graph(sources)) == []


def test_the_check_sees_a_circle() -> None:
    sources = {
        "m": "",
        "m.a": "def f():\n    from m.b import x",
        "m.b": "import m.c",
        "m.c": "from m import a",
        "m.d": "import m.a",
    }
    assert circle_in(import_graph(sources)) == ["m.a", "m.b", "m.c", "m.a"]
    assert circle_in(import_graph(sources | {"m.c": "import json"})) == []


def public_functions(source: str) -> Iterator[tuple[str, int]]:
    """Public functions and methods with their numbers of parameters, without `self` and `cls`."""

    def visit(node: ast.AST, inside: str) -> Iterator[tuple[str, int]]:
        for child in ast.iter_child_nodes(node):
            private = getattr(child, "name", "").startswith("_") and getattr(child, "name", "") != "__init__"
            if private:
                continue
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                given = child.args.posonlyargs + child.args.args + child.args.kwonlyargs
                bound = bool(inside) and bool(given) and given[0].arg in ("self", "cls")
                yield inside + child.name, len(given) - bound
            elif isinstance(child, ast.ClassDef):
                yield from visit(child, f"{inside}{child.name}.")
            elif isinstance(child, ast.If | ast.Try):
                yield from visit(child, inside)

    return visit(ast.parse(source), "")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_public_function_has_many_parameters(path: Path) -> None:
    many = [(name, count) for name, count in public_functions(path.read_text()) if count > MOST_PARAMETERS]
    assert many == []


def test_the_check_counts_parameters() -> None:
    method = "class A:\n    def __init__(self, a, b, *, c): ...\n    def _b(self): ...\n"
    source = method + "def f(a, /, b): ...\nclass _P:\n    def g(self, a): ..."
    assert list(public_functions(source)) == [("A.__init__", 3), ("f", 2)]


def test_class_names_are_unique() -> None:
    places: dict[str, list[str]] = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(str(path.relative_to(PACKAGE)))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


@pytest.mark.parametrize("path", sorted((PACKAGE / "model").rglob("*.py")), ids=lambda path: path.name)
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


def test_files_stay_small() -> None:
    """Files of the package, the tools and the tests."""
    paths = [path for folder in (PACKAGE, ROOT / "tools", ROOT / "tests") for path in folder.rglob("*.py")]
    sizes = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in paths}
    assert {name: size for name, size in sizes.items() if size > MOST_LINES} == {}
