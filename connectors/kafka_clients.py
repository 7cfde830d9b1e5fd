"""The Kafka clients of one source: which settings they have, and where they say what goes wrong."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from millstream.connectors.secrets import resolve
from millstream.engine.errors import JobError
from millstream.engine.logs import log

OURS: Final = {
    "bootstrap.servers": "pass brokers=",
    "group.id": "pass group=",
    "auto.offset.reset": "pass start= and on_lost=",
    "enable.auto.commit": "offsets are kept in the checkpoint",
    "enable.auto.offset.store": "offsets are kept in the checkpoint",
    "enable.partition.eof": "the source needs to know where a partition ends",
}
"""Settings that are not free, and what stands for them."""
_OF_CONNECTIONS: Final = (
    "security.",
    "sasl.",
    "ssl.",
    "enable.ssl",
    "enable.sasl",
    "https.",
    "oauth_cb",
    "client.",
    "broker.",
    "socket.",
    "reconnect.",
    "metadata.",
    "debug",
)
"""How settings begin that clients which read nothing need, too."""


class Clients:
    """Makes clients.

    Args:
        brokers: ``host:port``, separated by commas.
        group: the group whose name consumers bear. They do not join it.
        settings: librdkafka's, with placeholders for secrets; those in ``OURS`` are refused before.
        source: what errors and logs call the source.
    """

    def __init__(self, brokers: str, group: str, settings: Mapping[str, Any], source: str) -> None:
        self._brokers = brokers
        self._group = group
        self._settings = dict(settings)
        self._source = source
        self._logger = _logger(source)
        self.last_error: str | None = None

    @property
    def read_committed(self) -> bool:
        """Whether messages of open and aborted transactions are left out."""
        return bool(self._settings.get("isolation.level", "read_committed") == "read_committed")

    def consumer(self) -> Consumer:
        """Return a consumer with nothing assigned. Raises JobError if a setting makes no sense."""
        ours = {
            "group.id": self._group,
            "auto.offset.reset": "error",
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "enable.partition.eof": True,
        }
        try:
            return Consumer({"isolation.level": "read_committed", **self._common(self._settings), **ours})
        except (KafkaException, ValueError, TypeError) as error:
            raise self._refused(error) from error

    def admin(self) -> AdminClient:
        """Return a client that asks the cluster things. Raises JobError if a setting makes no sense."""
        settings = {key: value for key, value in self._settings.items() if key.startswith(_OF_CONNECTIONS)}
        try:
            return AdminClient(self._common(settings))
        except (KafkaException, ValueError, TypeError) as error:
            raise self._refused(error) from error

    def _common(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        settings = {key: resolve(value) if isinstance(value, str) else value for key, value in settings.items()}
        given = {"bootstrap.servers": self._brokers, "error_cb": self._hear, "logger": self._logger}
        return {**settings, **given}

    def _hear(self, error: KafkaError) -> None:
        self.last_error = error.str()

    def _refused(self, error: Exception) -> JobError:
        return JobError(f"Kafka source {self._source!r}: the client refuses its settings: {reason(error)}")


def reason(error: Exception) -> str:
    """What a client's error says."""
    first = error.args[0] if error.args else None
    return first.str() if isinstance(first, KafkaError) else str(error) or type(error).__name__


class _ToOurLog(logging.Handler):
    """Passes on what the client logs, which otherwise goes to standard error."""

    def __init__(self, source: str) -> None:
        super().__init__(logging.INFO)
        self._source = source

    def emit(self, record: logging.LogRecord) -> None:
        say = log.warning if record.levelno >= logging.WARNING else log.info
        say("the Kafka client says", source=self._source, message=record.getMessage())


def _logger(source: str) -> logging.Logger:
    logger = logging.Logger("millstream.kafka")
    logger.addHandler(_ToOurLog(source))
    return logger
