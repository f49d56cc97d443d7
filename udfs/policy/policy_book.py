"""Every policy version and switch, as the events of the policies topic left them."""

from __future__ import annotations

import orjson
from pydantic import ValidationError

from contracts.dead_letter import Cause
from contracts.errors import BadInput, PolicyRefused
from contracts.policy import Policy, PolicySwitch
from udfs.policy.policy_set import PolicySet


class PolicyBook:
    """Every policy version and switch there is, by the last event that named it."""

    def __init__(self, policies: dict[str, Policy], switches: dict[str, PolicySwitch]) -> None:
        self._policies = policies
        self._switches = switches

    @classmethod
    def from_json(cls, text: str | None) -> PolicyBook:
        raw = {"policies": {}, "switches": {}} if text is None else orjson.loads(text)
        return cls(
            {k: Policy.model_validate_json(orjson.dumps(v)) for k, v in raw["policies"].items()},
            {k: PolicySwitch.model_validate(v) for k, v in raw["switches"].items()},
        )

    def to_json(self) -> str:
        return orjson.dumps(
            {
                "policies": {k: v.model_dump(mode="json") for k, v in self._policies.items()},
                "switches": {k: v.model_dump(mode="json") for k, v in self._switches.items()},
            }
        ).decode()

    def compile(self) -> PolicySet:
        return PolicySet.compile(self._policies.values(), self._switches.values())

    def take(self, text: bytes | None, variables: dict[str, str]) -> None:
        """Enter one event of the policies topic. Raises BadInput and changes nothing if it is bad."""
        taken = read_policy_event(text, variables)
        if isinstance(taken, PolicySwitch):
            self._switches[f"{taken.agent or ''}/{taken.action or ''}/{taken.subject or ''}"] = taken
        else:
            self._policies[f"{taken.policy_id}@{taken.version}"] = taken


def read_policy_event(text: bytes | None, variables: dict[str, str]) -> Policy | PolicySwitch:
    """The policy or switch in a record of the policies topic; raises BadInput with its cause.

    Publishing checks types and examples with both engines; here, on the operator's side, the shape,
    the declared variables' types and the Rust engine's own parse are checked again.
    """
    if not text:
        raise BadInput(Cause.EMPTY, "expected a policy event, came an empty record")
    try:
        event = orjson.loads(text)
        kind = event.get("type") if isinstance(event, dict) else None
        if kind == PolicySwitch.event_type:
            return PolicySwitch.model_validate_json(orjson.dumps(event["data"]))
        if kind != Policy.event_type:
            raise BadInput(
                Cause.UNKNOWN_TYPE,
                f"expected {Policy.event_type!r} or {PolicySwitch.event_type!r}, came {kind!r}",
            )
        policy = Policy.model_validate_json(orjson.dumps(event["data"]))
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
    except (ValidationError, PolicyRefused, KeyError) as error:
        raise BadInput(Cause.POLICY_REFUSED, str(error)[:1000]) from None
