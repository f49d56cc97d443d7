"""How a client of Kafka shows who it is: nothing without FLYBALL_SECRETS, TLS and SCRAM with it.

FLYBALL_SECRETS names a folder with `ca.pem` and, for each principal, `<principal>.properties` with a line
`password=...`. Flink is given a reference to that file, never the password: what the clients of Kafka read
in the TaskManager shows in no DDL, job graph, REST answer or log.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from contracts.errors import SetupFailed

VARIABLE = "FLYBALL_SECRETS"
MECHANISM = "SCRAM-SHA-512"
PROTOCOL = "SASL_SSL"
_SHADED = "org.apache.flink.kafka.shaded.org.apache.kafka.common"


def folder() -> Path | None:
    """Where this process finds its secrets; None: the broker asks for none."""
    named = os.environ.get(VARIABLE)
    return Path(named).absolute() if named else None


def password_file(secrets: Path, principal: str) -> Path:
    return secrets / f"{principal}.properties"


def password(secrets: Path, principal: str) -> str:
    """Raises SetupFailed, without the content, when there is no such file or no password in it."""
    path = password_file(secrets, principal)
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise SetupFailed(
            f"no password of {principal!r} in {path}: {error.strerror}. {VARIABLE} names the folder;"
            " './flyball access list DOMAIN' tells who is who"
        ) from None
    for line in lines:
        if line.startswith("password="):
            return line.removeprefix("password=")
    raise SetupFailed(f"{path}: expected a line 'password=...', came none")


def _asked(principal: str | None) -> tuple[Path, str] | None:
    secrets = folder()
    if secrets is None:
        return None
    if principal is None:
        raise SetupFailed(f"the broker wants to know who asks ({VARIABLE} is set): this client names no principal")
    return secrets, principal


def kafka_python(principal: str | None) -> dict[str, Any]:
    """What kafka-python needs to be `principal`."""
    if (asked := _asked(principal)) is None:
        return {}
    secrets, who = asked
    return {
        "security_protocol": PROTOCOL, "sasl_mechanism": MECHANISM,
        "sasl_plain_username": who, "sasl_plain_password": password(secrets, who),
        "ssl_cafile": str(secrets / "ca.pem"), "ssl_check_hostname": True,
    }  # fmt: skip


def confluent(principal: str | None) -> dict[str, Any]:
    """What confluent-kafka needs to be `principal`."""
    if (asked := _asked(principal)) is None:
        return {}
    secrets, who = asked
    return {
        "security.protocol": PROTOCOL, "sasl.mechanism": MECHANISM,
        "sasl.username": who, "sasl.password": password(secrets, who),
        "ssl.ca.location": str(secrets / "ca.pem"), "ssl.endpoint.identification.algorithm": "https",
    }  # fmt: skip


def flink(principal: str) -> dict[str, str]:
    """Options of the Flink connector; the password is a reference that the clients resolve where they run."""
    if (asked := _asked(principal)) is None:
        return {}
    secrets, who = asked
    reference = f"${{file:{password_file(secrets, who)}:password}}"
    properties = {
        "security.protocol": PROTOCOL,
        "sasl.mechanism": MECHANISM,
        "sasl.jaas.config": f'{_SHADED}.security.scram.ScramLoginModule required username="{who}" password="{reference}";',
        "config.providers": "file",
        "config.providers.file.class": f"{_SHADED}.config.provider.FileConfigProvider",
        "config.providers.file.param.allowed.paths": str(secrets),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(secrets / "ca.pem"),
        "ssl.endpoint.identification.algorithm": "https",
    }
    return {f"properties.{name}": value for name, value in properties.items()}
