"""The simulated actuator of a domain, outside an embedded instance: `python docker/act.py machines`.

It tells ops/actuator.py where the broker is (FLYBALL_BOOTSTRAP_SERVERS) in the place where that
looks. Its memory of done commands is below FLYBALL_HOME: give that a volume.
"""

from __future__ import annotations

import sys

from jobs.settings import load_settings
from ops import actuator
from ops.home import Home


def main() -> None:
    servers = load_settings(sys.argv[1]).bootstrap_servers
    Home.default().write_state({"state": "elsewhere", "bootstrap_servers": servers})
    actuator.main()


if __name__ == "__main__":
    main()
