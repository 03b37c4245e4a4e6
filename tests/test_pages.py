"""The Markdown pages: what they name is there, what they tell to type is understood, their examples run."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from configs import load
from tests.conftest import REPOSITORY
from tests.readme import python_blocks
from tests.test_configuration import COMMANDS

LISTED = subprocess.run(["git", "ls-files", "*.md"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.split()
PAGES = [REPOSITORY / name for name in LISTED if "golden" not in name]
FLOORS = ("pipeline", "training", "storage")
_LINK = re.compile(r"\]\(([^)#:]+)\)")
_PATH = re.compile(r"\b(?:pipeline|training|storage|configs|infra|tests)/[\w./-]*\w/?")
_COMMAND = re.compile(r"\b(\w+)\.py((?: [\w.]+=(?:\[[^]]*\]|[^\s`,#]+))+)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_what_a_page_names_is_there(page: Path) -> None:
    text = page.read_text()
    named = {REPOSITORY / path for path in _PATH.findall(text) if "NAME" not in path and "PRESET" not in path}
    assert [str(path) for path in sorted(named | {page.parent / link for link in _LINK.findall(text)}) if not path.exists()] == []


@pytest.mark.parametrize("floor", FLOORS)
def test_the_files_that_the_page_of_a_floor_lists_are_there(floor: str) -> None:
    """In the block that lists the rooms, the first column is of files, separated by commas."""
    block = next(b for b in (REPOSITORY / floor / "README.md").read_text().split("\n\n") if b.startswith("    ") and ".py" in b)
    names = [name for line in block.splitlines() for name in re.split(r" {2,}", line.strip())[0].split(", ")]
    assert len(names) > 8
    assert [name for name in names if not (REPOSITORY / floor / name).exists()] == []


@pytest.mark.parametrize("floor", FLOORS)
def test_the_example_of_a_floor_runs(floor: str, dataset: str, capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = python_blocks(REPOSITORY / floor / "README.md")
    exec(example.replace("outputs/demo/dataset", dataset), {})
    assert capsys.readouterr().out.strip()


def test_every_command_of_the_readme_is_understood() -> None:
    """Keys and values; `...` and names in capitals stand for what the reader puts there."""
    found = _COMMAND.findall((REPOSITORY / "README.md").read_text())
    assert len(found) > 10
    for name, words in found:
        (schema, required) = next(value for path, value in COMMANDS.items() if Path(path).stem == name)
        given = dict(word.split("=", 1) for word in words.split())
        asked = {key: value for key, value in given.items() if (key, value) not in (("reconstructor", "..."), ("backbone", "..."))}
        load(schema, [*(r for r in required if r.split("=")[0] not in asked), *(f"{key}={value}" for key, value in asked.items())])
