"""Producers' keys: making one, and signing what the command line publishes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from contracts.data import Slug
from contracts.domain import load_domain
from contracts.errors import SetupFailed
from jobs.settings import Settings
from ops.people import made_key, own_key
from udfs.policy.signing import public_text
from udfs.signed_facts import OWN_TYPES, load_producers, sign_fact


@dataclass(frozen=True)
class MadeKey:
    """A new key pair: where the private key lies, and the public one as its entry in producers.yaml."""

    file: Path
    entry: str


def keygen(settings: Settings, key_id: str, file: Path) -> MadeKey:
    """Make the key `key_id` in `file`, which must not exist. Raises SetupFailed, also for a key_id that is taken."""
    contract = load_domain(settings.domain)
    try:
        TypeAdapter(Slug).validate_python(key_id)
    except ValidationError:
        raise SetupFailed(f"expected a key id like 'meters-2026', came {key_id[:64]!r}") from None
    if key_id in (key.key_id for key in load_producers(settings.producers_file, contract)):
        raise SetupFailed(f"{settings.producers_file}: key_id {key_id!r} is taken: choose another")
    if file.exists():
        raise SetupFailed(f"{file} exists: a key is never written over; choose another file")
    types = sorted(set(contract.facts) - OWN_TYPES)
    public = public_text(made_key(file))
    entry = (
        f"  - key_id: {key_id}\n"
        f"    producer: {key_id}   # who has the private key, for people\n"
        f"    public_key: {public}\n"
        f"    types: [{', '.join(types)}]   # with flyball.clock_ticked, also for 'run' and 'emit --tick'\n"
        '    subjects: ["*"]\n'
        '    # not_before: "2026-01-01T00:00:00Z"   # for what was signed from then on\n'
        '    # not_after: "2027-01-01T00:00:00Z"    # and before then\n'
    )
    return MadeKey(file, entry)


def signer(settings: Settings, file: Path) -> Callable[[bytes, str], bytes]:
    """Signs events for a topic with the private key in `file`, as the key of producers.yaml that belongs to it.

    Raises SetupFailed when none belongs to it.
    """
    private = own_key(file)
    public = public_text(private)
    keys = load_producers(settings.producers_file, load_domain(settings.domain))
    key_id = next((key.key_id for key in keys if key.public_key == public), None)
    if key_id is None:
        raise SetupFailed(
            f"{file}: expected a key of {settings.producers_file} ({', '.join(key.key_id for key in keys) or 'it has none'});"
            f" its public key is {public}"
        )
    return lambda value, topic: sign_fact(
        value, key=private, key_id=key_id, audience=topic, now_ms=int(time.time() * 1000)
    )
