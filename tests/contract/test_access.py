"""The rights made from the topic table: enough for what is wired, and no more."""

from __future__ import annotations

import re
import stat
from pathlib import Path
from types import ModuleType

import pytest

import jobs.context
import jobs.govern
import jobs.propose
import jobs.reason
from contracts.access import ROLES, Grant, grants, principal, role_of
from contracts.dead_letter import PUT_BACK
from contracts.errors import SetupFailed
from contracts.topics import TOPICS
from jobs.settings import load_settings
from ops import access
from udfs import broker_access

JOBS = {"context": jobs.context, "propose": jobs.propose, "reason": jobs.reason, "govern": jobs.govern}
DOMAIN = "machines"


def rights(role: str, operation: str, resource: str = "TOPIC") -> set[str]:
    return {g.name for g in grants(f"{DOMAIN}.{role}") if (g.operation, g.resource) == (operation, resource)}


def test_only_govern_may_write_commands_decisions_and_claims() -> None:
    for name in ("commands", "decisions", "limits"):
        assert [role for role in ROLES if f"{DOMAIN}.{name}" in rights(role, "WRITE")] == ["govern"]


def test_no_right_to_write_covers_more_than_one_topic() -> None:
    for role in ROLES:
        for grant in grants(f"{DOMAIN}.{role}"):
            assert not (grant.is_prefix and grant.resource == "TOPIC" and grant.operation == "WRITE"), grant
            assert grant.name not in ("", "*"), grant


def test_no_right_reaches_another_domain() -> None:
    for role in ROLES:
        for grant in grants(f"{DOMAIN}.{role}"):
            assert grant.name.startswith((f"{DOMAIN}.", f"{DOMAIN}-")) or grant.name == "flyball-bulk", grant


def test_outside_the_jobs_nobody_writes_what_they_make() -> None:
    outside = ("producer", "actuator", "sealer", "people", "reader", "auditor", "admin", "replay")
    made_inside = {f"{DOMAIN}.{name}" for name in ("situations", "proposals", "decisions", "commands", "limits", "exchanges")}
    for role in outside:
        assert not rights(role, "WRITE") & made_inside, role
    for role in ("reader", "auditor", "admin", "replay"):
        assert not rights(role, "WRITE"), role


def test_what_models_were_told_is_read_by_the_job_that_asks_them_and_by_auditors_alone() -> None:
    assert [role for role in ROLES if f"{DOMAIN}.exchanges" in rights(role, "READ")] == ["reason", "auditor"]


def test_what_puts_records_back_may_write_nothing_that_acts() -> None:
    assert rights("redriver", "WRITE") == {f"{DOMAIN}.{name}" for name in (*PUT_BACK, "dead-letters")}
    assert not rights("redriver", "WRITE") & {f"{DOMAIN}.{name}" for name in ("commands", "decisions", "limits", "policies")}


def test_every_topic_has_somebody_who_writes_it() -> None:
    everybody = {name for role in ROLES for name in rights(role, "WRITE")}
    assert everybody == {row.of(DOMAIN) for row in TOPICS}


@pytest.mark.parametrize(("name", "job"), JOBS.items(), ids=JOBS)
def test_a_job_may_what_its_tables_need_and_no_more(name: str, job: ModuleType) -> None:
    settings = load_settings(DOMAIN)
    by_itself = {f"{DOMAIN}.{topic}" for topic in getattr(job, "WRITES_ITSELF", frozenset())}
    transactional = [ddl for ddl in job.sinks(settings).values() if "sink.transactional-id-prefix" in ddl]
    reads = {**job.sources(settings), **dict(enumerate(transactional))}
    for tables, operation in ((reads, "READ"), (job.sinks(settings), "WRITE")):
        told = "\n".join(tables.values())
        topics = {t for found in re.findall(r"'topic' = '([^']*)'", told) for t in found.split(";")}
        assert topics | by_itself == rights(name, operation)
        for group in re.findall(r"'properties.group.id' = '([^']*)'", told):
            assert group in rights(name, "READ", "GROUP")
        for prefix in re.findall(r"'sink.transactional-id-prefix' = '([^']*)'", told):
            assert any(prefix.startswith(known) for known in rights(name, "WRITE", "TRANSACTIONAL_ID"))


def test_a_job_may_read_more_when_its_settings_say_so() -> None:
    settings = load_settings(DOMAIN, govern_reads_situations=True)
    wired = jobs.govern.sources(settings)["proposals_source"]
    assert f"{DOMAIN}.situations" in wired
    who = principal(DOMAIN, "govern")
    more = {*grants(who, also_reads=("situations",))} - {*grants(who)}
    assert more == {Grant(who, "READ", "TOPIC", f"{DOMAIN}.situations")}


@pytest.mark.parametrize("who", ["machines", "machines.", ".govern", "machines.nobody", "machines.govern-two", "machines.producer-", "machines.producer-A", "machines.producer-../x"])  # fmt: skip
def test_what_is_no_principal_is_refused(who: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        role_of(who)


def test_a_named_producer_may_what_a_producer_may() -> None:
    named = grants(principal(DOMAIN, "producer", "gateway"))
    assert {(g.operation, g.name) for g in named} == {(g.operation, g.name) for g in grants(f"{DOMAIN}.producer")}


@pytest.fixture
def secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "secrets"
    access.made(folder, DOMAIN)
    monkeypatch.setenv(broker_access.VARIABLE, str(folder))
    return folder


@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_no_password_stands_in_the_ddl_of_a_job_when_secure(job: ModuleType, secrets: Path) -> None:
    settings = load_settings(DOMAIN)
    told = "\n".join([*job.sources(settings).values(), *job.sinks(settings).values()])
    assert told.count("ScramLoginModule required") == told.count("CREATE TEMPORARY TABLE")
    for who in access.principals(secrets, DOMAIN):
        assert broker_access.password(secrets, who) not in told
    assert set(re.findall(r'username="([^"]*)"', told)) == {f"{DOMAIN}.{job.NAME}"}


def test_nothing_is_added_to_the_ddl_of_a_job_when_not_secure() -> None:
    told = "\n".join(jobs.govern.sinks(load_settings(DOMAIN)).values())
    assert "security.protocol" not in told


def test_a_client_must_say_who_it_is_when_secure(secrets: Path) -> None:
    with pytest.raises(SetupFailed, match="names no principal"):
        broker_access.kafka_python(None)
    with pytest.raises(SetupFailed, match=r"no password of 'machines\.nobody' in .*No such file"):
        broker_access.confluent("machines.nobody")
    (secrets / "machines.reader.properties").write_text("nothing\n")
    with pytest.raises(SetupFailed, match="expected a line 'password="):
        broker_access.password(secrets, "machines.reader")


def test_passwords_stay_when_made_again_and_differ(secrets: Path) -> None:
    before = {who: broker_access.password(secrets, who) for who in access.principals(secrets, DOMAIN)}
    access.made(secrets, DOMAIN)
    assert {who: broker_access.password(secrets, who) for who in before} == before
    assert len(set(before.values())) == len(before) == len(ROLES)
    assert min(map(len, before.values())) >= 43, "256 bits"


def test_a_file_others_can_read_is_refused(secrets: Path) -> None:
    (secrets / "machines.govern.properties").chmod(0o640)
    with pytest.raises(SetupFailed, match="chmod 600"):
        access.made(secrets, DOMAIN)


def test_a_named_producer_is_added_once_and_removed(secrets: Path) -> None:
    path = access.add(secrets, DOMAIN, "producer", "gateway")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert access.principals(secrets, DOMAIN)[-1] == "machines.producer-gateway"
    with pytest.raises(SetupFailed, match="there already"):
        access.add(secrets, DOMAIN, "producer", "gateway")
    with pytest.raises(SetupFailed, match="producer, actuator"):
        access.add(secrets, DOMAIN, "govern", "two")
    with pytest.raises(SetupFailed, match="a-z, 0-9"):
        access.add(secrets, DOMAIN, "producer", "../../etc")
    assert access.remove(secrets, DOMAIN, "producer", "gateway") == "machines.producer-gateway"
    with pytest.raises(SetupFailed, match=r"no machines\.producer-gateway"):
        access.remove(secrets, DOMAIN, "producer", "gateway")


def test_some_passwords_change_when_rotated(secrets: Path) -> None:
    before = {who: broker_access.password(secrets, who) for who in access.principals(secrets, DOMAIN)}
    assert access.rotate(secrets, DOMAIN, ["govern"]) == ["machines.govern"]
    changed = [who for who, old in before.items() if broker_access.password(secrets, who) != old]
    assert changed == ["machines.govern"]
    with pytest.raises(SetupFailed, match=r"came machines\.nobody"):
        access.rotate(secrets, DOMAIN, ["nobody"])
