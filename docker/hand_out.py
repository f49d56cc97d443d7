"""One-shot: certificates and passwords of a secure broker in containers, to each service its own.

`python docker/hand_out.py machines`, as root. What is there stays. `authority` keeps everything and is root's; the other
folders of /secrets are copies of what one kind of container needs, owned by who runs in it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from contracts.access import principal
from contracts.errors import FlyballError
from ops import access, certificates
from udfs.broker_access import password_file

ROOT = Path("/secrets")
HOSTS = (*certificates.HOSTS, "kafka")
KAFKA_USER, FLYBALL_USER = 1000, 9999  # of the image apache/kafka, and of ours (docker/Dockerfile)
# Folder -> as whom its containers speak.
ROLES = {
    "jobs": ("context", "propose", "reason", "govern", "replay", "reader"),
    "actuator": ("actuator",),
    "sealer": ("sealer",),
}
# For tools of Kafka inside its container, which speak as the broker.
CLIENT = """\
security.protocol=SSL
ssl.keystore.type=PEM
ssl.keystore.location=/var/lib/kafka/secrets/broker.pem
ssl.truststore.type=PEM
ssl.truststore.location=/var/lib/kafka/secrets/ca.pem
"""


def hand_out(root: Path, domain: str) -> str | None:
    """Make what is missing and copy it; what to tell about certificates that end soon."""
    authority = root / "authority"
    warning = access.made(authority, domain, HOSTS)
    for folder, roles in ROLES.items():
        names = ["ca.pem", *(password_file(authority, principal(domain, role)).name for role in roles)]
        _copy(authority, root / folder, names, FLYBALL_USER)
    # `prepare` lets log in whose password it has, as the broker (ops/access.py).
    everybody = [password_file(authority, who).name for who in access.principals(authority, domain)]
    for path in (root / "prepare").glob(f"{domain}.*.properties"):
        if path.name not in everybody:
            path.unlink()
    _copy(authority, root / "prepare", ["ca.pem", "broker.pem", *everybody], FLYBALL_USER)
    _copy(authority, root / "broker", ["ca.pem", "broker.pem"], KAFKA_USER)
    certificates.write_secret(root / "broker" / "client.properties", CLIENT.encode())
    _give(root / "broker" / "client.properties", KAFKA_USER)
    return warning


def _copy(source: Path, target: Path, names: list[str], owner: int) -> None:
    for name in names:
        certificates.write_secret(target / name, (source / name).read_bytes())
        _give(target / name, owner)
    _give(target, owner)
    target.chmod(0o700)


def _give(path: Path, owner: int) -> None:
    if os.geteuid() == 0:
        os.chown(path, owner, owner)


def main() -> None:
    for domain in sys.argv[1:]:
        try:
            warning = hand_out(ROOT, domain)
        except FlyballError as error:
            sys.exit(f"error: {domain}: {error}")
        print(f"{domain}: {warning or 'secrets are there'}")


if __name__ == "__main__":
    main()
