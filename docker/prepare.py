"""One-shot: makes a domain's topics and publishes its policies, people and models, as `./flyball up` would.

`python docker/prepare.py machines`, with FLYBALL_BOOTSTRAP_SERVERS naming the broker. Run again it
publishes what is new and changes nothing else.
"""

from __future__ import annotations

import sys
import time

from contracts.errors import FlyballError
from jobs.settings import load_settings
from ops import kafka, shipped
from ops.home import Home


def prepare(domain: str) -> list[str]:
    """What was published: people, "id@version" of policies, "alias/version" of models."""
    bootstrap = load_settings(domain).bootstrap_servers
    content = shipped.load(Home.default(), domain)
    kafka.wait_for_broker(bootstrap)
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
