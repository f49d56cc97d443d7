"""What a domain ships: policies, people, models and prompts, checked, and published where a topic lacks them."""

from __future__ import annotations

from dataclasses import dataclass

from contracts.approval import Person
from contracts.model import ModelAlias
from contracts.policy import Policy
from contracts.prompt import Prompt
from ops import models, people, policies, prompts
from ops.home import Home


@dataclass(frozen=True)
class Shipped:
    """The checked content of conf/<domain>."""

    policies: list[Policy]
    people: list[Person]
    models: list[ModelAlias]
    prompts: list[Prompt]


def load(home: Home, domain: str, *, makes_keys: bool = True) -> Shipped:
    """Everything of conf/<domain>; keys of people that are missing are made in `home`, or left out with their people.

    Raises PolicyRefused, SetupFailed or ModelRefused for what is not as it should be.
    """
    return Shipped(
        policies.check_files(domain, policies.policy_files(domain)),
        people.people(home, domain, makes_keys=makes_keys),
        models.shipped_models(domain),
        prompts.shipped_prompts(domain),
    )


def publish_new(bootstrap_servers: str, domain: str, shipped: Shipped, *, now_ms: int) -> list[str]:
    """Publish what the domain's topics do not hold yet; gives the names of it."""
    changed = people.news(people.published(bootstrap_servers, domain), shipped.people)
    policies.publish_people(bootstrap_servers, domain, changed, now_ms=now_ms)
    known = policies.published(bootstrap_servers, domain)
    fresh = [
        policy.model_copy(update={"moved_because": f"shipped in conf/{domain}"})
        for policy in shipped.policies if f"{policy.policy_id}@{policy.version}" not in known
    ]  # fmt: skip
    names = policies.publish(bootstrap_servers, domain, fresh, now_ms=now_ms)
    aliases = {str(event.get("subject")) for _, event in models.published(bootstrap_servers, domain)}
    new_models = [m for m in shipped.models if f"{m.alias}/{m.version}" not in aliases]
    models.publish(bootstrap_servers, domain, new_models, now_ms=now_ms)
    asked_with = prompts.published(bootstrap_servers, domain)
    new_prompts = [p for p in shipped.prompts if prompts.is_news(p, asked_with)]
    told = prompts.publish(bootstrap_servers, domain, new_prompts, now_ms=now_ms)
    return [each.person for each in changed] + names + [f"{m.alias}/{m.version}" for m in new_models] + told
