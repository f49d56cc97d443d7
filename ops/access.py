"""Who may speak to a secure broker: passwords in files, and on the broker who knows them and what they may.

`<home>/secrets` holds the certificates (ops/certificates.py) and `<principal>.properties`, a password each. Users
and rights are set at every start, over the INTERNAL listener, with the broker's own certificate: a password
goes to the broker salted and hashed inside TLS, never through arguments of a process.
"""

from __future__ import annotations

import os
import secrets as random
import stat
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import confluent_kafka
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialDeletion,
    UserScramCredentialUpsertion,
)

from contracts.access import NAMED, ROLES, Grant, grants, principal, role_of
from contracts.errors import BrokerUnavailable, SetupFailed
from jobs.settings import load_settings
from ops import certificates
from ops.home import Home
from udfs import broker_access
from udfs.broker_access import password, password_file

ITERATIONS = 4096  # what SCRAM asks at least: guessing is hopeless, these passwords are 256 random bits
_PATIENCE_S = 30.0
_READS = (AclOperation.READ, AclOperation.DESCRIBE, AclOperation.DESCRIBE_CONFIGS)


def secrets_of(home: Home) -> Path:
    """Where this process has its secrets, or else where those of `home` are."""
    return broker_access.folder() or home.secrets


def tell(home: Home, domain: str) -> bool:
    """`establish`, where a secure broker is at hand; False: the next secure start does it."""
    from ops import instance  # with all it starts: `list` needs none of that

    servers = os.environ.get("FLYBALL_INTERNAL_SERVERS", "")
    if not servers and instance.is_running(home) and home.is_secure:
        servers = instance.internal_servers(home)
    if servers:
        establish(servers, secrets_of(home), domain)
    return bool(servers)


def principals(folder: Path, domain: str) -> list[str]:
    """Everybody who may speak to the broker about `domain`: each role, and the named ones that have a file."""
    named = [
        file.stem for role in NAMED for file in sorted(folder.glob(f"{domain}.{role}-*.properties"))
    ]
    return [*(principal(domain, role) for role in ROLES), *named]


def rights(who: str) -> tuple[Grant, ...]:
    """What `who` may, by the topic table and the settings of its domain. Raises SetupFailed when it is nobody."""
    try:
        domain, role = role_of(who)
    except ValueError as error:
        raise SetupFailed(str(error)) from None
    reads_situations = role == "govern" and load_settings(domain).govern_reads_situations
    return grants(who, also_reads=("situations",) if reads_situations else ())


def made(folder: Path, domain: str, hosts: Sequence[str] = certificates.HOSTS) -> str | None:
    """Make every secret of `domain` that is missing, keep the others; what to tell about certificates.

    Raises SetupFailed for a certificate that has ended or a file others can read.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    certificates.made(folder, hosts, now=certificates.now())
    for who in principals(folder, domain):
        if not password_file(folder, who).exists():
            new_password(folder, who)
    for path in sorted(folder.iterdir()):
        if path.name != "ca.pem" and stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise SetupFailed(f"{path} can be read by others: 'chmod 600 {path}', and './flyball access rotate' if they did")
    return certificates.checked(folder, hosts, now=certificates.now())


def new_password(folder: Path, who: str) -> None:
    """A new random password in the file of `who`; the broker learns it by `establish`."""
    certificates.write_secret(password_file(folder, who), f"password={random.token_urlsafe(32)}\n".encode())


def add(folder: Path, domain: str, role: str, name: str) -> Path:
    """The file with the password of a named producer or actuator. Raises SetupFailed when it is there already."""
    path = password_file(folder, _named(domain, role, name))
    if path.exists():
        raise SetupFailed(f"{path.stem} is there already: {path}")
    new_password(folder, path.stem)
    return path


def remove(folder: Path, domain: str, role: str, name: str) -> str:
    """Forget a named producer or actuator; its principal. Raises SetupFailed when there is none."""
    path = password_file(folder, _named(domain, role, name))
    if not path.exists():
        raise SetupFailed(f"no {path.stem}: expected {path}")
    path.unlink()
    return path.stem


def rotate(folder: Path, domain: str, roles: Sequence[str] | None) -> list[str]:
    """New passwords for some of a domain's principals (default: all); whose. Raises SetupFailed for one unknown."""
    known = principals(folder, domain)
    chosen = [f"{domain}.{role}" for role in roles] if roles else known
    if strange := [who for who in chosen if who not in known]:
        raise SetupFailed(f"expected one of {', '.join(known)}, came {', '.join(strange)}")
    for who in chosen:
        new_password(folder, who)
    return chosen


def _named(domain: str, role: str, name: str) -> str:
    try:
        if not name:
            raise ValueError("expected a name, came none")
        return principal(domain, role, name)
    except ValueError as error:
        raise SetupFailed(str(error)) from None


def _admin(internal_servers: str, folder: Path) -> AdminClient:
    """A client that speaks with the broker's certificate: the only one that may set users and rights."""
    broker = str(folder / "broker.pem")
    return AdminClient(
        {
            "bootstrap.servers": internal_servers,
            "security.protocol": "SSL",
            "ssl.ca.location": str(folder / "ca.pem"),
            "ssl.key.location": broker,
            "ssl.certificate.location": broker,
            "ssl.endpoint.identification.algorithm": "https",
            "log_level": 0,
        }
    )


def establish(internal_servers: str, folder: Path, domain: str) -> None:
    """Let exactly `principals` of the domain log in, with exactly their rights; others of it are taken away.

    So is any right of somebody else to do more than read its topics, and a login by password under the broker's own name.
    Run again it changes nothing. When it returns, the broker has heard. Raises BrokerUnavailable.
    """
    admin = _admin(internal_servers, folder)
    wanted = principals(folder, domain)
    try:
        rules = {_binding(grant) for who in wanted for grant in rights(who)}
        gone = [
            name for name in _users(admin)
            if name == certificates.BROKER or (name.startswith(f"{domain}.") and name not in wanted)
        ]  # fmt: skip
        _alter_users(
            admin,
            [
                *(UserScramCredentialDeletion(name, ScramMechanism.SCRAM_SHA_512) for name in gone),
                *(_upsertion(folder, who) for who in wanted),
            ],
        )
        deadline = time.monotonic() + _PATIENCE_S
        while (found := _rules(admin, domain)) != rules or not set(wanted) <= set(_users(admin)):
            if new := rules - found:
                _all(admin.create_acls(list(new)))
            if old := found - rules:
                _all(admin.delete_acls([_exactly(rule) for rule in old]))
            if time.monotonic() > deadline:
                raise BrokerUnavailable(f"the broker at {internal_servers} does not take the rights of {domain}")
            time.sleep(0.02)
    except (confluent_kafka.KafkaException, TimeoutError) as error:
        raise BrokerUnavailable(f"setting rights of {domain} at {internal_servers}: {error!r}") from None


def _upsertion(folder: Path, who: str) -> UserScramCredentialUpsertion:
    info = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, ITERATIONS)
    return UserScramCredentialUpsertion(who, info, password(folder, who).encode())


def _alter_users(admin: AdminClient, changes: list[Any]) -> None:
    _all(admin.alter_user_scram_credentials(changes))


def _users(admin: AdminClient) -> list[str]:
    asked: Any = admin.describe_user_scram_credentials()
    return list(asked.result(_PATIENCE_S))


def _all(futures: dict[Any, Future[Any]]) -> None:
    for future in futures.values():
        future.result(_PATIENCE_S)


def _binding(grant: Grant) -> AclBinding:
    return AclBinding(
        ResourceType[grant.resource], grant.name,
        ResourcePatternType.PREFIXED if grant.is_prefix else ResourcePatternType.LITERAL,
        f"User:{grant.principal}", "*", AclOperation[grant.operation], AclPermissionType.ALLOW,
    )  # fmt: skip


def _exactly(rule: AclBinding) -> AclBindingFilter:
    return AclBindingFilter(
        rule.restype, rule.name, rule.resource_pattern_type, rule.principal, rule.host, rule.operation,
        rule.permission_type,
    )  # fmt: skip


def _rules(admin: AdminClient, domain: str) -> set[AclBinding]:
    """Every rule there is that `concerns` the domain."""
    anything: Any = None
    everything = AclBindingFilter(
        ResourceType.ANY, anything, ResourcePatternType.ANY, anything, anything, AclOperation.ANY,
        AclPermissionType.ANY,
    )  # fmt: skip
    found = admin.describe_acls(everything).result(_PATIENCE_S)
    return {rule for rule in found if concerns(rule, domain)}


def concerns(rule: AclBinding, domain: str) -> bool:
    """Whether a rule of the broker is the domain's to set: about its principals, or letting others do more than read of it."""
    if str(rule.principal).startswith(f"User:{domain}."):
        return True
    if rule.permission_type != AclPermissionType.ALLOW or rule.operation in _READS:
        return False
    own = {str(ResourceType.TOPIC): f"{domain}.", str(ResourceType.TRANSACTIONAL_ID): f"{domain}-"}.get(str(rule.restype))
    if own is None:
        return False
    is_prefix = rule.resource_pattern_type == ResourcePatternType.PREFIXED
    return rule.name == "*" or rule.name.startswith(own) or (is_prefix and own.startswith(rule.name))
