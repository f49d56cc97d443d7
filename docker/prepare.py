"""One-shot: makes a domain's topics and publishes its policies and models, as `./flyball up` would.

`python docker/prepare.py machines`, with FLYBALL_BOOTSTRAP_SERVERS naming the broker. Run again it
publishes what is new and changes nothing else.
"""

from __future__ import annotations

import sys
import time

from contracts.errors import FlyballError
from jobs.settings import load_settings
from ops import kafka, models, policies


def prepare(domain: str) -> list[str]:
    """What was published, as "id@version" and "alias/version"."""
    bootstrap = load_settings(domain).bootstrap_servers
    checked = policies.check_files(domain, policies.policy_files(domain))
    shipped = models.shipped_models(domain)
    kafka.wait_for_broker(bootstrap)
    kafka.create_topics(bootstrap, domain)
    now_ms = int(time.time() * 1000)
    known = policies.published(bootstrap, domain)
    new_policies = [p for p in checked if f"{p.policy_id}@{p.version}" not in known]
    names = policies.publish(bootstrap, domain, new_policies, now_ms=now_ms)
    aliases = {str(event["subject"]) for _, event in models.published(bootstrap, domain)}
    new_models = [m for m in shipped if f"{m.alias}/{m.version}" not in aliases]
    models.publish(bootstrap, domain, new_models, now_ms=now_ms)
    return names + [f"{m.alias}/{m.version}" for m in new_models]


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
