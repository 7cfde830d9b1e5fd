"""How to reach Kafka brokers, what their errors mean, and what may be said about settings."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

from millstream.connectors.patience import insist
from millstream.connectors.secrets import resolve
from millstream.engine.errors import ExternalError, JobError, MillstreamError
from millstream.engine.logs import log

if TYPE_CHECKING:
    from confluent_kafka import Consumer, KafkaError, Producer
    from confluent_kafka.admin import AdminClient

Result = TypeVar("Result")

_OURS: Final = {
    "bootstrap.servers": "pass brokers=",
    "transactional.id": "it belongs to the job's store",
    "enable.idempotence": "it is on",
    "acks": "all replicas in sync must have a message",
    "request.required.acks": "all replicas in sync must have a message",
    "isolation.level": "only what is committed counts",
    "logger": "the client's words go to Millstream's log",
    "error_cb": "the client's words go to Millstream's log",
}
_SECRET: Final = re.compile(r"password|secret|token|credential|private|\.key\b|\.pem\b|jaas|oauth", re.IGNORECASE)
_OF_PRODUCERS: Final = (
    "transaction.", "message.", "queue.buffering.", "linger.ms", "batch.", "compression.", "delivery.", "retries",
    "max.in.flight", "sticky.", "partitioner", "request.timeout.ms",
)  # fmt: skip
"""How settings begin that clients which only read do not know."""
_FIRST_ANSWER_SECONDS: Final = 5.0
_REFUSALS: Final = (
    "TOPIC_AUTHORIZATION_FAILED", "GROUP_AUTHORIZATION_FAILED", "CLUSTER_AUTHORIZATION_FAILED",
    "TRANSACTIONAL_ID_AUTHORIZATION_FAILED", "SASL_AUTHENTICATION_FAILED", "_AUTHENTICATION", "MSG_SIZE_TOO_LARGE",
    "INVALID_RECORD", "UNSUPPORTED_VERSION", "INVALID_TRANSACTION_TIMEOUT", "INVALID_CONFIG", "POLICY_VIOLATION",
    "INVALID_REPLICATION_FACTOR", "_INVALID_ARG", "_UNKNOWN_PARTITION",
)  # fmt: skip
"""Errors that waiting does not mend."""


def driver() -> Any:
    """Import confluent_kafka. Raises JobError if it is not installed."""
    try:
        import confluent_kafka
        import confluent_kafka.admin
    except ImportError as error:
        raise JobError(
            f"Kafka needs confluent-kafka, which cannot be loaded ({error}): pip install 'millstream[kafka]'"
        ) from None
    return confluent_kafka


@dataclass(frozen=True, repr=False)
class Brokers:
    """A cluster: where it is, and librdkafka's settings, with placeholders. Neither is ever shown but the addresses."""

    addresses: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.addresses.strip():
            raise JobError("brokers must be 'host:port', several separated by commas; got nothing")
        for name in self.settings:
            if name in _OURS:
                raise JobError(f"settings: {name!r} cannot be set: {_OURS[name]}")

    def __repr__(self) -> str:
        return f"Brokers({self.addresses})"

    def producer(self, ours: Mapping[str, Any]) -> Producer:
        """Make a producer. Raises JobError if a setting makes no sense."""
        given = {"linger.ms": 5, "queue.buffering.max.messages": 1_000_000, **self.settings, **ours}
        return self._make(driver().Producer, {**given, "enable.idempotence": True})

    def consumer(self, ours: Mapping[str, Any]) -> Consumer:
        """Make a consumer of what is committed, which belongs to no group. Raises JobError."""
        common = {
            "group.id": "millstream",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
        }
        return self._make(driver().Consumer, {**self._of_readers(), **common, **ours})

    def admin(self) -> AdminClient:
        """Make a client that asks about topics. Raises JobError if the brokers do not let it in."""
        said: list[KafkaError] = []
        client = self._make(driver().admin.AdminClient, {**self._of_readers(), "error_cb": said.append})
        self._be_let_in(client, said)
        return client

    def _be_let_in(self, client: AdminClient, said: Sequence[KafkaError]) -> None:
        """Wait for a first answer: to a client without the right to it brokers say nothing, and requests time out."""
        refusals = {driver().KafkaError._AUTHENTICATION, driver().KafkaError._SSL}
        answer = client.describe_cluster(request_timeout=_FIRST_ANSWER_SECONDS)
        while not answer.done():
            client.poll(0.02)
            refused = [error for error in said if error.code() in refusals]
            if refused:
                text = self.hide(" ".join(refused[0].str().split()))
                raise JobError(
                    f"the Kafka brokers at {self.addresses} do not let this job in: {text}. See what settings= says of "
                    "security.protocol, sasl.* and ssl.*"
                )

    def hide(self, text: str) -> str:
        """Return a text without what is secret in the settings."""
        for secret in self._secrets():
            text = text.replace(secret, "***")
        return text

    def _of_readers(self) -> dict[str, Any]:
        return {name: value for name, value in self.settings.items() if not name.startswith(_OF_PRODUCERS)}

    def _make(self, kind: Callable[..., Result], settings: Mapping[str, Any]) -> Result:
        resolved = {name: resolve(value) if isinstance(value, str) else value for name, value in settings.items()}
        logger = logging.Logger("millstream.kafka")
        logger.addHandler(_ToOurLog(self))
        try:
            return kind({**resolved, "bootstrap.servers": resolve(self.addresses)}, logger=logger)
        except (driver().KafkaException, ValueError, TypeError) as error:
            # No `from`: its text may quote a secret.
            raise JobError(f"Kafka's client refuses its settings: {self.hide(explained(error))}") from None

    def _secrets(self) -> list[str]:
        found = []
        for name, value in self.settings.items():
            if not isinstance(value, str):
                continue
            try:
                plain = resolve(value)
            except JobError:
                continue
            if plain and (plain != value or _SECRET.search(name)):
                found.append(plain)
        return sorted(found, key=len, reverse=True)


class _ToOurLog(logging.Handler):
    """Passes on what the client says, which otherwise goes to standard error."""

    def __init__(self, brokers: Brokers) -> None:
        super().__init__(logging.WARNING)
        self._brokers = brokers

    def emit(self, record: logging.LogRecord) -> None:
        log.info("the Kafka client says", message=self._brokers.hide(record.getMessage()))


def explained(error: BaseException) -> str:
    """One line of what a client says.

    >>> explained(ValueError("no"))
    'no'
    """
    first: Any = error.args[0] if error.args else None
    text = first.str() if hasattr(first, "str") else str(error)
    name = f"{first.name()}: " if hasattr(first, "name") else ""
    return name + (" ".join(text.split()) or type(error).__name__)


def code_of(error: BaseException) -> str:
    """The name of a client's error code; empty if it has none."""
    first: Any = error.args[0] if error.args else None
    return str(first.name()) if hasattr(first, "name") else ""


def may_pass(error: BaseException) -> bool:
    """Whether the same may succeed later: nothing is wrong with what was asked."""
    return code_of(error) not in _REFUSALS


def of_no_concern(error: KafkaError) -> bool:
    """Whether a reader may go on: librdkafka asks for a group's coordinator although nothing is read as a group."""
    return bool(error.code() == driver().KafkaError.GROUP_AUTHORIZATION_FAILED)


@contextmanager
def blame_brokers(what: str, doing: str, brokers: Brokers, *, advice: str = "") -> Iterator[None]:
    """Turn what confluent_kafka raises into errors that say whose fault it is.

    Raises:
        ExternalError: the brokers are away or busy.
        JobError: they find fault with what is asked; ``advice`` says what to do then.
    """
    kafka = driver()
    try:
        yield
    except MillstreamError:
        raise
    except (kafka.KafkaException, BufferError) as error:
        text = brokers.hide(f"{what}: {doing} failed: {explained(error)}")
        if may_pass(error):
            raise ExternalError(f"{text}. The brokers asked are {brokers.addresses}") from None
        raise JobError(f"{text}. {advice}" if advice else text) from None


def persistently(attempt: Callable[[], Result], what: str, seconds: float, brokers: Brokers) -> Result:
    """As ``insist``, while brokers are away or busy."""
    they_say = (driver().KafkaException, BufferError)
    return insist(
        attempt,
        what,
        seconds,
        may_pass=lambda error: isinstance(error, they_say) and may_pass(error),
        explained=lambda error: brokers.hide(explained(error)),
    )
