"""Every door of a secure broker: who is let in, and what each may do; everything else is tried and refused."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from kafka import KafkaConsumer
from kafka import TopicPartition as PlainPartition
from kafka.errors import GroupAuthorizationFailedError, TopicAuthorizationFailedError
from kafka.structs import OffsetAndMetadata

from contracts.access import ROLES, grants, principal
from contracts.topics import TOPICS
from ops import access, broker, kafka
from ops.home import Home
from ops.instance import configured_ports
from ops.ports import choose
from ops.setup import fetch_jars, java_home
from udfs import broker_access

DOMAIN = "machines"
NAMES = [row.name for row in TOPICS]
PATIENCE_S = 20
Errors = dict[str, int | None]  # what was tried -> None when it was done, otherwise the broker's error
REFUSED = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
}


@dataclass(frozen=True)
class Secure:
    """A running broker, its ports, and the files that open it."""

    home: Home
    ports: dict[str, int]

    @property
    def servers(self) -> str:
        return f"127.0.0.1:{self.ports['kafka']}"

    @property
    def internal(self) -> str:
        return f"127.0.0.1:{self.ports['internal']}"

    def login(self, role: str) -> dict[str, Any]:
        return {"bootstrap.servers": self.servers, "log_level": 0, **broker_access.confluent(principal(DOMAIN, role))}

    def as_broker(self) -> dict[str, Any]:
        """The one with every right: by certificate, at another listener."""
        own = str(self.home.secrets / "broker.pem")
        return {
            "bootstrap.servers": self.internal, "security.protocol": "SSL", "log_level": 0,
            "ssl.ca.location": str(self.home.secrets / "ca.pem"), "ssl.key.location": own, "ssl.certificate.location": own,
        }  # fmt: skip


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secure]:
    """A secure broker alone, with the topics of `machines` and a record in each of their partitions."""
    home = Home(tmp_path_factory.mktemp("secure"))
    fetch_jars(home)
    access.made(home.secrets, DOMAIN)
    found = Secure(home, choose(configured_ports(is_secure=True)))
    before = dict(os.environ)
    os.environ[broker_access.VARIABLE] = str(home.secrets)
    broker.prepare(home, {**found.ports}, is_secure=True)
    with (home.logs / "broker.out").open("wb") as out:
        process = subprocess.Popen(broker.command(home, java_home()), stdout=out, stderr=out, stdin=subprocess.DEVNULL)
    try:
        access.establish(found.internal, home.secrets, DOMAIN)
        kafka.wait_for_broker(found.servers, principal=principal(DOMAIN, "admin"))
        kafka.create_topics(found.servers, DOMAIN)
        writer = Producer({**found.as_broker(), "enable.idempotence": True})
        for row in TOPICS:
            for partition in range(row.partitions):
                writer.produce(row.of(DOMAIN), key=b"k", value=b"{}", partition=partition)
        assert writer.flush(PATIENCE_S) == 0
        yield found
    finally:
        process.terminate()
        process.wait(30)
        os.environ.clear()
        os.environ.update(before)


def may(role: str, operation: str, name: str) -> bool:
    """By the table of grants alone."""
    topic = f"{DOMAIN}.{name}"
    return any(
        grant.resource == "TOPIC" and grant.operation == operation
        and (topic.startswith(grant.name) if grant.is_prefix else topic == grant.name)
        for grant in grants(principal(DOMAIN, role))
    )  # fmt: skip


def written(secure: Secure, role: str) -> Errors:
    """By topic; a record is tried on each."""
    found: Errors = {}
    writer = Producer({**secure.login(role), "message.timeout.ms": PATIENCE_S * 1000})

    def told(error: KafkaError | None, message: Any) -> None:
        found[message.topic().partition(".")[2]] = None if error is None else error.code()

    for row in TOPICS:
        writer.produce(row.of(DOMAIN), key=b"k", value=b"{}", partition=0, on_delivery=told)
    writer.flush(PATIENCE_S)
    return found


def read(secure: Secure, role: str) -> Errors:
    """By topic; a record of each is tried."""
    found: Errors = {}
    reader = Consumer({**secure.login(role), "group.id": f"{DOMAIN}-{role}", "enable.auto.commit": False})
    for row in TOPICS:  # one after another: an error of one must not stand in another's place
        hidden = reader.list_topics(row.of(DOMAIN), timeout=PATIENCE_S).topics[row.of(DOMAIN)].error
        if hidden is not None:  # not even told where it lies
            found[row.name] = hidden.code()
            continue
        reader.assign([TopicPartition(row.of(DOMAIN), 0, 0)])
        while row.name not in found:
            message = reader.poll(PATIENCE_S)
            assert message is not None, f"{role} waits for {row.name}"
            error = message.error()
            if error is not None and error.code() == KafkaError.GROUP_AUTHORIZATION_FAILED:
                continue  # the client asks for its group's coordinator unasked; what it reads is another matter
            if error is not None or message.topic() == row.of(DOMAIN):
                found[row.name] = None if error is None else error.code()
    reader.close()
    return found


def tried(attempt: Callable[[Secure, str], Errors], secure: Secure) -> dict[str, Errors]:
    """What came of it by role. All try side by side: most of an attempt is waiting for a refusal."""
    with ThreadPoolExecutor(len(ROLES)) as pool:
        return dict(zip(ROLES, pool.map(attempt, [secure] * len(ROLES), ROLES), strict=True))


@pytest.fixture(scope="module")
def writes(secure: Secure) -> dict[str, Errors]:
    return tried(written, secure)


@pytest.fixture(scope="module")
def reads(secure: Secure) -> dict[str, Errors]:
    return tried(read, secure)


@pytest.mark.parametrize("role", ROLES)
def test_a_principal_writes_what_it_must_and_nothing_else(writes: dict[str, Errors], role: str) -> None:
    assert set(writes[role]) == set(NAMES)
    for name, error in writes[role].items():
        assert error == (None if may(role, "WRITE", name) else KafkaError.TOPIC_AUTHORIZATION_FAILED), name


@pytest.mark.parametrize("role", ROLES)
def test_a_principal_reads_what_it_must_and_nothing_else(reads: dict[str, Errors], role: str) -> None:
    assert set(reads[role]) == set(NAMES)
    for name, error in reads[role].items():
        assert error == (None if may(role, "READ", name) else KafkaError.TOPIC_AUTHORIZATION_FAILED), name


def test_only_govern_writes_commands_and_decisions(writes: dict[str, Errors]) -> None:
    for name in ("commands", "decisions"):
        assert [role for role in ROLES if may(role, "WRITE", name)] == ["govern"]
        assert [role for role in ROLES if writes[role][name] is None] == ["govern"]


def error_of(future: Future[Any]) -> int | None:
    try:
        future.result(PATIENCE_S)
    except KafkaException as error:
        return int(error.args[0].code())
    return None


def every_other_operation(admin: AdminClient, topic: str) -> Iterator[tuple[str, dict[Any, Future[Any]]]]:
    """What could be done with a topic besides reading and writing."""
    resource = ConfigResource(
        ConfigResource.Type.TOPIC, topic,
        incremental_configs=[ConfigEntry("retention.ms", "1", incremental_operation=AlterConfigOpType.SET)],
    )  # fmt: skip
    yield "alter configs", admin.incremental_alter_configs([resource])
    yield "describe configs", admin.describe_configs([ConfigResource(ConfigResource.Type.TOPIC, topic)])
    if admin.list_topics(topic, timeout=PATIENCE_S).topics[topic].error is None:  # else not even told where it lies
        yield "delete records", admin.delete_records([TopicPartition(topic, 0, 1)])
    yield "create partitions", admin.create_partitions([NewPartitions(topic, 9)])
    yield "delete", admin.delete_topics([topic])


def changed(secure: Secure, role: str) -> Errors:
    """By operation and topic; each operation is tried on each."""
    admin = AdminClient(secure.login(role))
    found: Errors = {}
    for name in NAMES:
        for what, futures in every_other_operation(admin, f"{DOMAIN}.{name}"):
            (future,) = futures.values()
            found[f"{what} {name}"] = error_of(future)
    return found


@pytest.fixture(scope="module")
def changes(secure: Secure) -> dict[str, Errors]:
    return tried(changed, secure)


@pytest.mark.parametrize("role", ROLES)
def test_nobody_changes_or_deletes_a_topic(changes: dict[str, Errors], role: str) -> None:
    assert len(changes[role]) >= 4 * len(NAMES)
    for what, error in changes[role].items():
        assert error in REFUSED, what


@pytest.mark.parametrize("role", ROLES)
def test_nobody_gives_rights_or_passwords(secure: Secure, role: str) -> None:
    admin = AdminClient(secure.login(role))
    rule = AclBinding(
        ResourceType.TOPIC, f"{DOMAIN}.commands", ResourcePatternType.LITERAL, f"User:{principal(DOMAIN, role)}", "*",
        AclOperation.WRITE, AclPermissionType.ALLOW,
    )  # fmt: skip
    user = UserScramCredentialUpsertion(
        principal(DOMAIN, "govern"), ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096), b"mine now"
    )
    for future in (*admin.create_acls([rule]).values(), *admin.alter_user_scram_credentials([user]).values()):
        assert error_of(future) == KafkaError.CLUSTER_AUTHORIZATION_FAILED


@pytest.mark.parametrize("role", ROLES)
def test_only_the_admin_makes_topics_and_only_of_its_domain(secure: Secure, role: str) -> None:
    admin = AdminClient(secure.login(role))
    made = admin.create_topics([NewTopic(f"{DOMAIN}.new", 1, 1), NewTopic("other.new", 1, 1)], validate_only=True)
    errors = {name: error_of(future) for name, future in made.items()}
    assert errors["other.new"] == KafkaError.TOPIC_AUTHORIZATION_FAILED
    assert errors[f"{DOMAIN}.new"] == (None if role == "admin" else KafkaError.TOPIC_AUTHORIZATION_FAILED)


def begun(secure: Secure, role: str, transactional_id: str) -> int | None:
    writer = Producer({**secure.login(role), "transactional.id": transactional_id})
    try:
        writer.init_transactions(PATIENCE_S)
    except KafkaException as error:
        return int(error.args[0].code())
    return None


@pytest.mark.parametrize("role", ROLES)
def test_only_govern_fences_its_transactions(secure: Secure, role: str) -> None:
    refused = KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED
    assert begun(secure, role, f"{DOMAIN}-govern-commands-0-1") == (None if role == "govern" else refused)
    assert begun(secure, role, "other-govern-commands-0-1") == refused


def commit(secure: Secure, role: str) -> None:
    """Move the offset of the actuator's group."""
    place = PlainPartition(f"{DOMAIN}.commands", 0)
    reader = KafkaConsumer(
        bootstrap_servers=secure.servers, group_id=f"{DOMAIN}-actuator", enable_auto_commit=False,
        **broker_access.kafka_python(principal(DOMAIN, role)),
    )  # fmt: skip
    try:
        reader.assign([place])
        reader.commit({place: OffsetAndMetadata(1, "", -1)})
    finally:
        reader.close()


@pytest.mark.parametrize("role", [role for role in ROLES if role != "actuator"])
def test_nobody_else_moves_the_offsets_of_the_actuator(secure: Secure, role: str) -> None:
    with pytest.raises((GroupAuthorizationFailedError, TopicAuthorizationFailedError)):
        commit(secure, role)


def test_the_actuator_commits_how_far_it_is(secure: Secure) -> None:
    commit(secure, "actuator")


def listed(configuration: dict[str, Any]) -> list[str]:
    """The topics one is shown. Raises PermissionError as soon as the client is told that it may not come in."""
    errors: list[KafkaError] = []
    admin = AdminClient({**configuration, "error_cb": errors.append, "log_level": 0})
    deadline = time.monotonic() + PATIENCE_S
    while not errors:
        assert time.monotonic() < deadline, "neither let in nor refused"
        try:
            return list(admin.list_topics(timeout=0.5).topics)
        except KafkaException:
            admin.poll(0)
    raise PermissionError(str(errors))


def refusals(secure: Secure) -> dict[str, dict[str, Any]]:
    right = secure.login("govern")
    without = {key: value for key, value in right.items() if not key.startswith("sasl")}
    return {
        "plain text": {"bootstrap.servers": secure.servers},
        "a login without TLS": {**right, "security.protocol": "SASL_PLAINTEXT"},
        "TLS without a login": {**without, "security.protocol": "SSL"},
        "another's password": {**right, "sasl.username": "machines.producer"},
        "a wrong password": {**right, "sasl.password": "wrong"},
        "no such user": {**right, "sasl.username": "machines.nobody"},
        "a login at the internal listener": {**right, "bootstrap.servers": secure.internal},
        "no certificate at the internal listener": {**without, "security.protocol": "SSL", "bootstrap.servers": secure.internal},
        "plain text at the internal listener": {"bootstrap.servers": secure.internal},
    }  # fmt: skip


def test_the_rightful_are_let_in(secure: Secure) -> None:
    assert f"{DOMAIN}.commands" in listed(secure.login("govern"))
    assert f"{DOMAIN}.commands" in listed(secure.as_broker())


@pytest.mark.parametrize(
    "how",
    ["plain text", "a login without TLS", "TLS without a login", "another's password", "a wrong password", "no such user",
     "a login at the internal listener", "no certificate at the internal listener", "plain text at the internal listener"],
)  # fmt: skip
def test_nobody_is_let_in_when_the_way_is_wrong(secure: Secure, how: str) -> None:
    with pytest.raises(PermissionError):
        listed(refusals(secure)[how])


def test_the_controller_takes_no_client_without_the_brokers_certificate(secure: Secure) -> None:
    context = ssl.create_default_context(cafile=str(secure.home.secrets / "ca.pem"))
    with pytest.raises((ssl.SSLError, ConnectionError)):
        _say_hello(context, secure.ports["controller"])
    with pytest.raises((ssl.SSLError, ConnectionError)):
        _say_hello(None, secure.ports["controller"])


def _say_hello(context: ssl.SSLContext | None, port: int) -> None:
    """ApiVersions, version 0; raises when no answer comes."""
    request = bytes.fromhex("00000013 0012 0000 00000001 0009") + b"test-test"
    with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
        stream = plain if context is None else context.wrap_socket(plain, server_hostname="127.0.0.1")
        stream.sendall(request)
        answer = stream.recv(8)
        if answer[4:] != request[8:12]:  # size and correlation id; over plain text TLS answers with an alert
            raise ConnectionError(f"expected an answer to the request, came {answer!r}")


def test_a_client_refuses_another_broker_than_it_asked_for(secure: Secure) -> None:
    context = ssl.create_default_context(cafile=str(secure.home.secrets / "ca.pem"))
    with (
        socket.create_connection(("127.0.0.1", secure.ports["kafka"]), timeout=10) as plain,
        pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"),
    ):
        context.wrap_socket(plain, server_hostname="kafka.example")
    with pytest.raises((ssl.SSLCertVerificationError, ConnectionError)):
        _say_hello(ssl.create_default_context(), secure.ports["kafka"])  # not one of the system's authorities


def test_kafka_python_clients_are_let_in_too_when_they_say_who_they_are(secure: Secure) -> None:
    (record, *_) = kafka.read_all(secure.servers, [f"{DOMAIN}.policies"])
    assert record.value == b"{}"
    writer = kafka.producer(secure.servers, principal=principal(DOMAIN, "producer"))
    writer.send(f"{DOMAIN}.facts", b"{}").get(timeout=PATIENCE_S)
    writer.close()
    lags = kafka.LagReader(secure.servers, DOMAIN, ["govern"]).lags()
    assert lags["govern"] > 0


@pytest.fixture
def clerk(secure: Secure) -> Iterator[Callable[[], None]]:
    """Sets the rights again, and once more at the end."""

    def establish() -> None:
        access.establish(secure.internal, secure.home.secrets, DOMAIN)

    yield establish
    establish()


def test_a_new_producer_writes_facts_and_no_more_once_removed(secure: Secure, clerk: Callable[[], None]) -> None:
    who = principal(DOMAIN, "producer", "gateway")
    access.new_password(secure.home.secrets, who)
    clerk()
    assert who in access.principals(secure.home.secrets, DOMAIN)
    login = {**secure.login("producer"), **broker_access.confluent(who)}
    assert set(listed(login)) == {f"{DOMAIN}.facts", f"{DOMAIN}.dead-letters"}

    broker_access.password_file(secure.home.secrets, who).unlink()
    clerk()
    with pytest.raises(PermissionError):
        listed(login)


def test_an_old_password_is_worth_nothing_once_it_was_rotated(secure: Secure, clerk: Callable[[], None]) -> None:
    old = secure.login("sealer")
    access.new_password(secure.home.secrets, principal(DOMAIN, "sealer"))
    clerk()
    with pytest.raises(PermissionError):
        listed(old)
    assert listed(secure.login("sealer"))


def test_a_right_nobody_granted_is_taken_away_when_rights_are_set_again(
    secure: Secure, clerk: Callable[[], None]
) -> None:
    admin = AdminClient(secure.as_broker())
    rule = AclBinding(
        ResourceType.TOPIC, f"{DOMAIN}.commands", ResourcePatternType.LITERAL, f"User:{DOMAIN}.producer", "*",
        AclOperation.WRITE, AclPermissionType.ALLOW,
    )  # fmt: skip
    for future in admin.create_acls([rule]).values():
        future.result(PATIENCE_S)
    clerk()
    assert written(secure, "producer")["commands"] == KafkaError.TOPIC_AUTHORIZATION_FAILED
