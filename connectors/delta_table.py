"""A Delta Lake table: where it is, how it is opened, and whose fault it is when that fails."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from millstream.connectors.durable import with_advice
from millstream.connectors.patience import insist
from millstream.connectors.secrets import resolve
from millstream.engine.errors import ExternalError, JobError, MillstreamError

if TYPE_CHECKING:
    import deltalake

Result = TypeVar("Result")

_SCHEME: Final = re.compile(r"([a-z][a-z0-9+.-]*)://")
_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")
_UNSAFE: Final = ("aws_s3_allow_unsafe_rename", "mount_allow_unsafe_rename", "allow_unsafe_rename")


def driver() -> Any:
    """Import deltalake. Raises JobError if it is not installed."""
    try:
        import deltalake
    except ImportError as error:
        raise JobError(
            f"Delta Lake needs the package deltalake, which cannot be loaded ({error}): pip install 'millstream[delta]'"
        ) from None
    return deltalake


@dataclass(frozen=True)
class Place:
    """Where a table is.

    Attributes:
        uri: a path, or a URI such as ``s3://bucket/table``.
        home: the folder that a relative path starts from.
        options: for the store, with placeholders for secrets.
    """

    uri: str
    home: Path
    options: Mapping[str, str]

    def __post_init__(self) -> None:
        folder = self.folder()
        if folder is not None and "%" in str(folder):
            raise JobError(f"delta_sink(): deltalake takes the % in {str(folder)!r} for an escape: use another folder")

    def folder(self) -> Path | None:
        """Return the whole path of a local table; None if it is elsewhere."""
        scheme = _SCHEME.match(self.uri)
        if scheme is None:
            return (self.home / self.uri).resolve()
        return Path(self.uri.removeprefix("file://")).resolve() if scheme[1] == "file" else None

    def location(self) -> str:
        """Return what deltalake calls it."""
        folder = self.folder()
        return self.uri if folder is None else str(folder)

    def settings(self) -> dict[str, str]:
        """Return the options with their secrets.

        Raises:
            JobError: a secret is not there, or an option gives up what commits rely on.
        """
        options = {key: resolve(value) for key, value in self.options.items()}
        for key, value in {**os.environ, **options}.items():
            if key.lower() in _UNSAFE and value.lower() in ("1", "true", "yes", "on"):
                raise JobError(
                    f"{key} lets one commit overwrite another, so that rows would be lost: take it away; all "
                    "S3-compatible stores with conditional writes do without"
                )
        return options

    def open(self) -> deltalake.DeltaTable | None:
        """Return the table as it is now; None if there is none."""
        found = driver()
        try:
            return found.DeltaTable(self.location(), storage_options=self.settings())  # type: ignore[no-any-return]
        except found.exceptions.TableNotFoundError:
            return None


def explained(error: BaseException) -> str:
    """One line of what deltalake says, without colours and stack traces."""
    lines = _COLOUR.sub("", str(error)).splitlines()
    first = next((n for n, line in enumerate(lines) if re.match(r"\s+\d+: ", line)), len(lines))
    return " ".join(" ".join(lines[:first]).replace("↳", "").split())


@contextmanager
def blame_table(what: str, doing: str, *, advice: str = "") -> Iterator[None]:
    """Turn what deltalake raises into errors that say whose fault it is.

    Raises:
        ExternalError: the store is away, or others write all the time.
        JobError: the table does not take what is asked; ``advice`` says what to do then.
    """
    faults = driver().exceptions
    try:
        yield
    except MillstreamError:
        raise
    except (faults.SchemaMismatchError, faults.DeltaProtocolError, faults.TableNotFoundError, ValueError) as error:
        text = f"{what}: {doing} failed: {explained(error)}"
        raise JobError(f"{text}. {advice}" if advice else text) from error
    except (faults.DeltaError, OSError) as error:
        raise ExternalError(with_advice(f"{what}: {doing} failed: {explained(error)}")) from error


def persistently(attempt: Callable[[], Result], what: str, seconds: float) -> Result:
    """As ``insist``, while the store is away or others change the table."""
    passing = (driver().exceptions.CommitFailedError, OSError)
    return insist(attempt, what, seconds, may_pass=lambda error: isinstance(error, passing), explained=explained)
