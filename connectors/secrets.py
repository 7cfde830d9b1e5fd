"""Placeholders for what must not be written down: ``${env:NAME}`` and ``${file:/path}``."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from millstream.engine.errors import JobError

_PLACEHOLDER: Final = re.compile(r"\$\{(env|file):([^}]*)\}")


def resolve(text: str) -> str:
    """Return a text with its placeholders filled in.

    Raises:
        JobError: a variable or a file is not there.
    """
    return _PLACEHOLDER.sub(lambda match: _value(match[1], match[2]), text)


def _value(kind: str, name: str) -> str:
    if kind == "env":
        value = os.environ.get(name)
        if value is None:
            raise JobError(f"${{env:{name}}}: the environment variable {name} is not set")
        return value
    try:
        return Path(name).read_text().rstrip("\n")
    except OSError as error:
        raise JobError(f"${{file:{name}}}: {error.strerror}") from None
