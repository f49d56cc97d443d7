"""The catalogue: every event type of a domain, with its topic. All generated contracts list it."""

from __future__ import annotations

from dataclasses import dataclass

from contracts.approval import Answer, Override, Person
from contracts.audit_head import AuditHead
from contracts.command import Command
from contracts.data import Data
from contracts.dead_letter import DeadLetter, Redriven
from contracts.decision import Decision, Grant, Noted
from contracts.domain import load_domain
from contracts.envelope import schema_urn
from contracts.exchange import Concluded, Exchange
from contracts.late_fact import LateFact
from contracts.limit_claim import CircuitMoved, Claim, Settlement
from contracts.model import ModelAlias
from contracts.outcome import Outcome
from contracts.policy import Policy, PolicySwitch
from contracts.prompt import Prompt
from contracts.proposal import Proposal
from contracts.topics import TOPICS


@dataclass(frozen=True)
class EventType:
    """One event type as it travels: `urn` is its `dataschema`, `topic` a name of the topic table."""

    domain: str
    topic: str
    data: type[Data]

    @property
    def name(self) -> str:
        return self.data.event_type

    @property
    def urn(self) -> str:
        return schema_urn(self.domain, self.name, self.data.schema_version)

    @property
    def says(self) -> str:
        """The first paragraph of the model's docstring, on one line."""
        return " ".join((self.data.__doc__ or self.name).split("\n\n")[0].split())


_BY_TOPIC: dict[str, tuple[type[Data], ...]] = {
    "proposals": (Proposal,),
    "decisions": (Decision, Noted),
    "commands": (Command,),
    "outcomes": (Outcome,),
    "approvals": (Answer, Override),
    "limits": (Claim, Settlement, Grant, CircuitMoved),
    "policies": (Policy, PolicySwitch, Person),
    "models": (ModelAlias,),
    "prompts": (Prompt,),
    "exchanges": (Exchange, Concluded),
    "audit-heads": (AuditHead,),
    "dead-letters": (DeadLetter, Redriven),
    "late-facts": (LateFact,),
}


def event_types(domain: str) -> tuple[EventType, ...]:
    """In the order of the topic table. Raises SetupFailed when there is no such domain."""
    contract = load_domain(domain)
    facts = tuple(fact for fact in contract.facts.values() if fact is not Outcome)
    listed = {**_BY_TOPIC, "facts": facts, "situations": tuple(contract.situations.values())}
    return tuple(EventType(domain, row.name, data) for row in TOPICS for data in listed[row.name])
