"""Importing the package, and asking for help, load next to nothing."""

import subprocess
import sys

import pytest

HEAVY = {"numba", "duckdb", "pyarrow", "numpy", "rich", "structlog", "msgspec", "msgpack"}


def loaded(program):
    """The modules that a program of its own has loaded."""
    program += "\nimport sys\nprint(*sys.modules, sep='\\n', file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stderr.splitlines())


@pytest.mark.parametrize(
    "program",
    [
        "import millstream",
        "import millstream as ms; dir(ms); ms.__version__",
        "from millstream.cli import commands; commands(['--help'], standalone_mode=False)",
        "from millstream.cli import commands; commands(['run', '--help'], standalone_mode=False)",
        "from millstream.cli import commands; commands(['nexmark', '--help'], standalone_mode=False)",
    ],
)
def test_nothing_heavy_is_loaded(program):
    modules = loaded(program)
    assert modules & HEAVY == set()
    assert not [name for name in modules if name.startswith(("millstream.connectors", "millstream.operators"))]
    assert "millstream" in modules


def test_a_name_loads_what_it_needs_and_no_kernels():
    modules = loaded("import millstream as ms; ms.Job('j'); ms.col('a') + 1; ms.tumbling('1m')")
    assert "millstream.job" in modules
    assert modules & {"numba", "duckdb"} == set()
    assert not [name for name in modules if name.startswith("millstream.connectors")]


def test_planning_a_job_compiles_nothing():
    modules = loaded(
        "import millstream as ms\n"
        "job = ms.Job('j')\n"
        "job.read(ms.memory_source([{'a': 1}])).filter(ms.col('a') > 0).write(ms.memory_sink())\n"
        "job.plan(2)"
    )
    assert modules & {"numba", "duckdb"} == set()
