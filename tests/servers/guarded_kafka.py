"""A Kafka broker that lets in only who has a password, over TLS, and lets them do only what they have a right to."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from servers.kafka import Broker

ADMIN, ADMIN_PASSWORD = "admin", "admins-secret"

_SCRAM = "SCRAM-SHA-512"
_PROPERTIES = {
    "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,SECURE:SASL_SSL",
    "inter.broker.listener.name": "SECURE",
    "sasl.enabled.mechanisms": _SCRAM,
    "sasl.mechanism.inter.broker.protocol": _SCRAM,
    "ssl.keystore.type": "PEM",
    "ssl.truststore.type": "PEM",
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    # The controller's own connection has no name.
    "super.users": f"User:{ADMIN};User:ANONYMOUS",
}


class GuardedBroker(Broker):
    """SASL_SSL with SCRAM-SHA-512 and access control lists; its clients here are the administrator's.

    Attributes:
        authority: the certificate that clients have to trust.
    """

    def __init__(self, users: dict[str, str]) -> None:
        everyone = {ADMIN: ADMIN_PASSWORD, **users}
        super().__init__(_PROPERTIES, [f"{_SCRAM}=[name={name},password={word}]" for name, word in everyone.items()])
        self.authority = certificates(self.folder)
        at = f"SECURE://127.0.0.1:{self.port}"
        login = f'username="{ADMIN}" password="{ADMIN_PASSWORD}"'
        module = "org.apache.kafka.common.security.scram.ScramLoginModule"
        self.settings |= {
            "listeners": f"{at},CONTROLLER://127.0.0.1:{self.controller}",
            "advertised.listeners": at,
            "ssl.keystore.location": self.folder / "broker.pem",
            "ssl.truststore.location": self.authority,
            "listener.name.secure.scram-sha-512.sasl.jaas.config": f"{module} required {login};",
        }
        self.client = self.login(ADMIN, ADMIN_PASSWORD)

    def login(self, user: str, password: str) -> dict[str, Any]:
        """Return what a client of a user needs besides the address."""
        return {
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": _SCRAM,
            "sasl.username": user,
            "sasl.password": password,
            "ssl.ca.location": str(self.authority),
        }

    def allow(self, user: str, kind: str, name: str, rights: Iterable[str], prefixed: bool = False) -> None:
        """Give a user rights, such as ``Read``, on a ``topic``, ``group`` or ``transactional_id``."""
        from confluent_kafka.admin import (
            AclBinding,
            AclOperation,
            AclPermissionType,
            ResourcePatternType,
            ResourceType,
        )

        pattern = ResourcePatternType.PREFIXED if prefixed else ResourcePatternType.LITERAL
        resource = ResourceType[kind.upper()], name, pattern
        bindings = [
            AclBinding(*resource, f"User:{user}", "*", AclOperation[right.upper()], AclPermissionType.ALLOW)
            for right in rights
        ]
        admin = self.admin
        for done in admin.create_acls(bindings).values():
            done.result(30)


def certificates(folder: Path) -> Path:
    """Make an authority and a certificate for 127.0.0.1 that it has signed; return the authority's."""

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", "/CN=tests' authority",
            "-keyout", "authority.key", "-out", "authority.pem")  # fmt: skip
    openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=127.0.0.1", "-keyout", "broker.key",
            "-out", "broker.csr")  # fmt: skip
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    openssl("x509", "-req", "-in", "broker.csr", "-CA", "authority.pem", "-CAkey", "authority.key", "-CAcreateserial",
            "-days", "30", "-extfile", "names", "-out", "broker.crt")  # fmt: skip
    parts = ("broker.key", "broker.crt", "authority.pem")
    (folder / "broker.pem").write_text("".join((folder / part).read_text() for part in parts))
    return folder / "authority.pem"
