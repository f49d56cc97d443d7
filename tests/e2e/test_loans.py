"""`loans`, from a generated desk to decided applications, on an instance of its own."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from contracts.envelope import format_time_ms, parse_time_ms
from ops import approvals
from ops import instance as embedded
from ops import run as runner
from ops.emit import closing_tick_ms
from ops.home import CHECKOUT, Home
from ops.player import Emitter
from ops.trace import find_chain, tree_data
from ops.watch import Watch
from ops.world import NewFact, load_world
from ops.worlds.loans import WORLD
from tests.loop import Loop

COUNT = 1500
RATE = 300.0
DAY_MS = 86_400_000
DUE = ("approve_application", "decline_application", "make_offer")
ANSWERS = {
    "O_SENT_BACK",
    "O_ACCEPTED",
    "O_DECLINED",
    "A_APPROVED",
    "A_ACTIVATED",
    "A_DECLINED",
    "A_CANCELLED",
}


@pytest.fixture(scope="module")
def loans(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loop]:
    """`loans` with a generated desk played through it, its last offers unanswered for long enough."""
    home = Home(tmp_path_factory.mktemp("loans"))
    runner.bring_up(home, "loans", is_fresh=True, console=Console(quiet=True), while_pid=os.getpid())
    loop = Loop(home, "loans")
    world = load_world("loans")
    watch = Watch(
        loop.bootstrap, "loans", is_committed=True, from_beginning=True, decision_key=world.decision_key
    )
    watch.start()
    try:
        asked = runner.Asked(domain="loans", seed=1, count=COUNT)
        emitter = Emitter(loop.contract, loop._writer, file_name="seed-1")
        emitter.emit(runner.items(asked, loop.settings, world, watch), rate=RATE)
        emitter.tick(closing_tick_ms(emitter.emitted, loop.settings))
        loop.settle(timeout_s=300)
        yield loop
    finally:
        watch.stop()
        loop.close()
        embedded.stop(home)


def cases(loop: Loop) -> dict[str, list[dict[str, Any]]]:
    """The log of each case, in the order of its topic."""
    found: dict[str, list[dict[str, Any]]] = {}
    for event in loop.events("facts", type_="loan.activity_recorded"):
        found.setdefault(event["subject"], []).append(event)
    return found


def about(loop: Loop, kind: str) -> list[str]:
    """The subjects of all situations of a kind, each situation once."""
    found = {e["id"]: e["subject"] for e in loop.events("situations", type_=f"loans.{kind}")}
    return list(found.values())


def generated(loop: Loop, kind: str) -> Counter[str]:
    return Counter(subject for subject in about(loop, kind) if subject.startswith("L1-"))


def row(
    case: str, ts: str, activity: str, lifecycle: str = "", resource: str = "", amount: str = ""
) -> NewFact:
    return WORLD.row_to_fact(
        {"case_id": case, "activity": activity, "lifecycle": lifecycle, "resource": resource, "ts": ts, "amount": amount},
        None,
    )  # fmt: skip


def path_to(node: dict[str, Any], wanted: str) -> list[dict[str, Any]]:
    """The nodes from `node` down to the one with the id `wanted`; empty when it is not below."""
    if node["id"] == wanted:
        return [node]
    for effect in node["effects"]:
        if below := path_to(effect, wanted):
            return [node, *below]
    return []


def told(event: Mapping[str, Any], *names: str) -> tuple[object, ...]:
    return tuple(event["data"].get(name) for name in names)


def is_doubtful_acceptance(decision: Mapping[str, Any]) -> bool:
    """Whether a customer took an offer in a case that looks odd, or of all that was asked for (an offer is rated C)."""
    features, parameters = decision["data"]["features"], decision["data"]["parameters"]
    is_doubtful = features["is_suspicious"] or parameters["amount"] >= features["amount"]
    return decision["data"]["situation_type"] == "loans.offer_accepted" and is_doubtful


def test_every_case_is_received_once_and_decided_once_when_a_desk_is_played(loans: Loop) -> None:
    logs = cases(loans)
    generated_cases = {case for case in logs if case.startswith("L1-")}
    assert len(generated_cases) > 100
    assert generated(loans, "application_received") == Counter(generated_cases)
    assert generated(loans, "application_analysed") == Counter(generated_cases)
    assert set(generated(loans, "fraud_suspected").values()) == {1}
    due = Counter(
        e["subject"] for e in loans.events("decisions", situation_type="loans.application_analysed")
    )
    assert due == Counter(generated_cases)
    assert {e["data"]["action"] for e in loans.events("commands")} == set(loans.contract.actions)
    assert loans.events("dead-letters") == []


def test_running_jobs_keep_what_the_list_of_state_says(loans: Loop) -> None:
    loans.assert_jobs_keep_what_is_listed()


def test_every_situation_fits_its_contract(loans: Loop) -> None:
    seen = Counter(event["type"] for event in loans.events("situations"))
    assert set(seen) == set(loans.contract.situations)
    for event in loans.events("situations"):
        loans.contract.situations[event["type"]].model_validate(event["data"])


def test_reasons_stand_on_every_decline_and_a_decline_without_one_is_forbidden(loans: Loop) -> None:
    declines = loans.events("decisions", action="decline_application")
    verdicts = {
        (told(e, "verdict", "reason"), bool(e["data"]["parameters"]["decline_reason"])) for e in declines
    }
    assert (("allow", "allowed_by_policy"), True) in verdicts
    assert (("deny", "forbidden_by_policy"), False) in verdicts
    assert all(has_reason for (verdict, _), has_reason in verdicts if verdict == "allow")
    reasons = {
        e["data"]["parameters"]["decline_reason"]
        for e in loans.events("commands", action="decline_application")
    }
    assert reasons == {"fraud", "affordability"}


def test_nothing_is_commanded_for_a_customer_who_withdrew(loans: Loop) -> None:
    withdrawn = {
        case for case, log in cases(loans).items()
        if case.startswith("L1-") and any(e["data"]["activity"] == "A_CANCELLED" for e in log)
    }  # fmt: skip
    assert withdrawn
    assert not [
        e for e in loans.events("commands") if e["subject"] in withdrawn and e["data"]["action"] in DUE
    ]


def test_cases_that_bounce_are_found_once_and_no_others(loans: Loop) -> None:
    """The pattern again, in Python: A B A B among the turns of people, within 14 days."""
    bouncing = Counter[str]()
    for case, log in cases(loans).items():
        people = [
            (e["data"]["resource"], parse_time_ms(e["time"])) for e in log
            if e["data"].get("resource") and e["data"].get("lifecycle") != "SCHEDULE"
        ]  # fmt: skip
        turns = [turn for n, turn in enumerate(people) if n == 0 or turn[0] != people[n - 1][0]]
        while len(turns) >= 4:
            (a, first_ms), (b, _), (c, _), (d, last_ms) = turns[:4]
            is_match = (a, b) == (c, d) and 0 <= last_ms - first_ms <= 14 * DAY_MS
            bouncing[case] += is_match
            turns = turns[4:] if is_match else turns[1:]
    assert Counter(about(loans, "bouncing")) == +bouncing
    assert sum(generated(loans, "bouncing").values()) >= 3
    assert loans.events("commands", action="reassign_case")


def test_offers_nobody_answered_are_found_by_absence_and_no_others(loans: Loop) -> None:
    unanswered = set()
    for case, log in cases(loans).items():
        sent = [parse_time_ms(e["time"]) for e in log if e["data"]["activity"] == "O_SENT"]
        answered = [parse_time_ms(e["time"]) for e in log if e["data"]["activity"] in ANSWERS]
        if any(not any(0 <= at - since <= 10 * DAY_MS for at in answered) for since in sent):
            unanswered.add(case)
    assert unanswered
    loans.wait_for(
        "every offer that was never answered",
        lambda: unanswered <= set(about(loans, "offer_unanswered")),
    )
    assert Counter(about(loans, "offer_unanswered")) == Counter(unanswered)
    loans.settle()
    assert {e["subject"] for e in loans.events("commands", action="remind_customer")} == unanswered


@pytest.mark.parametrize("is_checked", [False, True])
def test_one_chain_leads_from_received_to_analysed_to_decided(loans: Loop, is_checked: bool) -> None:
    suspected = set(about(loans, "fraud_suspected"))
    outcome = next(
        e for e in loans.events("outcomes")
        if e["data"]["action"] in DUE and (e["subject"] in suspected) is is_checked
        and e["hops"] == (3 if is_checked else 2)
    )  # fmt: skip
    (root,) = tree_data(find_chain(loans.bootstrap, "loans", outcome["correlationid"]))
    path = path_to(root, outcome["id"])
    round_trip = ["situation", "proposal", "decision", "command", "outcome"]
    assert [node["noun"] for node in path] == ["fact", *round_trip * (3 if is_checked else 2)]
    suspicion = ["loans.fraud_suspected"] if is_checked else []
    assert [node["event"]["type"] for node in path if node["noun"] == "situation"] == [
        "loans.application_received", *suspicion, "loans.application_analysed",
    ]  # fmt: skip
    for cause, effect in itertools.pairwise(path):
        assert effect["event"]["causationid"] == cause["id"]
        assert effect["event"]["correlationid"] == root["id"]
        assert effect["event"]["subject"] == outcome["subject"]


def test_large_loans_wait_for_people_and_small_ones_do_not(loans: Loop) -> None:
    decisions = [
        e for e in loans.events("decisions", action="approve_application", type_="flyball.decision")
        if not e["data"]["features"]["is_cancelled"]
    ]  # fmt: skip
    asked = {e["id"]: e["data"]["approval"] for e in decisions if e["data"]["verdict"] == "hold"}
    approvers = set()
    for event in decisions:
        amount, approval = event["data"]["parameters"]["amount"], event["data"]["approval"]
        if amount <= 7500 and not is_doubtful_acceptance(event):
            assert (told(event, "verdict", "reason"), approval) == (("allow", "allowed_by_policy"), None)
            continue
        assert told(event, "verdict", "reason") == ("hold", "approval_required")
        (required,) = approval["requires"]
        assert required["approvers"] == (1 if amount <= 30_000 else 2)
        approvers.add(required["approvers"])
    assert approvers == {1, 2}
    assert len(asked) >= 10
    assert not {e["data"]["decision_id"] for e in loans.events("commands")} & set(asked)


def approved(loop: Loop, request: approvals.Request, person: str) -> dict[str, Any]:
    """What came of it when `person` approved."""
    signer = approvals.Signer.of(loop.home, "loans", person, None)
    (entry,) = approvals.answer(
        loop.bootstrap, "loans", request, signer, "approve", reason="seen", now_ms=int(time.time() * 1000)
    )
    return entry


def test_nobody_approves_a_case_they_handled_and_somebody_else_may(loans: Loop) -> None:
    """The end of one chain: received, analysed, held, approved by a person, done."""
    people = {"ada", "grace", "edsger", "barbara"}
    waiting = approvals.requests(loans.bootstrap, "loans").values()
    request, handler, other = next(
        (each, min(handlers), min(people - handlers))
        for each in waiting
        if each.ended is None and each.requires[0]["approvers"] == 1
        and (handlers := people & set(each.requires[0]["not_by"]))
    )  # fmt: skip
    refused = approved(loans, request, handler)
    assert told(refused, "what") == ("refused",)
    assert f"{handler} handled it" in refused["data"]["explanation"]
    allowed = approved(loans, request, other)
    assert told(allowed, "verdict", "reason") == ("allow", "approved_by_people")
    case = allowed["subject"]
    (outcome,) = loans.wait_for(
        "the outcome", lambda: loans.events("outcomes", case, action="approve_application")
    )
    assert outcome["data"]["status"] == "succeeded"
    assert outcome["correlationid"] == request.event["correlationid"]


def test_nobody_approves_a_case_they_handled_in_between(loans: Loop) -> None:
    """Neither first nor last, more than once, or beside a name that looks like several; who was only planned may."""
    loans.emit(
        row("between-1", "2025-04-01 09:00:00", "A_SUBMITTED", "COMPLETE", "ada", "20000"),
        row("between-1", "2025-04-01 09:10:00", "W_validate", "START", "grace"),
        row("between-1", "2025-04-01 09:20:00", "W_validate", "SCHEDULE", "barbara"),
        row("between-1", "2025-04-01 09:30:00", "W_validate", "START", "grace, barbara"),
        row("between-1", "2025-04-01 09:40:00", "W_validate", "COMPLETE", "grace"),
        row("between-1", "2025-04-01 09:50:00", "W_validate", "COMPLETE", "edsger"),
        row("between-1", "2025-04-01 10:00:00", "O_ACCEPTED"),
    )
    (accepted,) = loans.wait_for("the acceptance", lambda: loans.situations("offer_accepted", "between-1"))
    names = ("first_handled_by", "handled_by", "handled_by_all")
    assert told(accepted, *names) == ("ada", "edsger", "ada\ngrace\ngrace, barbara\nedsger")
    (received,) = loans.wait_for("the reception", lambda: loans.situations("application_received", "between-1"))
    assert told(received, *names) == ("ada", "ada", "ada")
    (held,) = loans.wait_for(
        "the decision", lambda: loans.events("decisions", "between-1", situation_type="loans.offer_accepted")
    )
    request = approvals.requests(loans.bootstrap, "loans")[held["id"]]
    assert request.requires[0]["not_by"] == ["ada", "edsger", "grace", "grace, barbara"]
    for person in ("ada", "grace", "edsger"):
        refused = approved(loans, request, person)
        assert told(refused, "what", "explanation") == ("refused", f"{person} handled it and may not approve it")
    assert told(approved(loans, request, "barbara"), "verdict", "reason") == ("allow", "approved_by_people")


def test_an_untidy_log_is_read_as_it_is_meant(loans: Loop) -> None:
    loans.emit(
        row("log-1", "2025-05-01 09:00:00", "W_call somebody", "SCHEDULE", "4712"),
        row("log-1", "2025-05-01 09:00:00.250", "a_submitted", "complete"),
        row("log-1", "2025-05-01 10:00:00", "W_enter", "start", "ada"),
        row("log-1", "2025-05-01 10:30:00", "W_enter", "Complete", "ada", "8000"),
        row("log-1", "2025-05-01 11:00:00", "something new", "", "grace"),
        row("log-1", "2025-05-01 12:00:00", "O_ACCEPTED", "", "", ""),
    )
    (accepted,) = loans.wait_for("the acceptance", lambda: loans.situations("offer_accepted", "log-1"))
    (received,) = loans.wait_for("the reception", lambda: loans.situations("application_received", "log-1"))
    assert received["time"] == "2025-05-01T10:30:00.000Z", (
        "handed in before, but only now the amount is known"
    )
    assert told(received, "amount", "handled_by", "touches", "hand_overs", "submissions", "hours_so_far") == (
        8000.0, "ada", 2, 0, 1, 1.5,
    )  # fmt: skip
    names = (
        "amount",
        "offered_amount",
        "first_handled_by",
        "handled_by",
        "touches",
        "hand_overs",
        "amount_changes",
    )
    assert told(accepted, *names) == (8000.0, 8000.0, "ada", "grace", 3, 1, 0)


def test_an_answer_counts_until_the_tenth_day(loans: Loop) -> None:
    sent_ms = parse_time_ms("2025-07-01T08:00:00Z")
    for case, answered_ms in (("wait-1", sent_ms + 10 * DAY_MS), ("wait-2", sent_ms + 10 * DAY_MS + 1)):
        loans.emit(
            row(case, format_time_ms(sent_ms), "O_SENT", "complete"),
            row(case, format_time_ms(answered_ms), "O_SENT_BACK", "COMPLETE"),
        )
    loans.tick(sent_ms + 12 * DAY_MS)
    (late,) = loans.wait_for("the silence", lambda: loans.situations("offer_unanswered", "wait-2"))
    assert late["data"] == {"event_time": "2025-07-11T08:00:00.000Z", "waited_days": 10}
    assert loans.situations("offer_unanswered", "wait-1") == []


def test_an_accepted_offer_is_not_granted_by_rule_before_an_analysis_or_after_a_confirmed_fraud(loans: Loop) -> None:
    fraud = next(
        e["subject"] for e in loans.events("commands", action="decline_application")
        if e["data"]["parameters"]["decline_reason"] == "fraud"
    )  # fmt: skip
    loans.emit(
        row("early-1", "2025-08-01 09:00:00", "A_SUBMITTED", amount="5000"),
        row("early-1", "2025-08-01 09:01:00", "O_ACCEPTED"),
        row(fraud, "2025-08-01 09:02:00", "O_ACCEPTED"),
    )

    def verdict(case: str) -> tuple[object, ...]:
        (decision,) = loans.wait_for(
            f"a decision about {case}",
            lambda: loans.events("decisions", case, situation_type="loans.offer_accepted"),
        )
        return told(decision, "verdict", "reason")

    assert verdict("early-1") == ("hold", "approval_required")
    assert verdict(fraud) == ("deny", "forbidden_by_policy")


def test_every_view_for_people_answers_in_the_sql_client(loans: Loop, tmp_path: Path) -> None:
    views = re.findall(r"CREATE VIEW (\w+)", (CHECKOUT / "sql" / "loans" / "views.sql").read_text())
    assert {"open_applications", "decisions_by_reason", "waiting_approvals"} <= set(views)
    file = tmp_path / "views.sql"
    file.write_text("".join(f"SELECT * FROM {view} LIMIT 1;\n" for view in views))
    said = subprocess.run(
        [str(CHECKOUT / "flyball"), "sql", "-f", str(file), "--domain", "loans"],
        env={**os.environ, "FLYBALL_HOME": str(loans.home.path), "COLUMNS": "200"},
        cwd=CHECKOUT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert said.returncode == 0, said.stdout[-2000:] + said.stderr[-2000:]
    assert len(re.findall(r"rows? in set|Empty set", said.stdout)) == len(views), said.stdout[-2000:]
