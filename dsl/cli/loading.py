"""Finding the job in a user's file."""

from __future__ import annotations

import importlib.util
import re
import sys
import traceback
from pathlib import Path
from types import ModuleType

from millstream.engine.errors import JobError, MillstreamError
from millstream.job import IMPORTING, Job

_loaded: set[str] = set()


def load_job(where: str) -> Job:
    """Import ``FILE.py`` or ``FILE.py:name`` and return its job.

    The file is imported under its own name with its folder on the path, as ``python FILE.py`` would, except that
    ``__name__`` is not ``"__main__"``.

    Raises:
        JobError: there is no such file, it cannot be imported, it has no job, or several and no name was given.
    """
    file, _, name = where.partition(":")
    path = Path(file)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise JobError(f"{file} {what}: give a Python file with a job in it; millstream init writes one")
    if path.suffix != ".py":
        raise JobError(f"{file} is not a Python file: give one with a job in it; millstream init writes one")
    jobs = {key: value for key, value in vars(_imported(path)).items() if isinstance(value, Job)}
    if name:
        if name not in jobs:
            raise JobError(f"{file} has no job called {name!r} at its top level; it has {', '.join(jobs) or 'none'}")
        return jobs[name]
    distinct = {id(job): job for job in jobs.values()}
    if len(distinct) == 1:
        return next(iter(distinct.values()))
    if not distinct:
        raise JobError(f"{file} makes no job at its top level: it needs a line such as job = ms.Job('orders')")
    raise JobError(f"{file} has several jobs ({', '.join(jobs)}): say which, as in {file}:{next(iter(jobs))}")


def _imported(path: Path) -> ModuleType:
    # The name goes into the ids of operators that call functions of the file, so nothing but the file decides it.
    name = re.sub(r"\W", "_", path.stem)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if name in _loaded or (name not in sys.modules and name not in sys.stdlib_module_names):
        _loaded.add(name)
        sys.modules[name] = module
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    importing = IMPORTING.set(str(path))
    try:
        spec.loader.exec_module(module)
    except MillstreamError:
        raise
    except (Exception, SystemExit) as error:
        told = "".join(traceback.format_exception_only(error)).rstrip()
        between = "\n" if "\n" in told else " "
        raise JobError(f"{path} cannot be imported:{between}{told}") from error
    finally:
        IMPORTING.reset(importing)
    return module
