"""Facts about this repository that could be false."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module, metadata, resources
from pathlib import Path

import millstream
import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = PROJECT["tool"]["setuptools"]["package-dir"]
SOURCES = sorted(path for folder in FOLDERS.values() for path in (ROOT / folder).rglob("*.py"))
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("**/*.md")])

MOST_LINES_IN_FILE = 500
MOST_LINES_IN_FUNCTION = 60
# Old offenders, by name, until they shrink. Nothing may be added.
LONG_FILES: frozenset[str] = frozenset()
LONG_FUNCTIONS: frozenset[str] = frozenset()

FORBIDDEN_IMPORTS = {"pickle", "cloudpickle", "dill", "marshal", "shelve"}
FORBIDDEN_CALLS = {"eval", "exec"}
SYNONYMS = {
    r"commitable": "committable",
    r"checkpoint_?id": "epoch",
    r"late_?(event|record)s?": "late row",
    r"record_?batch_?size": "batch rows",
    r"sub_task": "subtask",
    r"micro-?_?batch": "batch",
    r"retraction": "weight",
    r"topology": "graph",
}
HEAVY = ("aiohttp", "numba", "llvmlite", "pandas", "polars", "confluent_kafka", "psycopg", "deltalake", "pyiceberg")


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tracked_files() -> list[Path]:
    listing = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listing.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / part for part in listing.stdout.split("\0") if part and (ROOT / part).is_file()]


def tracked_text() -> Iterator[tuple[Path, str]]:
    for path in tracked_files():
        raw = path.read_bytes()
        if b"\0" not in raw:
            yield path, raw.decode()


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    return {name(path): ast.parse(path.read_text()) for path in SOURCES}


def test_no_tracked_file_names_a_machine_or_an_index():
    # Put together from pieces, so that this file does not find itself.
    homes = r"(?<![\w.:/])/(?:" + "|".join(["home", "root", "Users", "work", "workspace"]) + r")/\w"
    indexes = "index" + "-url|find" + "-links|trusted" + "-host"
    pattern = re.compile(f"{homes}|{indexes}")
    found = [
        f"{name(path)}:{number}: {line.strip()}"
        for path, text in tracked_text()
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]
    assert found == []


def test_no_lock_file_of_another_tool_is_tracked():
    assert [name(path) for path in tracked_files() if path.name in {"uv.lock", "poetry.lock", "Pipfile.lock"}] == []


def test_packages_neither_pickle_nor_evaluate_text(trees):
    found = []
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                modules = {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                modules = {(node.module or "").partition(".")[0]}
            else:
                modules = set()
            bad_call = (
                isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS
            )
            allows = isinstance(node, ast.keyword) and node.arg == "allow_pickle"
            if modules & FORBIDDEN_IMPORTS or bad_call or allows:
                found.append(f"{path}:{getattr(node, 'lineno', '?')}")
    assert found == []


def test_every_module_says_what_it_is(trees):
    assert [path for path, tree in trees.items() if not ast.get_docstring(tree)] == []


def test_files_are_short():
    lengths = {name(path): len(path.read_text().splitlines()) for path in SOURCES}
    long = {path for path, lines in lengths.items() if lines > MOST_LINES_IN_FILE}
    assert long == LONG_FILES, {path: lengths[path] for path in long}


def test_functions_are_short(trees):
    lengths = {
        f"{path}:{node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path, tree in trees.items()
        for node in functions(tree)
    }
    long = {where for where, lines in lengths.items() if lines > MOST_LINES_IN_FUNCTION}
    assert long == LONG_FUNCTIONS, {where: lengths[where] for where in long}


def test_one_word_per_idea():
    pattern = {re.compile(synonym, re.IGNORECASE): word for synonym, word in SYNONYMS.items()}
    found = [
        f"{name(path)}:{number}: {match.group()} is called {word!r} here"
        for path in SOURCES
        for number, line in enumerate(path.read_text().splitlines(), 1)
        for synonym, word in pattern.items()
        if (match := synonym.search(line))
    ]
    assert found == []


@pytest.mark.parametrize("package", ["millstream", "millstream.operators", "millstream.connectors"])
def test_public_names_can_be_imported_and_are_listed_once(package):
    module = import_module(package)
    public = getattr(module, "__all__", [])  # ruff keeps it sorted
    assert len(public) == len(set(public))
    assert [name for name in public if not hasattr(module, name)] == []


def test_importing_millstream_is_light():
    program = f"import sys, millstream; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_types_are_shipped():
    assert resources.files("millstream").joinpath("py.typed").is_file()
    assert PROJECT["tool"]["setuptools"]["package-data"]["millstream"] == ["py.typed"]


def test_every_package_is_in_the_distribution():
    packages = set()
    for dotted, folder in FOLDERS.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            packages.add(".".join([dotted, *init.parent.relative_to(ROOT / folder).parts]))
    assert packages == set(PROJECT["tool"]["setuptools"]["packages"])


def test_every_module_lies_in_a_package():
    assert [name(path) for path in SOURCES if not (path.parent / "__init__.py").exists()] == []


def test_every_module_of_the_dsl_has_a_place_in_the_import_layers():
    layers = PROJECT["tool"]["importlinter"]["contracts"][0]["layers"]
    listed = {part.strip() for part in re.split(r"[:|]", layers[1])}
    modules = {
        path.stem if path.is_file() else path.name
        for path in (ROOT / "dsl").iterdir()
        if (path.suffix == ".py" and path.stem != "__init__") or (path / "__init__.py").exists()
    }
    assert listed == modules, 'keep the second of "layers" in pyproject.toml equal to the modules of dsl/'


def test_one_version_everywhere():
    changelog = (ROOT / "CHANGELOG.md").read_text()
    newest = re.search(r"^## \[(\d[^]]*)\]", changelog, re.MULTILINE)
    assert newest is not None
    assert {millstream.__version__, metadata.version("millstream"), newest[1]} == {PROJECT["project"]["version"]}


def test_every_requirement_is_pinned_to_a_version_it_allows():
    pins = dict(
        line.lower().replace("_", "-").split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if not line.startswith("#")
    )
    project = PROJECT["project"]
    for text in project["dependencies"] + project["optional-dependencies"]["dev"]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pins[requirement.name.lower().replace("_", "-")]), text


def test_every_public_name_is_on_a_page():
    words = set(re.findall(r"\w+", " ".join(page.read_text() for page in PAGES)))
    assert [name for name in millstream.__all__ if name not in words] == []


def leaves(group, name="millstream"):
    """Every command below a group that has no commands below it, with its full name."""
    for command in group.commands.values():
        full = f"{name} {command.name}"
        yield from leaves(command, full) if hasattr(command, "commands") else [(full, command)]


def test_every_option_of_the_command_line_is_on_a_page():
    from millstream.cli import commands

    words = set(re.findall(r"--[\w-]+", " ".join(page.read_text() for page in PAGES)))
    options = {
        f"{name} {option}": option
        for name, command in leaves(commands)
        for parameter in command.params
        for option in parameter.opts
    }
    assert len(options) > 20
    assert [which for which, option in options.items() if option.startswith("--") and option not in words] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_between_pages_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []
