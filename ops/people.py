"""People of a domain: conf/<domain>/people.yaml, their keys, and the events `govern` knows them by.

In the embedded default each person's key pair is made at first bring-up and lies in
`.flyball/keys/<domain>/<person>.pem` (readable by its owner only). Where the file gives a `public_key`,
the private one is the person's own and stays with them (`approve ... --key FILE`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import orjson
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from pydantic import BaseModel, ConfigDict, ValidationError

from contracts.approval import Person, PersonName, PublicKey, Right
from contracts.data import Slug
from contracts.errors import SetupFailed
from jobs.settings import ROOT
from ops import versions
from ops.home import Home
from udfs.policy.signing import public_text
from udfs.yaml_file import read_yaml

# The key of the domain's audit heads lies among those of people (ops/sealer.py).
AUDIT_KEY = "audit-heads"


class _Role(BaseModel):
    model_config = ConfigDict(extra="forbid")

    may: tuple[Right, ...] = ()


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    person: PersonName
    roles: tuple[Slug, ...] = ()
    public_key: PublicKey | None = None


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    roles: dict[Slug, _Role]
    people: tuple[_Entry, ...]


def people_file(domain: str) -> Path:
    return ROOT / "conf" / domain / "people.yaml"


def read_people(path: Path) -> _File:
    """People and roles as conf/<domain>/people.yaml has them; nobody without the file. Raises SetupFailed."""
    if not path.exists():
        return _File(roles={}, people=())
    try:
        found = _File.model_validate(read_yaml(path))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise SetupFailed(f"{path}: {place}: {first['msg']}, came {first['input']!r:.100}") from None
    names = [entry.person for entry in found.people]
    if AUDIT_KEY in names:
        raise SetupFailed(f"{path}: expected another name than {AUDIT_KEY!r}: that key signs the audit heads")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise SetupFailed(f"{path}: expected each person once, came {twice} twice")
    for entry in found.people:
        if unknown := sorted(set(entry.roles) - set(found.roles)):
            raise SetupFailed(f"{path}: {entry.person}: expected roles of {sorted(found.roles)}, came {unknown}")
    return found


def key_file(home: Home, domain: str, person: str) -> Path:
    return home.path / "keys" / domain / f"{person}.pem"


def own_key(path: Path) -> Ed25519PrivateKey:
    """The private key in a PEM file (PKCS #8). Raises SetupFailed saying what was expected."""
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise SetupFailed(f"{path}: expected an unencrypted Ed25519 private key (PEM): {error}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise SetupFailed(f"{path}: expected an Ed25519 key, came {type(key).__name__}")
    return key


def made_key(path: Path) -> Ed25519PrivateKey:
    """The key in `path`; a new one when there is none. Of two who make it at once, one's is taken by both."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        staged = path.with_suffix(f".{os.getpid()}.new")
        pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        with os.fdopen(os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(pem)
        with suppress(FileExistsError):
            path.hardlink_to(staged)
        staged.unlink()
    return own_key(path)


def people(home: Home, domain: str, *, known: Mapping[str, Person] = {}, makes_keys: bool = True) -> list[Person]:
    """The people of conf/<domain>/people.yaml with their public keys: of the file, otherwise of the private key in `home`.

    Whoever has neither keeps the key they are `known` by. For the others keys are made; without `makes_keys`, which is
    for a home that does not last, they are left out. Raises SetupFailed for a file that is none.
    """
    file = read_people(people_file(domain))
    found = []
    for entry in file.people:
        key = entry.public_key
        if key is None:
            key = _key_of(key_file(home, domain, entry.person), known.get(entry.person), makes_keys)
        if key is not None:
            may = tuple(sorted({right for role in entry.roles for right in file.roles[role].may}))
            found.append(Person(person=entry.person, roles=entry.roles, may=may, public_key=key))
    return found


def _key_of(path: Path, known: Person | None, makes_keys: bool) -> PublicKey | None:
    if not path.exists():
        if known is not None and known.is_active:
            return known.public_key
        if not makes_keys:
            return None
    return public_text(made_key(path))


def without_key(home: Home, domain: str) -> list[str]:
    """Those to whom people.yaml gives no public key, and of whom `home` has no private one."""
    entries = read_people(people_file(domain)).people
    return [e.person for e in entries if e.public_key is None and not key_file(home, domain, e.person).exists()]


def published(bootstrap_servers: str, domain: str) -> dict[str, Person]:
    """Everybody `govern` knows, by name, as the newest event about them left it."""
    found: dict[str, Person] = {}
    for _, event in versions.events(bootstrap_servers, domain, "policies"):
        if event.get("type") == Person.event_type:
            try:
                person = Person.model_validate_json(orjson.dumps(event["data"]))
            except (ValidationError, KeyError, TypeError):
                continue
            found[person.person] = person
    return found


def news(known: Mapping[str, Person], wanted: Sequence[Person]) -> list[Person]:
    """What must be published so that `govern` knows these people and no others."""
    changed = [person for person in wanted if known.get(person.person) != person]
    names = {person.person for person in wanted}
    gone = [
        person.model_copy(update={"is_active": False})
        for name, person in known.items()
        if name not in names and person.is_active
    ]
    return changed + gone
