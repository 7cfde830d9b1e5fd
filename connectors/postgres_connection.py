"""How to reach a PostgreSQL server, what its errors mean, and what may be said about it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from millstream.connectors.patience import insist
from millstream.connectors.secrets import resolve
from millstream.engine.errors import ExternalError, JobError
from millstream.engine.store.columns import quote

if TYPE_CHECKING:
    import psycopg

Result = TypeVar("Result")

_PLACEHOLDER: Final = re.compile(r"\$\{[^}]*\}")
_PASSING: Final = ("08", "53", "57", "58", "40", "55P03", "55006", "25P03", "25006")
"""SQLSTATE classes and codes of what may pass: connections, resources, shutdowns, disks, conflicts, locks, standbys."""

_SESSION: Final = {
    "client_encoding": "utf8",
    "connect_timeout": "10",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "60000",
}


def driver() -> Any:
    """Import psycopg. Raises JobError if it is not installed."""
    try:
        import psycopg
    except ImportError as error:
        raise JobError(
            f"PostgreSQL needs psycopg 3, which cannot be loaded ({error}): pip install 'millstream[postgres]'"
        ) from None
    return psycopg


@dataclass(frozen=True, repr=False)
class Server:
    """A database, by what libpq takes: ``postgresql://user@host/name`` or ``host=… dbname=…``, with placeholders."""

    dsn: str

    def __post_init__(self) -> None:
        self.shown()

    def __repr__(self) -> str:
        return f"Server({self.shown()})"

    def shown(self) -> str:
        """Return the host and the database, with placeholders as they were written; never a user or a password.

        >>> Server("postgresql://me:${env:PW}@db.example:5433/shop").shown()
        'db.example:5433/shop'
        """
        if _PLACEHOLDER.fullmatch(self.dsn.strip()):
            return self.dsn.strip()
        found = _PLACEHOLDER.findall(self.dsn)
        numbered = iter(range(len(found)))
        plain = _PLACEHOLDER.sub(lambda _: f"placeholder{next(numbered)}x", self.dsn)
        parts = _parsed(plain)
        host = parts.get("host") or parts.get("hostaddr") or parts.get("service") or "local"
        port = f":{parts['port']}" if parts.get("port") else ""
        text = f"{host}{port}/{parts.get('dbname') or parts.get('user') or ''}"
        for number, placeholder in enumerate(found):
            text = text.replace(f"placeholder{number}x", placeholder)
        return text

    def connect(self, application: str, *, autocommit: bool = False, **parameters: str) -> psycopg.Connection[Any]:
        """Open a connection.

        Raises:
            JobError: a placeholder has no value, or the dsn makes no sense.
            psycopg.Error: the server cannot be reached, or refuses.
        """
        psycopg = driver()
        given = _parsed(resolve(self.dsn))
        options = {**_SESSION, **given, "application_name": application[:63], **parameters}
        connection = psycopg.connect(**options, autocommit=autocommit, prepare_threshold=None)
        connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
        connection.add_notice_handler(lambda _: None)
        return connection  # type: ignore[no-any-return]


def _parsed(dsn: str) -> dict[str, Any]:
    psycopg = driver()
    from psycopg.conninfo import conninfo_to_dict

    try:
        return dict(conninfo_to_dict(dsn))
    except psycopg.ProgrammingError:
        # Its text quotes from the dsn, and so perhaps the password.
        raise JobError(
            "the dsn of a PostgreSQL server cannot be read: write 'postgresql://user@host:5432/database' or "
            "'host=... dbname=... user=...', and its password as ${env:NAME} or ${file:/path}"
        ) from None


def quoted_table(table: str) -> str:
    """Return a table's name as SQL: everything before the first dot is its schema.

    >>> quoted_table("shop.orders"), quoted_table("orders")
    ('"shop"."orders"', '"orders"')
    """
    return ".".join(quote(part) for part in table.split(".", 1))


def may_pass(error: Exception) -> bool:
    """Whether the same may succeed later: the server is away or busy, and does not find fault with what was asked."""
    psycopg = driver()
    state = getattr(error, "sqlstate", None)
    if state is None:
        return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError | psycopg.InternalError)
    return str(state).startswith(_PASSING)


def explained(error: Exception) -> str:
    """One line of what the server says."""
    detail = getattr(getattr(error, "diag", None), "message_detail", None)
    text = " ".join(str(error).split())
    return text if not detail or detail in text else f"{text} ({detail})"


@contextmanager
def blame_server(what: str, doing: str, *, advice: str = "") -> Iterator[None]:
    """Turn what psycopg raises into errors that say whose fault it is.

    Raises:
        ExternalError: the server is away or busy.
        JobError: it finds fault with what is asked; ``advice`` says what to do then.
    """
    psycopg = driver()
    try:
        yield
    except psycopg.Error as error:
        text = f"{what}: {doing} failed: {explained(error)}"
        if may_pass(error):
            raise ExternalError(text) from error
        raise JobError(f"{text}. {advice}" if advice else text) from error


class Absence:
    """How long a server may be away from a reader that must not wait for it: it asks again later.

    Args:
        patience: in seconds.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._since: float | None = None
        self._not_before = 0.0

    @property
    def lasts(self) -> bool:
        """Whether it is too early to ask again."""
        return time.monotonic() < self._not_before

    def wait(self, seconds: float) -> None:
        """Ask again after so long; the server is there."""
        self._since, self._not_before = None, time.monotonic() + seconds

    def note(self, error: Exception) -> None:
        """Take note that the server could not be asked; raise the error if it has been so for too long, or will be."""
        now = time.monotonic()
        self._since = self._since or now
        if not may_pass(error) or now - self._since >= self._patience:
            raise error
        self._not_before = now + min(0.25, self._patience / 10)


def persistently(attempt: Callable[[], Result], what: str, seconds: float) -> Result:
    """As ``insist``, while the server is away or busy."""
    server_says = driver().Error
    return insist(
        attempt,
        what,
        seconds,
        may_pass=lambda error: isinstance(error, server_says) and may_pass(error),
        explained=explained,
    )
