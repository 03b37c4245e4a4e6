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


def test_importing_every_module_starts_nothing() -> None:
    modules = [".".join(p.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__") for p in FILES]
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


def test_only_the_agreed_things_lie_at_the_top() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.splitlines()
    top = {name.split("/")[0] for name in listed}
    agreed = {"pipeline", "training", "storage", "configs", "tests", "infra", "README.md", "pyproject.toml", "LICENSE"}
    assert {name for name in top if not name.startswith(".")} <= agreed
