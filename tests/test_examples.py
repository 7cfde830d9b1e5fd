"""Every program in README.md, docs/ and examples/ runs, and prints what the page says it prints.

On a page, the blocks run in order, in one empty folder: ``python`` blocks share their names, ``sh`` blocks
run in bash. A comment on the line before a block changes that:

* ``<!-- not run: reason -->`` leaves it out;
* ``<!-- file: name -->`` saves it under that name instead;
* ``<!-- prints -->`` says that it is what the block before it printed.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
SERVED = {"bank.py", "orders.py"}
"""Examples that need servers, and so have a test of their own."""
EXAMPLES = sorted(path for path in (ROOT / "examples").glob("*.py") if path.name not in SERVED)

BLOCK = re.compile(
    r"^(?:<!-- *(?P<marker>[^>]*?) *-->\n)?```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
MARKER = re.compile(r"not run: .+|file: [\w.]+|prints")
LANGUAGES = {"python", "sh", "text", "sql", "json", "toml", ""}


@dataclass(frozen=True)
class Block:
    marker: str
    language: str
    text: str
    line: int


def blocks(page: str) -> list[Block]:
    return [
        Block(
            match["marker"] or "",
            match["language"],
            match["text"],
            page.count("\n", 0, match.start("text")) + 1,
        )
        for match in BLOCK.finditer(page)
    ]


def lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]


class Page:
    """Runs the blocks of one page in the current folder."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.names: dict[str, Any] = {"__name__": "__main__"}
        self.printed = ""

    def run(self, block: Block) -> None:
        kind, _, rest = block.marker.partition(": ")
        if kind == "not run":
            return
        if kind == "file":
            Path(rest).write_text(block.text)
        elif kind == "prints":
            assert lines(self.printed) == lines(block.text), f"{self.name}:{block.line}"
        elif block.language == "python":
            self.printed = self.python(block)
        elif block.language == "sh":
            self.printed = shell(block.text, f"{self.name}:{block.line}")

    def python(self, block: Block) -> str:
        out = io.StringIO()
        # On disk and at its line of the page, so that a traceback shows the page's own text.
        file = Path(f"{self.name}.{block.line}.py").absolute()
        file.write_text("\n" * (block.line - 1) + block.text)
        with contextlib.redirect_stdout(out):
            exec(compile(file.read_text(), file, "exec"), self.names)
        return out.getvalue()


def shell(text: str, where: str) -> str:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        env={**os.environ, "PATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, f"{where}: exit {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_page(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = Page(path.name)
    for block in blocks(path.read_text()):
        page.run(block)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_markers_and_languages_are_known(path):
    page = path.read_text()
    found = blocks(page)
    assert 2 * len(found) == len(re.findall(r"^```", page, re.MULTILINE)), "a block is not closed, or not at column 1"
    assert [b.line for b in found if b.marker and not MARKER.fullmatch(b.marker)] == []
    assert [b.line for b in found if b.language not in LANGUAGES] == []


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLIGHTS_RATE", "0")
    first = shell(f"python {path}", path.name)
    again = shell(f"python {path}", path.name + ", after it has finished")
    assert result(first)
    assert result(again) == result(first)


def result(printed: str) -> list[str]:
    """What was printed, without the numbers of processes."""
    return [line for line in printed.splitlines() if "process" not in line]


def test_a_page_that_shows_wrong_output_fails(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = Page("page.md")
    program, shown = blocks("```python\nprint(1 + 1)\n```\n\n<!-- prints -->\n```text\n3\n```\n")
    page.run(program)
    with pytest.raises(AssertionError, match=r"page\.md:7"):
        page.run(shown)


def test_a_page_whose_command_fails_fails(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssertionError, match="exit 3"):
        Page("page.md").run(Block("", "sh", "exit 3\n", 1))
