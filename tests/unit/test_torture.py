"""The checker of `./flyball torture` finds what is lost, repeated and wrong; the inputs are spoilt as told."""

from __future__ import annotations

import ast
import copy
import json
import signal
import sys
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import pytest
from rich.console import Console

from contracts.errors import SetupFailed
from ops.audit import Verified
from ops.home import Home
from ops.torture import bed, checker, facts, faults, run
from ops.torture.bed import Result, check_audit
from ops.torture.checker import Findings, Seen, check, wanted
from ops.torture.facts import Fact
from ops.torture.traffic import Tap
from udfs.policy.audit import Audit
from udfs.policy.heads import Seals

START_MS = 1_735_689_600_000


def amounts(*values: int, subject: str = "s", apart_ms: int = 10_000) -> list[Fact]:
    return [Fact(subject, n + 1, value, START_MS + n * apart_ms) for n, value in enumerate(values)]


def verdicts(given: list[Fact]) -> list[str]:
    due = wanted(given)
    return [due[("settle", fact.id)].reason for fact in dict.fromkeys(given)]


# ------------------------------------------------------------------------------ what is due


def test_an_amount_is_denied_when_it_is_large() -> None:
    assert verdicts(amounts(89, 90)) == ["allowed_by_policy", "forbidden_by_policy"]


def test_the_fifth_within_a_minute_is_denied_and_one_a_minute_later_is_not() -> None:
    assert verdicts(amounts(1, 1, 1, 1, 1, 1, 1)) == [
        *["allowed_by_policy"] * 4, "rate_limit", "rate_limit", "allowed_by_policy",
    ]  # fmt: skip


def test_an_amount_is_denied_when_six_hundred_are_used_up_in_ten_minutes() -> None:
    given = amounts(*[80] * 8, 40, apart_ms=30_000)
    assert verdicts(given) == [*["allowed_by_policy"] * 7, "budget_limit", "allowed_by_policy"]


def test_the_clock_stays_when_an_earlier_fact_comes() -> None:
    late = Fact("s", 9, 1, START_MS - 60_000)
    assert verdicts([*amounts(1, 1, 1, 1), late])[-1] == "rate_limit"


def test_a_repeat_is_not_decided_again_and_counts_only_when_it_is_far_behind() -> None:
    first = amounts(*[1] * 40)
    soon = wanted([*first, first[-1], Fact("s", 99, 5, START_MS + 900_000)])
    later = wanted([*first, first[0], Fact("s", 99, 5, START_MS + 900_000)])
    key = ("settle", Fact("s", 99, 5, 0).id)
    assert soon[key].parameters["seen"] == 41
    assert later[key].parameters["seen"] == 42
    assert soon.keys() == later.keys()


def test_ten_minutes_are_summed_once_for_each_subject() -> None:
    due = wanted([*amounts(1, 2, 3, apart_ms=300_000), *amounts(7, subject="t")])
    sums = {key[1]: dict(each.parameters) for key, each in due.items() if key[0] == "note_sum"}
    assert sums == {
        f"s-sums {START_MS + 600_000}": {"facts": 2, "amounts": 3},
        f"s-sums {START_MS + 1_200_000}": {"facts": 1, "amounts": 3},
        f"t-sums {START_MS + 600_000}": {"facts": 1, "amounts": 7},
    }


# ------------------------------------------------------------------------------ what is found

GIVEN = amounts(10, 95, 20)
INSTANTS = {str(START_MS): START_MS, "end": START_MS + 600_000}


def perfect() -> dict[str, Any]:
    """What a loop without fault writes about GIVEN."""
    decisions: list[dict[str, Any]] = []
    commands: list[dict[str, Any]] = []
    outcomes: list[dict[str, Any]] = []
    for (action, what), due in wanted(GIVEN).items():
        name = f"{action} {what}"
        command_id = f"command of {name}" if due.is_commanded else None
        decisions.append(
            {
                "id": f"decision of {name}", "subject": "s" if action == "settle" else "s-sums", "correlationid": what,
                "data": {
                    "action": action, "event_time": str(START_MS) if action == "settle" else "end",
                    "verdict": due.verdict, "reason": due.reason, "parameters": dict(due.parameters),
                    "counters": dict(due.counters), "command_id": command_id,
                },
            }
        )  # fmt: skip
        if command_id:
            data = {"command_id": command_id, "action": action, "parameters": dict(due.parameters), "decision_id": f"decision of {name}"}
            commands.append({"id": command_id, "correlationid": what, "subject": "s", "data": data})
            outcomes.append({"id": f"outcome of {name}", "correlationid": what, "data": {"command_id": command_id, "status": "succeeded"}})
    asked = {str(event["data"]["command_id"]): 1 for event in commands}
    return {"decisions": decisions, "commands": commands, "outcomes": outcomes, "dead_letters": [], "asked": asked}


def found(came: dict[str, Any], *, poison: int = 0, allows_repeats: bool = False) -> tuple[int, int, int]:
    result: Findings = check(wanted(GIVEN), poison, Seen(**came), INSTANTS, allows_repeats=allows_repeats)
    assert len(result.told) == min(5, result.lost) + min(5, result.repeated) + min(5, result.wrong)
    return result.lost, result.repeated, result.wrong


def test_nothing_is_found_when_everything_came_once() -> None:
    assert found(perfect()) == (0, 0, 0)


@pytest.mark.parametrize("what", ["decisions", "commands", "outcomes"])
def test_it_is_lost_when_it_did_not_come(what: str) -> None:
    came = perfect()
    del came[what][0]
    assert found(came)[0] >= 1


@pytest.mark.parametrize("what", ["decisions", "commands"])
def test_it_is_repeated_when_it_came_twice(what: str) -> None:
    came = perfect()
    came[what].append(copy.deepcopy(came[what][0]))
    assert found(came) == (0, 1, 0)


def test_an_outcome_is_repeated_when_it_came_again_as_another_event() -> None:
    came = perfect()
    came["outcomes"].append(copy.deepcopy(came["outcomes"][0]))
    assert found(came) == (0, 0, 0)
    came["outcomes"].append({**came["outcomes"][0], "id": "another"})
    assert found(came) == (0, 1, 1)
    assert found(came, allows_repeats=True) == (0, 0, 1)


def test_an_outcome_is_wrong_when_it_came_again_under_its_id_and_says_something_else() -> None:
    came = perfect()
    again = copy.deepcopy(came["outcomes"][0])
    came["outcomes"].append({**again, "data": {**again["data"], "cost": 7}})
    assert found(came) == (0, 1, 1)
    assert found(came, allows_repeats=True) == (0, 0, 1)


def test_a_command_is_wrong_when_it_came_again_under_another_id() -> None:
    came = perfect()
    came["commands"].append({**came["commands"][0], "id": "another"})
    assert found(came) == (0, 1, 1)
    assert found(came, allows_repeats=True) == (0, 0, 1)


def test_the_same_again_is_counted_apart_at_least_once() -> None:
    came = perfect()
    for what in ("decisions", "commands"):
        came[what].append(copy.deepcopy(came[what][0]))
    findings = check(wanted(GIVEN), 0, Seen(**came), INSTANTS, allows_repeats=True)
    assert (findings.repeated, findings.recognised) == (0, 2)
    assert Result("f", "at_least_once", 3, findings, None).told()["recognised_repeats"] == 2


def test_only_the_same_again_is_green_at_least_once() -> None:
    def is_green(again: dict[str, Any], delivery: Literal["exactly_once", "at_least_once"]) -> bool:
        came = perfect()
        came["commands"].append({**came["commands"][0], **again})
        findings = check(wanted(GIVEN), 0, Seen(**came), INSTANTS, allows_repeats=delivery == "at_least_once")
        return Result("f", delivery, 3, findings, None).is_green

    assert is_green({}, "at_least_once")
    assert not is_green({}, "exactly_once")
    assert not is_green({"id": "another"}, "at_least_once")


@pytest.mark.parametrize(
    ("field", "value"),
    [("verdict", "deny"), ("reason", "no_policy_matched"), ("parameters", {"number": 1}), ("counters", {"hops": 0})],
)
def test_a_decision_is_wrong_when_it_says_something_else(field: str, value: object) -> None:
    came = perfect()
    came["decisions"][0]["data"][field] = value
    assert found(came)[2] == 1


def test_a_decision_is_wrong_when_no_fact_leads_to_it() -> None:
    came = perfect()
    came["decisions"].append({**came["decisions"][0], "correlationid": "nobody"})
    assert found(came) == (0, 0, 1)


def test_a_command_is_wrong_when_no_decision_leads_to_it() -> None:
    came = perfect()
    came["commands"].append({"correlationid": "x", "data": {"command_id": "x"}})
    assert found(came) == (0, 0, 1)


def test_a_repeat_is_wrong_when_it_has_another_id() -> None:
    came = perfect()
    came["decisions"].append({**copy.deepcopy(came["decisions"][0]), "id": "another"})
    assert found(came, allows_repeats=True) == (0, 0, 1)


def test_a_repeat_is_wrong_when_it_says_something_else_at_least_once() -> None:
    came = perfect()
    again = copy.deepcopy(came["decisions"][0])
    again["data"]["verdict"] = "deny"
    came["decisions"].append(again)
    assert found(came, allows_repeats=True) == (0, 0, 1)


def test_a_bad_record_is_lost_when_it_is_not_in_dead_letters() -> None:
    assert found(perfect(), poison=2) == (2, 0, 0)


def test_a_missing_dead_letter_is_lost_though_another_came_twice() -> None:
    assert found(perfect() | {"dead_letters": ["a", "a"]}, poison=2) == (1, 1, 0)
    assert found(perfect() | {"dead_letters": ["a", "a"]}, poison=2, allows_repeats=True) == (1, 0, 0)


def test_a_dead_letter_is_wrong_when_it_is_about_a_good_record() -> None:
    for allows_repeats in (False, True):
        assert found(perfect() | {"dead_letters": ["a", "b"]}, poison=1, allows_repeats=allows_repeats) == (0, 0, 1)


@pytest.mark.parametrize(
    ("field", "value"), [("action", "note_sum"), ("parameters", {"number": 1, "amount": 11}), ("decision_id", "another")]
)
def test_a_command_is_wrong_when_it_does_something_else_than_was_decided(field: str, value: object) -> None:
    came = perfect()
    came["commands"][0]["data"][field] = value
    assert found(came) == (0, 0, 1)


@pytest.mark.parametrize("what", ["decisions", "commands"])
def test_it_is_wrong_when_it_is_about_another_subject(what: str) -> None:
    came = perfect()
    came[what][0]["subject"] = "t"
    assert found(came) == (0, 0, 1)


def test_a_repeated_command_is_wrong_when_it_says_something_else_at_least_once() -> None:
    came = perfect()
    again = copy.deepcopy(came["commands"][0])
    again["data"]["parameters"]["amount"] += 1
    came["commands"].append(again)
    assert found(came, allows_repeats=True) == (0, 0, 1)


def test_a_settlement_is_wrong_when_nobody_saw_a_command_for_it() -> None:
    came = perfect()
    came["asked"]["of an undone transaction"] = 1
    assert found(came) == (0, 0, 1)


@pytest.mark.parametrize(("times", "may", "wrong"), [(1, 0, 0), (2, 0, 1), (10, 0, 1), (2, 1, 0), (3, 1, 1)])
def test_a_settlement_is_wrong_when_it_was_asked_for_more_often_than_the_fault_may_cause(
    times: int, may: int, wrong: int
) -> None:
    came = perfect()
    came["asked"][next(iter(came["asked"]))] = times
    for allows_repeats in (False, True):
        findings = check(
            wanted(GIVEN), 0, Seen(**came), INSTANTS, allows_repeats=allows_repeats, asked_again=may
        )
        assert (findings.lost, findings.repeated, findings.wrong) == (0, 0, wrong)


def test_one_call_too_many_is_not_allowed_for_each_settlement_when_a_fault_may_cause_one() -> None:
    came = perfect()
    came["asked"] = dict.fromkeys(came["asked"], 2)
    assert len(came["asked"]) == 2
    assert check(wanted(GIVEN), 0, Seen(**came), INSTANTS, allows_repeats=True, asked_again=1).wrong == 1


def test_advice_is_decided_about_once_for_each_amount_that_it_is_asked_about() -> None:
    given = amounts(10, 95, 100)
    advice = [{"correlationid": fact.id} for fact in given]

    def of(*events: dict[str, str]) -> tuple[int, int, int]:
        findings = Findings()
        checker.check_advice(given, events, findings)
        return findings.lost, findings.repeated, findings.wrong

    assert of(*advice[1:]) == (0, 0, 0)
    assert of(advice[1]) == (1, 0, 0)
    assert of(*advice[1:], advice[1]) == (0, 1, 0)
    assert of(*advice[1:], {**advice[1], "id": "another"}) == (0, 1, 1)
    assert of(*advice) == (0, 0, 1)


def test_an_outcome_is_wrong_when_the_command_failed() -> None:
    came = perfect()
    came["outcomes"][0]["data"]["status"] = "failed"
    assert found(came) == (0, 0, 1)


def test_only_a_few_are_told_when_many_are_lost() -> None:
    given = amounts(*[1] * 40)
    result = check(wanted(given), 0, Seen([], [], [], [], {}), {}, allows_repeats=False)
    assert result.lost == len(wanted(given))
    assert len(result.told) == 5


# ------------------------------------------------------------------------ what the audit must say


def audited(
    *, entries: int = 7, heads: int = 2, unsealed: int = 0, replayed: int = 7, open_contests: int = 0, seen: int | None = 7
) -> int:
    """How much is wrong."""
    findings = Findings()
    verified = Verified(Audit(entries=entries), Seals(heads=heads, unsealed=unsealed), [])
    again = {"decisions": replayed, "not_replayable": open_contests, "different": 0, "broken_chains": 0}
    check_audit(verified, again, seen, findings)
    return findings.wrong


def test_the_audit_is_good_when_all_that_was_read_is_sealed_and_made_again() -> None:
    assert audited() == 0
    assert audited(replayed=5, open_contests=2) == 0
    assert audited(entries=9, seen=None) == 0


def test_the_audit_is_wrong_when_the_sealer_is_dead() -> None:
    assert audited(heads=0, unsealed=7) == 1
    assert audited(unsealed=1) == 1
    assert audited(heads=0) == 1


def test_the_audit_is_wrong_when_it_is_about_less_than_was_read() -> None:
    assert [audited(entries=6), audited(replayed=6), audited(seen=8)] == [1, 1, 1]


# ---------------------------------------------------------------------------------- the faults


class Stage:
    """A bed for faults: its clock goes as long as the load is played."""

    def __init__(self) -> None:
        self.now = 100.0
        self.continued_at: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def rounds(self, name: str) -> None: ...

    def start_load(self, rounds: None) -> None: ...

    def process(self, name: str) -> Stage:
        return self

    def is_running(self) -> bool:
        return True

    def send_signal(self, number: int) -> None:
        if number == signal.SIGCONT:
            self.continued_at.append(self.now)

    def play_for(self, seconds: float) -> None:
        self.now += seconds

    def finish(self, name: str, load: None, *, since: float, notes: dict[str, Any]) -> float:
        return since


def test_the_time_counts_from_the_last_sigcont_when_processes_stand_still_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    stage: Any = Stage()
    monkeypatch.setattr(faults, "time", stage)
    assert faults.processes_paused(stage, "f") == stage.continued_at[-1] < stage.now


def test_the_fate_of_a_transaction_is_known_when_something_behind_it_was_read() -> None:
    tap = Tap.__new__(Tap)  # without its reader
    tap.places, tap._last = set(), {}
    tap._note("decisions", 0, 4)
    assert [tap.fate_of(("decisions", part, 5)) for part in (0, 1)] == ["", ""]
    tap._note("decisions", 0, 7)
    assert [tap.fate_of(("decisions", 0, offset)) for offset in (4, 5, 7)] == ["committed", "aborted", "committed"]


@pytest.mark.parametrize(
    ("decided_at", "at"),
    [([8.0, 9.9], None), ([9.9, 17.0, 17.1], 17.0), ([10.1, 10.2, 17.0, 17.1], 17.0), ([10.5], 10.5)],
)
def test_the_next_decision_is_the_one_that_ends_the_longest_silence(decided_at: list[float], at: float | None) -> None:
    assert checker.next_decision_at(decided_at, 10.0) == at


def test_every_fault_that_needs_no_transaction_can_be_played_at_least_once() -> None:
    given = run.chosen([], is_short=False, at_least_once=True)
    assert {fault.kind.delivery for fault in given} == {"at_least_once"}
    plain = {fault.name for fault in faults.FAULTS if fault.kind.delivery == "exactly_once"}
    assert plain - {fault.name for fault in given} == {"killed_in_transaction"}
    assert len(run.chosen([], is_short=True, at_least_once=True)) == 4
    with pytest.raises(SetupFailed, match="no fault 'killed_in_transaction'"):
        run.chosen(["killed_in_transaction"], is_short=False, at_least_once=True)


@pytest.mark.parametrize(("configured", "widths"), [(None, (1, 2)), ("1", (1, 2)), ("2", (1, 2)), ("4", (2, 4))])
def test_rescaling_always_changes_something(monkeypatch: pytest.MonkeyPatch, configured: str | None, widths: tuple[int, int]) -> None:
    monkeypatch.delenv("FLYBALL_PARALLELISM", raising=False)
    if configured:
        monkeypatch.setenv("FLYBALL_PARALLELISM", configured)
    assert faults._widths() == widths


def test_an_instance_that_does_not_come_up_is_a_bad_row_and_the_next_fault_is_tried(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refused(home: object) -> None:
        raise SetupFailed("port 9092 is taken")

    monkeypatch.setattr(bed.instance, "stop", refused)
    results = run.torture(Home(tmp_path), run.chosen([], is_short=True), Console(quiet=True))
    assert [result.findings.told for result in results] == [["wrong: port 9092 is taken"]] * 4
    assert not any(result.is_green for result in results)


def test_the_checker_shares_no_code_with_what_it_judges() -> None:
    for module in (checker, facts):
        tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
        names = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        assert {name.split(".")[0] for name in names} <= {*sys.stdlib_module_names, "ops"}
        assert {name for name in names if name.startswith("ops")} <= {"ops.torture.facts"}


# ---------------------------------------------------------------------------------- the inputs


def some(source: Any, count: int) -> list[facts.Item]:
    return [item for each in islice(source, count) for item in each]


def rounds() -> Any:
    return facts.rounds("a", subjects=4, base_ms=START_MS, seed=1)


def test_rounds_repeat_themselves_and_every_fact_has_an_id_of_its_own() -> None:
    given = some(rounds(), 20)
    assert given == some(rounds(), 20)
    assert len({fact.id for fact in given if isinstance(fact, Fact)}) == len(given) == 80


def test_a_fact_is_a_cloud_event_under_its_subject() -> None:
    key, value = amounts(5)[0].to_record()
    event = json.loads(value)
    assert (key, event["subject"], event["time"]) == (b"s", "s", "2025-01-01T00:00:00.000Z")
    assert event["data"] == {"number": 1, "amount": 5}


def test_shuffled_facts_are_all_there_and_never_out_of_order_by_more_than_allowed() -> None:
    given = some(rounds(), 24)
    came = some(facts.shuffled(rounds(), over=6, seed=1), 24)
    assert came != given and sorted(map(repr, came)) == sorted(map(repr, given))
    latest = 0
    for fact in came:
        assert isinstance(fact, Fact)
        assert fact.event_ms > latest - 6 * facts.STEP_MS
        latest = max(latest, fact.event_ms)


def test_the_clock_goes_forward_and_back_by_a_minute_when_it_is_stepped() -> None:
    given, came = some(rounds(), 8), some(facts.stepped(rounds(), every=2), 8)
    shifts = [b.event_ms - a.event_ms for a, b in zip(given, came, strict=True) if isinstance(a, Fact) and isinstance(b, Fact)]
    assert shifts == [*[0] * 8, *[60_000] * 8] * 2


def test_every_kind_of_bad_record_comes_behind_every_few_facts() -> None:
    came = some(facts.poisoned(rounds(), every=10), 40)
    bad = [item for item in came if isinstance(item, facts.Poison)]
    assert len(bad) == 16 and [item for item in came if isinstance(item, Fact)] == some(rounds(), 40)
    assert len({item.value for item in bad[:8]}) == 8


def test_a_fault_is_refused_by_name_when_there_is_none() -> None:
    with pytest.raises(SetupFailed, match="no fault 'x'; there are: none, taskmanager_killed"):
        run.chosen(["x"], is_short=False)


def test_four_faults_are_short() -> None:
    assert [fault.name for fault in run.chosen([], is_short=True)] == [
        "taskmanager_killed", "jobmanager_killed", "actuator_killed", "broker_killed",
    ]  # fmt: skip
