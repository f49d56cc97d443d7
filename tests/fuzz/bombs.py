"""Runs every bomb on every parser under hard bounds; prints JSON: "parser: bomb" -> what went wrong.

A process of its own, because what goes wrong here may take the process with it.
"""

from __future__ import annotations

import json
import resource
import sys

from tests.fuzz.inputs import BOMBS, judge
from tests.fuzz.parsers import PARSERS

# Over what the imports have mapped already.
MORE_BYTES = 1 << 30
CPU_S = 200


def mapped_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def main() -> None:
    # What loads on first use (engines, threads) is loaded before memory is bound.
    for parser in PARSERS.values():
        for seed in parser.seeds:
            judge_quietly(parser.name, seed)
    if sys.platform == "linux":
        bound = mapped_bytes() + MORE_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    wrong = {}
    for name in PARSERS:
        for what, bomb in BOMBS.items():
            print(f"{name}: {what}", file=sys.stderr, flush=True)
            if problem := judge_quietly(name, bomb):
                wrong[f"{name}: {what}"] = problem
    print(json.dumps(wrong))


def judge_quietly(name: str, value: bytes) -> str | None:
    try:
        judge(PARSERS[name], value)
    except BaseException as error:
        return f"{type(error).__name__}: {error}"[:300]
    return None


if __name__ == "__main__":
    main()
