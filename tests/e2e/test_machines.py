"""`machines`, from recorded readings to outcomes."""

from __future__ import annotations

import csv
import itertools
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from contracts.envelope import derive_id, parse_time_ms
from jobs.settings import ROOT
from ops.trace import SHORT_ID, find_chain, tree_data
from tests.loop import Loop, reading

SERIES = ROOT / "data" / "machines" / "machine_temperature_system_failure.csv"
WINDOWS = ROOT / "tests" / "data" / "nab" / "machine_temperature_windows.csv"
SHORT = 3000
START_MS = parse_time_ms("2014-08-01T00:00:00Z")


@pytest.fixture(scope="module")
def short_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first readings of the shipped series; the first failure lies in them."""
    file = tmp_path_factory.mktemp("input") / "short.csv"
    file.write_text("".join(SERIES.read_text().splitlines(keepends=True)[: SHORT + 1]))
    return file


def told(decision: dict[str, Any]) -> tuple[object, ...]:
    """Everything a decision says that does not name its subject."""
    data = decision["data"]
    return tuple(
        orjson.dumps(data[name]) if isinstance(data[name], dict) else data[name]
        for name in ("event_time", "decided_at_event_time", "verdict", "reason", "agent", "action",
                     "parameters", "confidence", "features", "counters", "policy_set_digest")
    )  # fmt: skip


def test_the_same_decisions_and_no_second_command_come_when_the_same_input_is_played_twice(
    machines: Loop, flyball: Callable[..., Any], short_file: Path
) -> None:
    for subject in ("line-a", "line-b"):
        said = flyball("emit", "machines", short_file, "--subject", subject, "--json")
        assert said.code == 0, said.err
        assert orjson.loads(said.out) == {"facts": SHORT, "refused": 0, "not_sent": []}
    machines.settle()
    first = machines.events("decisions", "line-a")
    commands = machines.events("commands", "line-a")
    assert commands, "an alarm lies in the slice"
    assert [told(d) for d in first] == [told(d) for d in machines.events("decisions", "line-b")]

    assert flyball("emit", "machines", short_file, "--subject", "line-a").code == 0
    machines.settle()
    again = machines.events("decisions", "line-a")
    assert again[: len(first)] == first
    counted = Counter(d["data"]["proposal_id"] for d in again)
    assert set(counted.values()) == {1}, "no proposal is decided twice"
    assert [d["data"]["verdict"] for d in again[len(first) :]].count("allow") == 0
    assert machines.events("commands", "line-a") == commands
    assert len(machines.events("outcomes", "line-a")) == len(commands)


def test_a_chain_leads_from_a_fact_to_its_outcome_when_an_action_is_taken(machines: Loop) -> None:
    """One hot machine among others, loud enough for the rule."""
    hot = [f"hot-{n}" for n in range(12)]
    noise = random.Random(1)
    usual = [50 + noise.gauss(0, 1) for _ in range(240)]
    heat = [58 + noise.gauss(0, 1) + n / 10 for n in range(20)]
    for subject in hot:
        machines.emit(*(reading(subject, START_MS + n * 300_000, t) for n, t in enumerate([*usual, *heat])))
    machines.settle()
    failed = []
    for subject in hot:
        commands = machines.events("commands", subject, action="activate_cooling")
        assert len(commands) == 1, "once a day is enough"
        (outcome,) = machines.events("outcomes", subject, action="activate_cooling")
        assert outcome["causationid"] == commands[0]["id"]
        urgent = [c for c in machines.events("commands", subject) if c["data"]["parameters"].get("priority") == "urgent"]
        if outcome["data"]["status"] == "failed":
            failed.append(subject)
            assert len(urgent) == 1, "cooling that failed is escalated"
        else:
            assert urgent == []
    assert failed, "with this seed some cooling fails"

    (urgent,) = [c for c in machines.events("commands", failed[0]) if c["data"]["parameters"].get("priority") == "urgent"]
    assert urgent["data"]["agent"] == "escalation-rule"
    assert urgent["hops"] == 1
    (root,) = tree_data(find_chain(machines.bootstrap, "machines", urgent["id"][:SHORT_ID]))
    path = path_to(root, urgent["id"])
    assert [node["noun"] for node in path] == ["fact", "situation", "proposal", "decision", "command", "outcome",
                     "situation", "proposal", "decision", "command"]  # fmt: skip
    (end,) = path[-1]["effects"]
    assert end["noun"] == "outcome"
    for cause, effect in itertools.pairwise(path):
        assert effect["event"]["causationid"] == cause["id"]
        assert effect["event"]["correlationid"] == root["id"]


def path_to(node: dict[str, Any], wanted: str) -> list[dict[str, Any]]:
    """The nodes from `node` down to the one with the id `wanted`; empty when it is not below."""
    if node["id"] == wanted:
        return [node]
    for effect in node["effects"]:
        if below := path_to(effect, wanted):
            return [node, *below]
    return []


def test_failures_are_found_and_quiet_times_left_alone_when_the_shipped_series_is_played(
    machines: Loop, flyball: Callable[..., Any]
) -> None:
    said = flyball("emit", "machines", SERIES, "--rate", "max", "--json")
    assert said.code == 0, said.err
    readings = orjson.loads(said.out)["facts"]
    machines.settle(timeout_s=300)
    windows = [
        (parse_time_ms(row["window_start"]), parse_time_ms(row["window_end"]))
        for row in csv.DictReader(WINDOWS.open())
        if row["series"] == SERIES.stem
    ]
    sent = [
        parse_time_ms(c["data"]["event_time"])
        for c in machines.events("commands", SERIES.stem, action="schedule_maintenance")
    ]
    found = [any(start <= at <= end for at in sent) for start, end in windows]
    outside = [at for at in sent if not any(start <= at <= end for start, end in windows)]
    times = [parse_time_ms(row["timestamp"]) for row in csv.DictReader(SERIES.open())]
    quiet = sum(1 for at in times if not any(start <= at <= end for start, end in windows))
    assert readings == len(times) == 22_695
    assert sum(found) >= 3, f"windows with a command: {found}"
    assert 1000 * len(outside) / quiet <= 1.5, f"{len(outside)} commands in {quiet} quiet readings"
    situations = machines.situations("reading_scored", SERIES.stem)
    assert len(situations) == readings, "every reading was scored, also of equal rows"
    assert situations[0]["id"] == derive_id(situations[0]["causationid"], "context", "machines.reading_scored")
