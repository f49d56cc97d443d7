"""The world of loans: rows of an event log, generated cases, the customers' answers, the back office."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from itertools import pairwise

import pytest

from contracts.domain import load_domain
from contracts.errors import BadInput
from contracts.loans import ActivityRecorded
from ops.answers import PATIENCE
from ops.world import Done, NewFact, Order, load_world
from ops.worlds.loans import WORLD
from ops.worlds.loans_customers import what_follows
from ops.worlds.loans_generator import DAY_MS, HOUR_MS, START_MS, Answer, CaseOpened

ROW = {
    "case_id": "c-77", "activity": "A_SUBMITTED", "lifecycle": "COMPLETE", "resource": "4711",
    "ts": "2012-02-01T08:30:00Z", "amount": "12500",
}  # fmt: skip
ROW_MS = 1_328_085_000_000

Decide = Callable[[str], tuple[str, str] | None]


def fact_of(**change: str) -> NewFact:
    return WORLD.row_to_fact({**ROW, **change}, None)


def opened(answer: Answer = "accepts", case: str = "c-1", at_ms: int = START_MS) -> CaseOpened:
    """A case that can be decided when it is opened, and whose customer takes two days to answer."""
    fact = fact_of(case_id=case)
    return CaseOpened(
        fact.type,
        case,
        at_ms,
        fact.data,
        f"{case}|{at_ms}",
        ready_ms=at_ms,
        answer=answer,
        answer_ms=2 * DAY_MS,
    )


def played(facts: Iterable[NewFact], decide: Decide) -> list[NewFact]:
    return [fact for fact in WORLD.played(iter(facts), decide) if fact is not None]


def done(action: str, case: str = "c-1", command_id: str = "k-1", **parameters: object) -> Done:
    return WORLD.handlers(1)[action](Order(command_id, action, case, parameters, "2025-03-03T00:00:00Z"))


# --------------------------------------------------------------------------------------- rows


def test_a_row_becomes_a_fact_of_its_case() -> None:
    fact = fact_of()
    assert (fact.type, fact.subject, fact.event_ms) == ("loan.activity_recorded", "c-77", ROW_MS)
    assert fact.data == {
        "activity": "A_SUBMITTED",
        "lifecycle": "COMPLETE",
        "resource": "4711",
        "amount": 12500.0,
    }


def test_what_a_row_leaves_out_is_not_in_the_fact() -> None:
    assert fact_of(lifecycle="", resource=" ", amount="").data == {"activity": "A_SUBMITTED"}
    bare = {name: ROW[name] for name in ("case_id", "activity", "ts")}
    assert WORLD.row_to_fact(bare, None).data == {"activity": "A_SUBMITTED"}


@pytest.mark.parametrize("lifecycle", ["SCHEDULE", "complete", "Start", "ate_abort"])
@pytest.mark.parametrize("activity", ["W_anything at all", "O_SENT", "Prüfung"])
def test_unknown_activities_and_any_case_of_lifecycles_are_facts_all_the_same(
    activity: str, lifecycle: str
) -> None:
    data = fact_of(activity=activity, lifecycle=lifecycle).data
    assert (data["activity"], data["lifecycle"]) == (activity, lifecycle)
    ActivityRecorded.model_validate(data)


@pytest.mark.parametrize(
    ("ts", "event_ms"),
    [
        ("2012-02-01 08:30:00", ROW_MS),
        ("2012-02-01 08:30:00.5", ROW_MS + 500),
        ("2012-02-01 08:30:00.123", ROW_MS + 123),
        ("2012-02-01T09:30:00.123+01:00", ROW_MS + 123),
    ],
)
def test_times_are_read_with_or_without_offset_and_fraction(ts: str, event_ms: int) -> None:
    assert fact_of(ts=ts).event_ms == event_ms


@pytest.mark.parametrize(
    "change",
    [
        {"case_id": " "}, {"case_id": "c" * 300}, {"case_id": "a\x00b"}, {"activity": ""},
        {"activity": "x" * 300}, {"ts": "yesterday"}, {"ts": ""}, {"ts": "1969-12-31 23:59:59"},
        {"amount": "much"}, {"amount": "-1"}, {"amount": "inf"}, {"amount": "1e400"}, {"resource": "a\x07"},
    ],
)  # fmt: skip
def test_a_row_is_refused_when_a_value_is_none_of_a_log(change: dict[str, str]) -> None:
    with pytest.raises(BadInput) as refused:
        fact_of(**change)
    assert refused.value.code == "row_invalid"


@pytest.mark.parametrize("missing", ["case_id", "activity", "ts"])
def test_a_row_is_refused_when_a_needed_column_is_missing(missing: str) -> None:
    with pytest.raises(BadInput, match=missing):
        WORLD.row_to_fact({k: v for k, v in ROW.items() if k != missing}, None)


def test_rows_differ_in_identity_when_any_column_differs() -> None:
    changes = {"activity": "A_DECLINED", "lifecycle": "", "resource": "", "amount": "1", "ts": "2012-02-02"}
    found = {fact_of(**{name: value}).identity for name, value in changes.items()}
    assert len(found | {fact_of().identity}) == len(changes) + 1
    assert fact_of().identity == fact_of(ts="2012-02-01 08:30:00").identity


def test_files_of_this_world_are_played_by_time() -> None:
    assert getattr(load_world("loans"), "plays_by_time", False) is True


# ------------------------------------------------------------------------------------ generator


def test_a_generated_desk_repeats_itself_when_its_seed_does() -> None:
    first, again, other = (list(WORLD.generate(seed=seed, count=1_000)) for seed in (3, 3, 4))
    assert first == again != other
    assert all(a.event_ms <= b.event_ms for a, b in pairwise(first))


@pytest.mark.parametrize("count", [1, 50, 1_000, 3_000])
def test_a_generated_desk_has_whole_cases_only(count: int) -> None:
    facts = list(WORLD.generate(seed=1, count=count))
    assert len(facts) <= max(count, 20)
    per_case = Counter(fact.subject for fact in facts)
    filed = Counter(fact.subject for fact in facts if fact.data["activity"] == "W_FILE_CASE")
    assert set(filed.values()) == {1} and set(filed) == set(per_case)
    assert [fact.subject for fact in facts if isinstance(fact, CaseOpened)] and len(per_case) == sum(
        isinstance(fact, CaseOpened) for fact in facts
    )


def test_a_longer_desk_begins_as_a_shorter_one_does() -> None:
    short, long = (
        {(f.subject, f.event_ms, f.identity) for f in WORLD.generate(seed=1, count=c)} for c in (300, 900)
    )
    assert short < long


def test_generated_facts_fit_the_contract_and_do_not_tell_what_the_customer_will_do() -> None:
    contract = load_domain("loans")
    for fact in WORLD.generate(seed=1, count=3_000):
        contract.facts[fact.type].model_validate(fact.data)
        assert set(fact.data) <= set(ActivityRecorded.model_fields)


def test_every_kind_of_case_is_there_and_none_is_decided() -> None:
    facts = list(WORLD.generate(seed=1, count=3_000))
    by_case: dict[str, list[NewFact]] = {}
    for fact in facts:
        by_case.setdefault(fact.subject, []).append(fact)
    activities = {str(fact.data["activity"]) for fact in facts}
    assert not {"A_APPROVED", "A_DECLINED", "O_SENT"} & activities, "decisions are left to the loop"
    assert {"A_CANCELLED", "LETTER SCANNED"} <= activities
    assert {fact.data.get("lifecycle") for fact in facts} >= {
        "SCHEDULE",
        "START",
        "COMPLETE",
        "complete",
        None,
    }
    submissions = Counter(
        sum(fact.data["activity"] == "A_SUBMITTED" for fact in case) for case in by_case.values()
    )
    assert set(submissions) == {1, 3}
    assert any("amount" not in case[0].data for case in by_case.values()), "some amounts come by call"
    assert any(float(str(f.data.get("amount", 0))) > 100_000 for f in facts)
    turns = [
        [f.data["resource"] for f in case if f.data.get("lifecycle") == "START"] for case in by_case.values()
    ]
    assert any(len(t) >= 4 and t[-4:-2] == t[-2:] and t[-1] != t[-2] for t in turns), "some cases bounce"
    assert {f.answer for f in facts if isinstance(f, CaseOpened)} == {"accepts", "refuses", "late", "silent"}
    assert {"ada", "grace", "edsger"} <= {f.data.get("resource") for f in facts}, "approvers handle cases too"


# ------------------------------------------------------------------------------- what follows


@pytest.mark.parametrize(
    ("answer", "decided", "expected"),
    [
        ("accepts", ("allow", "approve_application"), ["A_APPROVED", "A_ACTIVATED"]),
        ("accepts", ("allow", "decline_application"), ["A_DECLINED"]),
        ("accepts", ("allow", "make_offer"), ["O_CREATED", "O_SENT", "O_SENT_BACK", "O_ACCEPTED"]),
        ("refuses", ("allow", "make_offer"), ["O_CREATED", "O_SENT", "O_DECLINED"]),
        ("silent", ("allow", "make_offer"), ["O_CREATED", "O_SENT"]),
        ("accepts", ("deny", "make_offer"), []),
        ("accepts", ("hold", "approve_application"), []),
        ("accepts", None, []),
    ],
)
def test_what_follows_depends_on_the_decision_and_on_the_customer(
    answer: Answer, decided: tuple[str, str] | None, expected: list[str]
) -> None:
    facts = what_follows(opened(answer), decided)
    assert [fact.data["activity"] for fact in facts] == expected
    assert all(fact.event_ms >= START_MS + DAY_MS + HOUR_MS for fact in facts)


def test_answers_stand_at_their_event_time_between_the_cases() -> None:
    cases = [opened(case=f"c-{n}", at_ms=START_MS + n * 5 * HOUR_MS) for n in range(60)]
    facts = played(cases, lambda _: ("allow", "make_offer"))
    assert len(facts) == 60 * 5
    assert all(a.event_ms <= b.event_ms for a, b in pairwise(facts))


def test_a_case_is_asked_for_once_and_only_when_all_before_it_was_sent() -> None:
    cases = [opened(case=f"c-{n}", at_ms=START_MS + n * 5 * HOUR_MS) for n in range(20)]
    asked: list[str] = []
    sent: list[str] = []

    def decide(case: str) -> tuple[str, str]:
        assert case in sent
        asked.append(case)
        return "hold", "approve_application"

    for fact in WORLD.played(iter(cases), decide):
        if fact is not None:
            sent.append(fact.subject)
    assert asked == [case.subject for case in cases]


def test_the_world_stops_waiting_when_nobody_decides() -> None:
    asked: list[str] = []

    def nobody(case: str) -> None:
        asked.append(case)

    cases = [opened(case=f"c-{n}", at_ms=START_MS + n * DAY_MS) for n in range(10)]
    assert len(played(cases, nobody)) == 10
    assert len(asked) == PATIENCE


def test_nothing_is_added_to_a_file() -> None:
    def decide(case: str) -> tuple[str, str]:
        raise AssertionError(f"nobody waits for {case}")

    facts = [fact_of(), fact_of(activity="O_SENT", ts="2012-03-01")]
    assert played(facts, decide) == facts


def test_only_the_decision_about_an_analysed_case_is_waited_for() -> None:
    due = {"situation_type": "loans.application_analysed", "subject": "c-1", "action": "approve_application"}
    assert WORLD.decision_key(due) == "c-1"
    assert WORLD.decision_key({**due, "situation_type": "loans.application_received"}) is None


# ------------------------------------------------------------------------------------ back office


def test_every_action_has_a_handler() -> None:
    assert set(WORLD.handlers(1)) == set(load_domain("loans").actions)


def test_a_case_gets_the_same_answer_whenever_it_is_asked_for() -> None:
    for action in ("analyse_application", "check_fraud"):
        assert done(action, command_id="k-1") == done(action, command_id="k-2")


def test_ratings_and_fraud_are_told_in_the_shares_the_office_promises() -> None:
    cases = [f"c-{n}" for n in range(2_000)]
    ratings = Counter(done("analyse_application", case).detail.split(":")[0] for case in cases)
    assert set(ratings) == {"rating A", "rating B", "rating C", "rating D", "no rating"}
    assert 0.25 < ratings["rating A"] / 2_000 < 0.35
    frauds = sum(done("check_fraud", case).detail.startswith("fraud confirmed") for case in cases)
    assert 0.55 < frauds / 2_000 < 0.65


def test_an_offer_tells_its_amount_as_its_cost() -> None:
    assert done("make_offer", amount=7_000.0).cost == 7_000.0


def test_some_reminders_and_reassignments_fail() -> None:
    for action in ("remind_customer", "reassign_case"):
        said = {done(action, command_id=f"k-{n}").status for n in range(200)}
        assert said == {"succeeded", "failed"}
