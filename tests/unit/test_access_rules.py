"""Which rules of a broker a start sets anew: the domain's own, and what lets others do more than read of it."""

from __future__ import annotations

import pytest
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    ResourcePatternType,
    ResourceType,
)

from contracts.access import principal
from contracts.domain import known_domains
from ops.access import _binding, concerns, rights


def rule(who: str, operation: str, name: str, *, of: str = "TOPIC", pattern: str = "LITERAL", permission: str = "ALLOW") -> AclBinding:
    return AclBinding(
        ResourceType[of], name, ResourcePatternType[pattern], f"User:{who}", "*", AclOperation[operation],
        AclPermissionType[permission],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("added", "is_taken_away"),
    [
        (rule("machines.producer", "READ", "machines.facts"), True),
        (rule("eve", "WRITE", "machines.commands"), True),
        (rule("*", "ALL", "machines.decisions"), True),
        (rule("eve", "WRITE", "*"), True),
        (rule("eve", "WRITE", "mach", pattern="PREFIXED"), True),
        (rule("eve", "ALTER_CONFIGS", "machines.", pattern="PREFIXED"), True),
        (rule("eve", "WRITE", "machines-govern-", of="TRANSACTIONAL_ID", pattern="PREFIXED"), True),
        (rule("eve", "READ", "machines.decisions"), False),
        (rule("eve", "DESCRIBE", "*"), False),
        (rule("eve", "WRITE", "machines.commands", permission="DENY"), False),
        (rule("eve", "WRITE", "mach"), False),
        (rule("eve", "WRITE", "payments.facts"), False),
        (rule("eve", "READ", "reports", of="GROUP"), False),
    ],
)
def test_a_rule_is_taken_away_when_it_lets_others_do_more_than_read(added: AclBinding, is_taken_away: bool) -> None:
    assert concerns(added, "machines") is is_taken_away


def test_no_domain_takes_away_what_another_needs() -> None:
    for domain in known_domains():
        for role in ("govern", "redriver", "admin", "people", "producer"):
            for grant in rights(principal(domain, role)):
                assert [other for other in known_domains() if concerns(_binding(grant), other)] == [domain]
