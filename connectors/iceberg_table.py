"""An Iceberg table: how its catalog is asked for it, and whose fault it is when that fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import urlsplit

from millstream.connectors.durable import with_advice
from millstream.connectors.patience import insist
from millstream.connectors.secrets import resolve
from millstream.engine.errors import ExternalError, JobError, MillstreamError

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from pyiceberg.table import Table

Result = TypeVar("Result")

_RETRIES: Final = "commit.retry.num-retries"


def driver() -> Any:
    """Import pyiceberg's exceptions. Raises JobError if it is not installed."""
    try:
        import pyiceberg.exceptions
    except ImportError as error:
        raise JobError(
            f"Iceberg needs the package pyiceberg, which cannot be loaded ({error}): pip install 'millstream[iceberg]'"
        ) from None
    return pyiceberg.exceptions


@dataclass(frozen=True)
class Place:
    """A table of a catalog.

    Attributes:
        catalog: the name of one that pyiceberg is configured for, or "".
        settings: what replaces or completes that configuration, with placeholders for secrets.
        table: its name, with its namespace before the last dot.
    """

    catalog: str
    settings: Mapping[str, str]
    table: str

    def shown(self) -> str:
        """Return the catalog without secrets."""
        uri = urlsplit(self.settings.get("uri", ""))
        host = uri.netloc.rpartition("@")[2]
        parts = (self.catalog, self.settings.get("type", ""), f"{host}{uri.path}", self.settings.get("warehouse", ""))
        return " ".join(filter(None, parts))

    def connect(self) -> Catalog:
        """Return the catalog. Raises JobError if a secret or the configuration is not there."""
        driver()
        from pyiceberg.catalog import load_catalog

        settings = {key: resolve(value) for key, value in self.settings.items()}
        return load_catalog(self.catalog or "default", **settings)

    def namespace(self) -> str:
        """Return what stands before the last dot."""
        return self.table.rpartition(".")[0]


def ours_alone(table: Table) -> Table:
    """Return a table of which a commit fails if anybody has added a snapshot since it was read.

    By itself pyiceberg adds it after the snapshots of others then, without asking anybody; what was decided by reading
    the marker would not hold any more. The setting is changed in this copy alone.
    """
    table.metadata.properties[_RETRIES] = "0"
    return table


def _passing() -> tuple[type[Exception], ...]:
    faults = driver()
    kinds = [
        faults.CommitFailedException,
        faults.CommitStateUnknownException,
        faults.ServiceUnavailableError,
        faults.ServerError,
        faults.TooManyRequestsError,
        faults.WaitingForLockException,
        OSError,
    ]
    try:
        import sqlalchemy.exc
    except ImportError:
        pass  # only catalogs in SQL databases need it
    else:
        kinds += [sqlalchemy.exc.OperationalError, sqlalchemy.exc.InterfaceError]
    return tuple(kinds)


def _explained(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def blame_catalog(what: str, doing: str, *, advice: str = "") -> Iterator[None]:
    """Turn what pyiceberg raises into errors that say whose fault it is.

    Raises:
        ExternalError: the catalog or the store is away, or others write all the time.
        JobError: they find fault with what is asked; ``advice`` says what to do then.
    """
    passing = _passing()
    try:
        yield
    except MillstreamError:
        raise
    except passing as error:
        raise ExternalError(with_advice(f"{what}: {doing} failed: {_explained(error)}")) from error
    except Exception as error:
        refused = isinstance(error, ValueError | NotImplementedError)
        if not refused and not type(error).__module__.startswith(("pyiceberg", "sqlalchemy")):
            raise
        text = f"{what}: {doing} failed: {_explained(error)}"
        raise JobError(f"{text}. {advice}" if advice else text) from error


def persistently(attempt: Callable[[], Result], what: str, seconds: float) -> Result:
    """As ``insist``, while catalog or store are away, or others change the table."""
    passing = _passing()
    return insist(attempt, what, seconds, may_pass=lambda error: isinstance(error, passing), explained=_explained)
