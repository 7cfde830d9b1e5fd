"""Objects in S3 and what speaks its protocol, to be read like files that must not change.

An object is told by its size and the second of its last change, as the bucket lists them, and while it is read by its
ETag too: every piece that is read is followed by the question whether the object is still the same one, since S3 may
have another one under the same name at any time.
"""

from __future__ import annotations

import datetime as dt
import io
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Final, NoReturn

from millstream.connectors.reading_plan import FileChanged
from millstream.connectors.secrets import resolve
from millstream.engine.errors import ExternalError, JobError

if TYPE_CHECKING:
    from pyarrow import fs

SCHEME: Final = "s3://"

_OPTIONS: Final = {
    "aws_access_key_id": "access_key",
    "aws_secret_access_key": "secret_key",
    "aws_session_token": "session_token",
    "aws_region": "region",
    "aws_default_region": "region",
    "aws_virtual_hosted_style_request": "force_virtual_addressing",
    "aws_skip_signature": "anonymous",
}
_TRUE: Final = ("1", "true", "yes", "on")
_FAULT: Final = re.compile(r"AWS Error ([A-Z_]+) during (\w+)")
_RIGHTS: Final = frozenset(
    {"ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "INVALID_CLIENT_TOKEN_ID"}
    | {"MISSING_AUTHENTICATION_TOKEN", "UNRECOGNIZED_CLIENT", "INVALID_SIGNATURE"}
)


@dataclass(frozen=True, eq=False)
class ObjectStore:
    """How to reach a store; nothing is connected before it is used.

    Args:
        options: named as for ``delta_sink``, ``AWS_ENDPOINT_URL`` and so on, with placeholders for secrets. What is not
            given comes from where AWS's own tools take it.

    Raises:
        JobError: there is no such option.
    """

    options: Mapping[str, str] = field(repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _connected: list[fs.S3FileSystem] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        known = (*_OPTIONS, "aws_endpoint_url", "aws_allow_http")
        for name in self.options:
            if name.lower() not in known:
                raise JobError(
                    f"files(options=...): {name!r} is none of the options of an S3 store, which are "
                    f"{', '.join(sorted(option.upper() for option in known))}"
                )

    def filesystem(self) -> fs.S3FileSystem:
        """Return the client, made with its secrets the first time. Raises JobError if one of them is not there."""
        with self._lock:
            if not self._connected:
                self._connected.append(self._connect())
            return self._connected[0]

    def _connect(self) -> fs.S3FileSystem:
        try:
            from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem
        except ImportError as error:
            raise JobError(f"this pyarrow was built without S3 ({error}): install the one of PyPI") from None
        options = {name.lower(): resolve(value) for name, value in self.options.items()}
        settings: dict[str, Any] = {_OPTIONS[name]: value for name, value in options.items() if name in _OPTIONS}
        for name in ("force_virtual_addressing", "anonymous"):
            if name in settings:
                settings[name] = settings[name].lower() in _TRUE
        endpoint = options.get("aws_endpoint_url")
        if endpoint is not None:
            scheme, _, host = endpoint.rpartition("://")
            if scheme == "http" and options.get("aws_allow_http", "").lower() not in _TRUE:
                raise JobError(
                    f"files(options=...): {endpoint} is not encrypted: say so with 'AWS_ALLOW_HTTP': 'true', or take "
                    "https"
                )
            settings |= {"scheme": scheme or "https", "endpoint_override": host.rstrip("/")}
        retries = AwsStandardS3RetryStrategy(max_attempts=3)
        return S3FileSystem(**settings, connect_timeout=5, request_timeout=30, retry_strategy=retries)


@dataclass(frozen=True)
class ObjectPath:
    """An object as it was when it was found; used like a ``Path``.

    Attributes:
        key: bucket and name, as in ``bucket/orders/1.csv``.
        modified: the second of its last change, since 1970; None: whatever is there.
    """

    store: ObjectStore
    key: str
    modified: int | None = None

    def __str__(self) -> str:
        return SCHEME + self.key

    @property
    def suffix(self) -> str:
        """As of a path."""
        return PurePosixPath(self.key).suffix

    @property
    def name(self) -> str:
        """The last part of its name."""
        return PurePosixPath(self.key).name

    def open(self) -> ObjectFile:
        """Open it for reading.

        Raises:
            FileChanged: it is another one now, or gone.
            ExternalError: the store is away.
            JobError: it may not be read.
        """
        return ObjectFile(self)

    def size(self) -> int:
        """Return how many bytes it has now; raises as ``open``."""
        with self.open() as file:
            return file.size


@dataclass(frozen=True, slots=True)
class _Version:
    etag: bytes
    modified: int
    size: int


class ObjectFile(io.RawIOBase):
    """An object that is read; each piece comes from the object that was opened, or FileChanged is raised."""

    def __init__(self, path: ObjectPath) -> None:
        super().__init__()
        self._path = path
        self._at = 0
        with blame_store(str(path)):
            self._file, self._version = self._look()
        if path.modified not in (None, self._version.modified):
            raise FileChanged(
                f"it was last changed at {_time(path.modified or 0)} when it was found, and at "
                f"{_time(self._version.modified)} now"
            )

    @property
    def size(self) -> int:
        """Of the object, in bytes."""
        return self._version.size

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Return where it is read next."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to an offset."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Read as much as fits; raises as ``ObjectPath.open``."""
        view = memoryview(buffer).cast("B")
        wanted = max(0, min(len(view), self.size - self._at))
        if not wanted:
            return 0
        with blame_store(str(self._path)):
            try:
                data = self._file.read_at(wanted, self._at)
            except OSError:
                self._look()[0].close()  # which says if it is gone
                raise
            file, version = self._look()
            file.close()
        if version != self._version or len(data) != wanted:
            raise FileChanged("it was replaced while it was read")
        view[:wanted] = data
        self._at += wanted
        return wanted

    def close(self) -> None:
        """Let go of it."""
        if not self.closed and hasattr(self, "_version"):
            self._file.close()
        super().close()

    def _look(self) -> tuple[Any, _Version]:
        """Open what is there now, for which the store is asked once."""
        file = self._path.store.filesystem().open_input_file(self._path.key)
        said = file.metadata()
        changed = dt.datetime.fromisoformat(said.get("Last-Modified", b"1970-01-01T00:00:00Z").decode())
        return file, _Version(said.get("ETag", b""), int(changed.timestamp()), file.size())


@contextmanager
def blame_store(what: str) -> Iterator[None]:
    """Turn what pyarrow raises about a store into errors that say whose fault it is.

    Raises:
        FileChanged: an object is gone.
        ExternalError: the store is away or in trouble.
        JobError: there is no such bucket, or no right to it.
    """
    try:
        yield
    except FileNotFoundError:
        raise FileChanged("it is gone") from None
    except OSError as error:
        _refuse(what, error)


def _refuse(what: str, error: OSError) -> NoReturn:
    # What the store says in full may be long, and quote the request.
    found = _FAULT.search(str(error))
    fault, doing = (found[1], found[2]) if found else (" ".join(str(error).split())[:300], "reading")
    if fault == "NO_SUCH_BUCKET":
        bucket = what.removeprefix(SCHEME).partition("/")[0]
        raise JobError(
            f"{what}: there is no bucket {bucket!r} in this store: see the name, and AWS_ENDPOINT_URL and AWS_REGION "
            "in options="
        ) from None
    if fault in _RIGHTS:
        raise JobError(
            f"{what}: the store does not allow it ({fault} during {doing}): a source needs s3:ListBucket on the bucket "
            "and s3:GetObject on its objects; see AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in options="
        ) from None
    raise ExternalError(
        f"{what}: the store cannot be reached, or is in trouble ({fault} during {doing}); the job goes on from its "
        "last checkpoint"
    ) from None


def _time(seconds: int) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
