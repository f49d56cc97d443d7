"""One-shot: makes a domain's topics and publishes its policies, people and models, as `./flyball up` would.

`python docker/prepare.py machines`, with FLYBALL_BOOTSTRAP_SERVERS naming the broker; on a secure one it first sets
users and rights, with FLYBALL_SECRETS and FLYBALL_INTERNAL_SERVERS. Run again it publishes what is new and
changes nothing else.

It makes no key of a person unless it is told to, by --make-keys, where FLYBALL_HOME is on a disk that stays: a key that
vanishes with its container leaves somebody who can answer nothing. Nobody published gets another key this way.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Collection
from dataclasses import replace

from contracts.access import principal
from contracts.errors import FlyballError
from jobs.settings import load_settings
from ops import access, kafka, people, shipped
from ops.home import Home
from udfs import broker_access


def prepare(domain: str, *, makes_keys: bool = False) -> list[str]:
    """What was published: people, "id@version" of policies, "alias/version" of models."""
    home, bootstrap = Home.default(), load_settings(domain).bootstrap_servers
    content = shipped.load(home, domain, makes_keys=False)
    secrets, internal = broker_access.folder(), os.environ.get("FLYBALL_INTERNAL_SERVERS")
    if secrets is not None and internal:
        access.establish(internal, secrets, domain)
    kafka.wait_for_broker(bootstrap, principal=principal(domain, "admin"))
    kafka.create_topics(bootstrap, domain)
    known = people.published(bootstrap, domain)
    content = replace(content, people=people.people(home, domain, known=known, makes_keys=makes_keys))
    done = shipped.publish_new(bootstrap, domain, content, now_ms=int(time.time() * 1000))
    if keyless := people.without_key(home, domain):
        print(_about_keys(domain, keyless, {each.person for each in content.people}), file=sys.stderr)
    return done


def _about_keys(domain: str, keyless: list[str], published: Collection[str]) -> str:
    """One line about those whose private key is not here: who cannot answer, and what to do."""
    silent = [name for name in keyless if name not in published]
    kept = [name for name in keyless if name in published]
    told = [f"{', '.join(silent)} cannot answer, having no key"] if silent else []
    told += [f"{', '.join(kept)} can answer with the key published before only, which is not here"] if kept else []
    return (
        f"{domain}: {'; '.join(told)}. './flyball producers keygen {domain} NAME --output NAME.pem' makes one: put its"
        f" public_key into conf/{domain}/people.yaml and run this again; NAME.pem is for 'approve --key'"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Make domains' topics and publish what they ship.")
    parser.add_argument("domains", nargs="+", metavar="DOMAIN")
    parser.add_argument("--make-keys", action="store_true", help="for people without one; FLYBALL_HOME must last")
    asked = parser.parse_args()
    for domain in asked.domains:
        try:
            for name in prepare(domain, makes_keys=asked.make_keys):
                print(f"{domain}: published {name}")
        except FlyballError as error:
            sys.exit(f"error: {domain}: {error}")
        print(f"{domain}: ready")


if __name__ == "__main__":
    main()
