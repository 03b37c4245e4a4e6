"""The three floors: imports run downward only, and importing anything starts nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
FLOORS = {"storage": {"storage", "configs"}, "configs": {"configs", "storage"}, "training": {"training", "storage", "configs"},
          "pipeline": {"pipeline", "training", "storage", "configs"}}  # fmt: skip
COMMANDS = {"storage/verify.py", "storage/describe.py", "storage/delete.py"}  # entry points take their configuration from above
MOST_LINES = 300
FILES = sorted(path for floor in FLOORS for path in (REPOSITORY / floor).rglob("*.py"))


def imported_floors(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the floor"
            names.add(node.module or "")
    return {name.split(".")[0] for name in names} & set(FLOORS)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_imports_run_downward(path: Path) -> None:
    floor = path.relative_to(REPOSITORY).parts[0]
    of_commands = {"configs"} if str(path.relative_to(REPOSITORY)) in COMMANDS else set()
    assert imported_floors(path) <= FLOORS[floor] | of_commands


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


def imported_modules(path: Path, modules: set[str]) -> set[str]:
    """The modules of this repository that a file imports anywhere, but for the types that only a checker reads."""
    tree = ast.parse(path.read_text())
    for_checkers = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING"
        for statement in branch.body
        for node in ast.walk(statement)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in for_checkers:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= members & modules
            if not members <= modules:
                found.add(node.module or "")
    return found & modules


def import_circles(graph: dict[str, set[str]]) -> list[str]:
    """Each circle of imports, as `a -> b -> a`; empty where there is none."""
    circles: list[str] = []
    finished: set[str] = set()

    def follow(module: str, way: list[str]) -> None:
        if module in way:
            circles.append(" -> ".join([*way[way.index(module) :], module]))
        elif module not in finished:
            for imported in sorted(graph[module]):
                follow(imported, [*way, module])
            finished.add(module)

    for module in sorted(graph):
        follow(module, [])
    return circles


def test_no_modules_import_each_other() -> None:
    """Imports inside functions count too: they hide a circle, they do not break it."""
    modules = {module_name(path) for path in FILES}
    assert not import_circles({module_name(path): imported_modules(path, modules) for path in FILES})


def test_a_circle_is_named() -> None:
    assert import_circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b -> c -> b"]


def test_importing_every_module_starts_nothing() -> None:
    modules = [module_name(path) for path in FILES]
    program = f"""
import importlib, multiprocessing, socket, subprocess, sys, threading
def refuse(*_, **__): raise AssertionError("a connection at import")
socket.socket.connect = socket.socket.bind = refuse
for name in {modules!r}:
    importlib.import_module(name)
import torch
assert "ray" not in sys.modules, "Ray was imported"
assert "gsplat" not in sys.modules, "gsplat was imported"
assert not torch.cuda.is_initialized(), "CUDA was touched"
assert not torch.distributed.is_initialized()
assert not multiprocessing.active_children()
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_a_long_file_says_why(path: Path) -> None:
    """At most 300 lines, or a sentence of the module's docstring that begins with "Long because"."""
    source = path.read_text()
    if len(source.splitlines()) > MOST_LINES:
        assert "\nLong because " in (ast.get_docstring(ast.parse(source)) or ""), "split it, or say in its docstring: Long because ..."


def test_only_the_agreed_things_lie_at_the_top() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.splitlines()
    top = {name.split("/")[0] for name in listed}
    agreed = {"pipeline", "training", "storage", "configs", "tests", "infra", "README.md", "pyproject.toml", "LICENSE"}
    assert {name for name in top if not name.startswith(".")} <= agreed
