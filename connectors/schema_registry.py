"""A schema registry: which schema stands behind the id in a message, and under which id a schema is registered."""

from __future__ import annotations

import base64
import importlib
import importlib.util
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import urlsplit, urlunsplit

from millstream.connectors.secrets import resolve
from millstream.engine.errors import ExternalError, JobError

if TYPE_CHECKING:
    from confluent_kafka.schema_registry import SchemaRegistryClient

Result = TypeVar("Result")

_PACKAGES: Final = "pip install 'millstream[kafka-schemas]'"
_PASSING: Final = frozenset({408, 429, 500, 502, 503, 504})
"""HTTP statuses after which the same may succeed."""
_UNKNOWN: Final = frozenset({40401, 40402, 40403})
"""Error codes of registries: there is no such subject, version, schema."""
_TLS: Final = (
    "See 'ssl.ca.location', the file with the authority that signed its certificate, and "
    "'ssl.certificate.location' and 'ssl.key.location' if it wants to see one of the job's"
)
_DEFAULTS: Final = {"timeout": 10, "max.retries": 2, "retries.wait.ms": 200, "retries.max.wait.ms": 2000}


@dataclass(frozen=True, slots=True)
class Registered:
    """A schema as a registry has it.

    Attributes:
        id: the number that messages carry.
        kind: "AVRO", "PROTOBUF" or "JSON".
        text: the schema; of Protobuf a serialized file descriptor in base64, where the registry can make one.
        references: from the name by which it is referred to, to the schemas it is made of; those they need come first.
    """

    id: int
    kind: str
    text: str
    references: Mapping[str, Registered] = field(default_factory=dict)


class UnknownSchema(Exception):
    """The registry has no such schema, subject or version; the text says what it said."""


@dataclass(frozen=True, repr=False)
class Registry:
    """Where a registry is and how to get in: settings of Confluent's client, with placeholders, never shown."""

    settings: Mapping[str, Any]
    _lock: threading.Lock = field(default_factory=threading.Lock, compare=False)
    _known: dict[tuple[int, bool], Registered] = field(default_factory=dict, compare=False)

    def __repr__(self) -> str:
        return f"Registry({self.address})"

    @property
    def address(self) -> str:
        """Its URLs, without user and password."""
        return ",".join(map(_without_user, str(self.settings["url"]).split(",")))

    def get(self, id_: int, *, serialized: bool = False) -> Registered:
        """Return the schema of an id; ``serialized``: as a file descriptor, for Protobuf.

        Raises:
            UnknownSchema: there is none.
            ExternalError: the registry is away.
            JobError: it lets nobody in, or is no registry.
        """
        with self._lock:
            found = self._known.get((id_, serialized))
        if found is None:
            format_ = "serialized" if serialized else None
            schema = self._ask(f"schema {id_}", lambda client: client.get_schema(id_, fmt=format_))
            found = self._with_references(id_, schema, format_)
            with self._lock:
                self._known[id_, serialized] = found
        return found

    def latest(self, subject: str, *, serialized: bool = False) -> Registered:
        """Return the latest version of a subject. Raises as ``get``."""
        format_ = "serialized" if serialized else None
        found = self._ask(f"subject {subject!r}", lambda client: client.get_latest_version(subject, fmt=format_))
        return self._with_references(found.schema_id, found.schema, format_)

    def register(self, subject: str, kind: str, text: str) -> int:
        """Register a schema, if it is not yet, and return its id. Raises as ``get``, and JobError if it is refused."""
        schema = _schema(kind, text)
        return int(
            self._ask(f"a schema for subject {subject!r}", lambda client: client.register_schema(subject, schema))
        )

    def look_up(self, subject: str, kind: str, text: str) -> int:
        """Return the id of a schema that is registered under a subject. Raises as ``get``."""
        schema = _schema(kind, text)
        found = self._ask(
            f"a schema of subject {subject!r}", lambda client: client.lookup_schema(subject, schema, True)
        )
        return int(found.schema_id)

    def hide(self, text: str) -> str:
        """Return a text without what is secret in the settings."""
        for secret in self._secrets():
            text = text.replace(secret, "***")
        return text

    def _with_references(self, id_: int, schema: Any, format_: str | None) -> Registered:
        referred: dict[str, Registered] = {}
        for reference in schema.references or ():
            found = self._ask(
                f"subject {reference.subject!r}, version {reference.version}",
                lambda client, r=reference: client.get_version(r.subject, r.version, fmt=format_),  # type: ignore[misc]
            )
            one = self._with_references(found.schema_id, found.schema, format_)
            referred |= {**one.references, reference.name: one}
        return Registered(id_, schema.schema_type or "AVRO", schema.schema_str, referred)

    def _ask(self, what: str, question: Callable[[SchemaRegistryClient], Result]) -> Result:
        from confluent_kafka.schema_registry.error import OAuthTokenError, SchemaRegistryError

        asking = f"schema registry {self.address}: asking for {what} failed"
        try:
            # No connection is kept: there is seldom more than one question.
            with self._client() as client:
                return question(client)
        except SchemaRegistryError as error:
            said = self.hide(f"{error.http_status_code} {error.error_message}")
            if error.error_code in _UNKNOWN:
                raise UnknownSchema(said) from None
            if error.http_status_code in _PASSING:
                raise ExternalError(f"{asking}: {said}. It is tried again when the job restarts") from None
            raise JobError(f"{asking}: {said}. {_advice(error.http_status_code)}") from None
        except (*_transport_errors(), OAuthTokenError) as error:
            said = self.hide(f"{type(error).__name__}: {error}")
            if _is_refusal(error):
                raise JobError(f"{asking}: {said}. {_TLS}") from None
            raise ExternalError(f"{asking}: {said}. See that it runs and can be reached") from None
        except ValueError as error:
            said = self.hide(f"what it answers is no JSON: {error}")
            raise JobError(f"{asking}: {said}. {_advice(404)}") from None

    def _client(self) -> SchemaRegistryClient:
        kind = registry_driver()
        resolved = {key: resolve(value) if isinstance(value, str) else value for key, value in self.settings.items()}
        try:
            return kind({**_DEFAULTS, **resolved})
        except (ValueError, TypeError, OSError) as error:
            # No `from`: its text may quote a secret.
            raise JobError(f"the schema registry's client refuses its settings: {self.hide(str(error))}") from None

    def _secrets(self) -> list[str]:
        found = {"".join(urlsplit(url.strip()).netloc.rpartition("@")[:1]) for url in self._url().split(",")}
        for key, value in self.settings.items():
            if isinstance(value, str) and key != "url":
                plain = _resolved(value)
                secret = plain != value or any(word in key for word in ("user.info", "password", "secret", "token"))
                found |= {plain, *plain.split(":", 1)[1:]} if secret else set()
        found |= {base64.b64encode(secret.encode()).decode() for secret in found}  # as it is sent
        return sorted(filter(None, found), key=len, reverse=True)

    def _url(self) -> str:
        return _resolved(str(self.settings["url"]))


def registry_of(given: str | Mapping[str, Any]) -> Registry:
    """Return a registry as users name it: a URL, or settings of Confluent's client with a "url".

    Raises:
        JobError: it has no URL, or the client library is not there.

    >>> registry_of({"url": "https://me:secret@registry.example", "basic.auth.user.info": "${env:REGISTRY}"})
    Registry(https://registry.example)
    """
    settings = {"url": given} if isinstance(given, str) else dict(given)
    url = settings.get("url")
    if not isinstance(url, str) or not url.startswith(("http://", "https://", "${")):
        raise JobError(
            "registry= is the URL of a schema registry, as in 'https://registry.example:8081', or a mapping with a "
            "'url' and other settings of its client"
        )
    registry_driver()
    return Registry(settings)


def registry_driver() -> Any:
    """Import the client. Raises JobError if it is not installed."""
    try:
        from confluent_kafka.schema_registry import SchemaRegistryClient
    except ImportError as error:
        raise JobError(f"a schema registry needs more packages ({error}): {_PACKAGES}") from None
    return SchemaRegistryClient


def _transport_errors() -> tuple[type[BaseException], ...]:
    """What the client's HTTP library raises; which library that is depends on the client's version."""
    for library in ("httpx2", "httpx"):
        if importlib.util.find_spec(library) is not None:
            return (OSError, importlib.import_module(library).TransportError)
    return (OSError,)


def _is_refusal(error: BaseException) -> bool:
    """Whether one side finds fault with the other's certificate, or it is no TLS at all: that does not pass."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError):
            return not isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError | ssl.SSLSyscallError)
        cause = cause.__cause__ or cause.__context__
    return False


def _schema(kind: str, text: str) -> Any:
    from confluent_kafka.schema_registry import Schema

    return Schema(text, kind)


def _advice(status: int) -> str:
    if status in (401, 403):
        return "Give it rights, or other credentials: 'basic.auth.user.info', as USER:PASSWORD"
    if status == 409:
        return "The schema is not compatible with earlier versions: change it, or the subject's compatibility level"
    if status == 404:
        return "See whether the URL is that of a schema registry"
    return "The registry finds fault with what is asked"


def _resolved(text: str) -> str:
    try:
        return resolve(text)
    except JobError:
        return text


def _without_user(url: str) -> str:
    parts = urlsplit(url.strip())
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
