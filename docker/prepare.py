"""One-shot: makes a domain's topics and publishes its policies, people and models, as `./flyball up` would.

`python docker/prepare.py machines`, with FLYBALL_BOOTSTRAP_SERVERS naming the broker; on a secure one it first sets
users and rights, with FLYBALL_SECRETS and FLYBALL_INTERNAL_SERVERS. Run again it publishes what is new and
changes nothing else.
"""

from __future__ import annotations

import os
import sys
import time

from contracts.access import principal
from contracts.errors import FlyballError
from jobs.settings import load_settings
from ops import access, kafka, shipped
from ops.home import Home
from udfs import broker_access


def prepare(domain: str) -> list[str]:
    """What was published: people, "id@version" of policies, "alias/version" of models."""
    bootstrap = load_settings(domain).bootstrap_servers
    content = shipped.load(Home.default(), domain)
    secrets, internal = broker_access.folder(), os.environ.get("FLYBALL_INTERNAL_SERVERS")
    if secrets is not None and internal:
        access.establish(internal, secrets, domain)
    kafka.wait_for_broker(bootstrap, principal=principal(domain, "admin"))
    kafka.create_topics(bootstrap, domain)
    return shipped.publish_new(bootstrap, domain, content, now_ms=int(time.time() * 1000))


def main() -> None:
    for domain in sys.argv[1:]:
        try:
            for name in prepare(domain):
                print(f"{domain}: published {name}")
        except FlyballError as error:
            sys.exit(f"error: {domain}: {error}")
        print(f"{domain}: ready")


if __name__ == "__main__":
    main()
