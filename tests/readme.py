"""What the Markdown files of the repository tell a reader to type, as tests run it."""

from __future__ import annotations

import re
import shlex
import textwrap
from pathlib import Path

_BLOCK = re.compile(r"(?:^    .*\n(?:[ \t]*\n(?=    ))*)+", re.MULTILINE)


def code_blocks(page: Path, section: str = "") -> list[str]:
    """The indented blocks of a page, or of one of its `## ` sections, in order, without the indent."""
    text = page.read_text()
    if section:
        _, found, rest = text.partition(f"\n## {section}\n")
        assert found, f"{page}: no section {section!r}"
        text = rest.split("\n## ", 1)[0]
    return [textwrap.dedent(block) for block in _BLOCK.findall(text + "\n")]


def shell_commands(block: str) -> list[list[str]]:
    """The words of each line, comments left out."""
    return [words for words in (shlex.split(line, comments=True) for line in block.splitlines()) if words]


def python_blocks(page: Path) -> list[str]:
    """The blocks that begin with an import."""
    return [block for block in code_blocks(page) if re.match(r"(import|from) ", block)]
