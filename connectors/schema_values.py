"""Avro and Protobuf as users ask for them: with a schema registry, or with one schema."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from millstream.connectors.avro_messages import avro_driver
from millstream.connectors.protobuf_types import protobuf_driver
from millstream.connectors.schema_registry import Registry, registry_of
from millstream.engine.errors import JobError


@dataclass(frozen=True, slots=True, repr=False)
class SchemaValues:
    """What values or keys are; made by ``avro_values`` and ``protobuf_values``.

    Attributes:
        kind: "avro" or "protobuf".
        registry: where schemas are; None: nothing is preceded by an id.
        message: the schema; None: nothing is said of it.
        subject: what the registry calls it; None: by the topic.
        auto_register: a sink registers it.
    """

    kind: str
    registry: Registry | None
    message: Any
    subject: str | None
    auto_register: bool

    def __repr__(self) -> str:
        return f"{self.kind}_values({self.registry or 'message=...'})"

    def subject_of(self, topic: str, part: Literal["key", "value"]) -> str:
        """What the registry calls the schema of a topic's keys or values."""
        return self.subject or f"{topic}-{part}"


def avro_values(
    registry: str | Mapping[str, Any] | None = None,
    *,
    message: str | Mapping[str, Any] | None = None,
    subject: str | None = None,
    auto_register: bool = True,
) -> SchemaValues:
    """Say that messages' values, or keys, are Avro; needs ``pip install 'millstream[kafka-schemas]'``.

    Args:
        registry: the URL of a schema registry, in which each message names its schema by an id, or settings for its
            client, ``{"url": "https://...", "basic.auth.user.info": "${env:REGISTRY_LOGIN}"}``. None: messages are
            not preceded by an id.
        message: a schema, as a dict, JSON text or a name such as "long": what a sink writes and a source reads as.
            None: a sink makes one of its columns; a source has the latest version of the subject, or takes fields as
            they were written where its ``schema=`` names the columns.
        subject: what the registry calls the schema; None: ``TOPIC-value``, or ``TOPIC-key``, of the first topic.
        auto_register: a sink registers its schema when the job starts. Otherwise it must be there; without
            ``message`` it is the subject's latest version.

    Raises:
        JobError: an argument makes no sense, or a library is not there.

    >>> avro_values("https://registry.example")
    avro_values(Registry(https://registry.example))
    """
    avro_driver()
    return _values("avro", registry, message, subject, auto_register)


def protobuf_values(
    registry: str | Mapping[str, Any] | None = None,
    *,
    message: Any = None,
    subject: str | None = None,
    auto_register: bool = True,
) -> SchemaValues:
    """Say that messages' values, or keys, are Protobuf; needs ``pip install 'millstream[kafka-schemas]'``.

    Args:
        registry, subject, auto_register: as for ``avro_values``.
        message: a generated class or a descriptor; None: as for ``avro_values``.

    Raises:
        JobError: an argument makes no sense, or a library is not there.

    >>> from google.protobuf.duration_pb2 import Duration
    >>> protobuf_values(message=Duration)
    protobuf_values(message=...)
    """
    protobuf_driver()
    return _values("protobuf", registry, message, subject, auto_register)


def _values(
    kind: str, registry: str | Mapping[str, Any] | None, message: Any, subject: str | None, auto_register: bool
) -> SchemaValues:
    if registry is None and (subject is not None or not auto_register):
        raise JobError(f"{kind}_values(): subject and auto_register say how to use a registry, and there is none")
    return SchemaValues(kind, None if registry is None else registry_of(registry), message, subject, auto_register)
