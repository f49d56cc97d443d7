"""Flink's config.yaml for containers: conf/flink.yaml, and what differs between machines.

`python docker/configure.py /opt/flink/conf/config.yaml` writes it over the one that Flink ships, of
which only the options for Java are kept.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

FLINK_YAML = Path(__file__).resolve().parent.parent / "conf" / "flink.yaml"
CHECKPOINTS = "file:///var/lib/flyball/checkpoints"
EVERYWHERE = "0.0.0.0"
# Ours: ops/cluster.py sets the same for the embedded cluster, with its own addresses and folders.
RUNTIME: dict[str, Any] = {
    # For table.generated-code.max-length, see conf/flink.yaml.
    "env": {"java": {"opts": {"taskmanager": "-XX:-DontCompileHugeMethods"}}},
    "jobmanager": {"rpc": {"address": "jobmanager", "port": 6123}, "bind-host": EVERYWHERE},
    "taskmanager": {"bind-host": EVERYWHERE},
    "rest": {"address": "jobmanager", "bind-address": EVERYWHERE, "port": 8081},
    "sql-gateway": {"endpoint": {"rest": {"address": EVERYWHERE, "port": 8083}}},
    "execution": {
        "target": "remote",
        "attached": False,
        "checkpointing": {"dir": CHECKPOINTS, "savepoint-dir": f"{CHECKPOINTS}/savepoints"},
    },
}


def merged(base: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    """`base` with `extra` over it, mapping by mapping."""
    both = dict(base)
    for key, value in extra.items():
        before = both.get(key)
        both[key] = merged(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return both


def configuration(shipped: dict[str, Any]) -> dict[str, Any]:
    """The configuration, given the one of the Flink distribution."""
    ours = YAML(typ="safe").load(FLINK_YAML.read_text())
    return merged({"env": shipped["env"]}, merged(ours, RUNTIME))


def main() -> None:
    path = Path(sys.argv[1])
    config = configuration(YAML(typ="safe").load(path.read_text()))
    yaml = YAML()
    yaml.width = 1_000_000  # Flink's scripts read a value from one line
    with path.open("w") as file:
        yaml.dump(config, file)


if __name__ == "__main__":
    main()
