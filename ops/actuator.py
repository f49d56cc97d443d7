"""The actuator: does each command of a domain once with the handlers of its world, reports what it did.

What it promises is what ops/consume.py does. A command whose action no handler knows has the outcome `failed`.
Run as `python -m ops.actuator DOMAIN`; the supervisor does.
"""

from __future__ import annotations

import argparse
import signal

from jobs.settings import load_settings
from ops.consume import Commands, Patience
from ops.home import Home
from ops.world import Done, Order, load_world


def without_handler(order: Order) -> Done:
    return Done("failed", f"no handler for action {order.action!r}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("domain")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    home = Home.default()
    settings = load_settings(asked.domain)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with home.alone(f"actuator-{asked.domain}"), Commands.open(
        asked.domain, load_world(asked.domain).handlers(asked.seed),
        bootstrap_servers=str(home.read_state()["bootstrap_servers"]), group=f"{asked.domain}-actuator",
        is_alone=True,
        memory=home.run / "actuators" / f"{asked.domain}.sqlite", otherwise=without_handler,
        patience=Patience(settings.command_attempts, settings.command_retry_s),
    ) as commands:  # fmt: skip
        commands.step()  # takes the partitions up where they were committed
        (home.run / "actuators" / f"{asked.domain}.ready").touch()
        commands.run(signals=(signal.SIGTERM,))


if __name__ == "__main__":
    main()
