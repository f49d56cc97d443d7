"""Stop and go on: `down`, then `run --resume` with an input that begins with what was played before.

The last test of the shared instance, because it stops it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from contracts.envelope import parse_time_ms
from contracts.fact import ClockTicked
from jobs.settings import ROOT
from tests.loop import Loop

SERIES = ROOT / "data" / "machines" / "machine_temperature_system_failure.csv"
FIRST, MORE = 2500, 200


def untimed(loop: Loop, name: str) -> list[dict[str, Any]]:
    """Everything of a topic but ticks, which end an input on the outcomes too."""
    return [event for event in loop.events(name) if event["type"] != ClockTicked.event_type]


def test_nothing_is_decided_again_and_work_goes_on_when_an_instance_is_resumed(
    machines: Loop, flyball: Callable[..., Any], tmp_path: Path
) -> None:
    lines = SERIES.read_text().splitlines(keepends=True)
    first, whole = tmp_path / "first.csv", tmp_path / "whole.csv"
    first.write_text("".join(lines[: FIRST + 1]))
    whole.write_text("".join([lines[0], *lines[FIRST - 20 : FIRST + 1 + MORE]]))  # overlaps by 21
    assert flyball("emit", "machines", first, "--subject", "resumed").code == 0
    machines.settle()
    decided = [d["data"]["proposal_id"] for d in machines.events("decisions", "resumed")]
    commands = [c["id"] for c in machines.events("commands", "resumed")]
    outcomes = [o["id"] for o in machines.events("outcomes", "resumed")]
    totals = {name: len(untimed(machines, name)) for name in ("decisions", "commands", "outcomes")}
    assert decided
    machines.close()

    stopped = flyball("down")
    assert stopped.code == 0, stopped.err
    assert flyball("status").code == 1
    report = tmp_path / "out" / "report.json"
    said = flyball(
        "run", "machines", "--resume", "--input", whole, "--subject", "resumed", "--rate", "max",
        "--report", report, "--keep", timeout_s=400,
    )  # fmt: skip
    assert said.code == 0, said.out[-2000:] + said.err[-3000:]

    again = Loop(machines.home, "machines")
    again.settle()
    now = {name: again.events(name, "resumed") for name in ("decisions", "commands", "outcomes")}
    assert [d["data"]["proposal_id"] for d in now["decisions"]][: len(decided)] == decided
    ids = [d["data"]["proposal_id"] for d in now["decisions"]]
    assert len(ids) == len(set(ids)), "no proposal is decided twice"
    assert [c["id"] for c in now["commands"]][: len(commands)] == commands
    assert [o["id"] for o in now["outcomes"]][: len(outcomes)] == outcomes
    assert len({c["id"] for c in now["commands"]}) == len(now["commands"]) == len(now["outcomes"])
    for name, before in totals.items():
        elsewhere = len(untimed(again, name)) - len(now[name])
        assert elsewhere == before - len({"decisions": decided, "commands": commands, "outcomes": outcomes}[name]), name
    seen = again.situations("reading_scored", "resumed")
    assert [s["data"]["readings_seen"] for s in seen] == list(range(1, FIRST + MORE + 1)), "state went on"
    again.close()
    assert flyball("down").code == 0

    told = orjson.loads(report.read_bytes())
    assert told["facts"] == MORE + 21
    assert {j["name"]: j["state"] for j in told["jobs"]} == {
        f"machines.{name}": "RUNNING" for name in ("context", "propose", "govern")
    }
    assert sum(told["decisions"][v] for v in ("allow", "deny", "hold")) == len(ids) - len(decided)
    written = (report.parent / "decisions.jsonl").read_bytes().splitlines()
    assert [orjson.loads(line)["data"]["proposal_id"] for line in written] == ids[len(decided) :]
    assert all(parse_time_ms(orjson.loads(line)["data"]["event_time"]) for line in written)
    for name in ("latency_ms", "seconds", "throughput_facts_per_s", "dead_letters", "outcomes", "commands"):
        assert name in told
