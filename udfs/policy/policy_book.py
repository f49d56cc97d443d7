"""Every policy version, switch and person, as the events of the policies topic left them."""

from __future__ import annotations

import orjson
from pydantic import ValidationError

from contracts.approval import Person
from contracts.data import current
from contracts.dead_letter import Cause
from contracts.errors import BadInput, PolicyRefused
from contracts.policy import Policy, PolicySwitch
from udfs.policy.policy_set import PolicySet
from udfs.state import POLICIES


class PolicyBook:
    """Every policy version, switch and person there is, by the last event that named it."""

    def __init__(self) -> None:
        self._policies: dict[str, Policy] = {}
        self._switches: dict[str, PolicySwitch] = {}
        self._people: dict[str, Person] = {}

    @classmethod
    def from_json(cls, text: str | None) -> PolicyBook:
        book = cls()
        if text is not None:
            raw = POLICIES.load(text)
            book._policies = {
                k: Policy.model_validate_json(orjson.dumps(v)) for k, v in raw["policies"].items()
            }
            book._switches = {k: PolicySwitch.model_validate(v) for k, v in raw["switches"].items()}
            book._people = {k: Person.model_validate_json(orjson.dumps(v)) for k, v in raw["people"].items()}
        return book

    def to_json(self) -> str:
        return POLICIES.dump(
            {
                "policies": {k: v.model_dump(mode="json") for k, v in self._policies.items()},
                "switches": {k: v.model_dump(mode="json") for k, v in self._switches.items()},
                "people": {k: v.model_dump(mode="json") for k, v in self._people.items()},
            }
        )

    def compile(self) -> PolicySet:
        return PolicySet.compile(self._policies.values(), self._switches.values(), self._people.values())

    def take(self, text: bytes | None, variables: dict[str, str]) -> None:
        """Enter one event of the policies topic. Raises BadInput and changes nothing if it is bad."""
        self.enter(read_policy_event(text, variables))

    def enter(self, event: Policy | PolicySwitch | Person) -> None:
        """Enter an event that was read (`read_policy_event`); it takes the place of its predecessor."""
        match event:
            case PolicySwitch() as switch:
                self._switches[f"{switch.agent or ''}/{switch.action or ''}/{switch.subject or ''}"] = switch
            case Person() as person:
                self._people[person.person] = person
            case Policy() as policy:
                self._policies[f"{policy.policy_id}@{policy.version}"] = policy


def read_policy_event(text: bytes | None, variables: dict[str, str]) -> Policy | PolicySwitch | Person:
    """The policy, switch or person in a record of the policies topic; raises BadInput with its cause.

    Publishing checks types and examples with both engines; here, on the operator's side, the shape,
    the declared variables' types and the Rust engine's own parse are checked again.
    """
    if not text:
        raise BadInput(Cause.EMPTY, "expected a policy event, came an empty record")
    try:
        event = orjson.loads(text)
        kind = event.get("type") if isinstance(event, dict) else None
        if kind == PolicySwitch.event_type:
            return PolicySwitch.model_validate_json(orjson.dumps(current(PolicySwitch, event)))
        if kind == Person.event_type:
            return Person.model_validate_json(orjson.dumps(current(Person, event)))
        if kind != Policy.event_type:
            known = ", ".join(each.event_type for each in (Policy, PolicySwitch, Person))
            raise BadInput(Cause.UNKNOWN_TYPE, f"expected one of {known}, came {str(kind)[:64]!r}")
        policy = Policy.model_validate_json(orjson.dumps(current(Policy, event)))
        for name, declared in policy.variables.items():
            if variables.get(name) != declared:
                raise BadInput(
                    Cause.POLICY_REFUSED,
                    f"variable {name!r}: expected {variables.get(name, 'no such')}, came {declared}",
                )
        PolicySet.compile([policy.model_copy(update={"status": "active"})])
        return policy
    except orjson.JSONDecodeError as error:
        raise BadInput(Cause.NOT_JSON, f"expected a policy event as JSON: {error}") from None
    # also a date that is none, an integer canonical JSON does not know, JSON nested too deeply
    except (ValidationError, PolicyRefused, KeyError, TypeError, ValueError) as error:
        raise BadInput(Cause.POLICY_REFUSED, str(error)[:1000]) from None
