"""The desk of a language model's agent: what waits, what is asked, what it may take, whom it falls back on."""

from __future__ import annotations

from typing import Any

import orjson

from udfs.agents.definition import LlmAgent
from udfs.reason.desk import Call, Conclude, Desk, Order, Start, Why

T0 = 1_800_000_000_000


def agent(**changes: Any) -> LlmAgent:
    declared = {
        "kind": "llm", "agent": "triage", "version": 1, "situation": "x.y", "prompt": "triage", "model": "large",
        "actions": ["act"], "max_tokens": 100, "deadline_s": 10.0,
    }  # fmt: skip
    return LlmAgent.model_validate_json(orjson.dumps(declared | changes))


def call(name: str, *, at_ms: int = T0, subject: str = "s", **changes: Any) -> Call:
    told: dict[str, Any] = {
        "call_id": name, "situation_id": f"of-{name}", "subject": subject, "event_ms": 0, "expiry_ms": None,
        "arrived_ms": at_ms, "appended_ms": at_ms, "record": [], "size": 100,
    }  # fmt: skip
    return Call(**told | changes)


def orders(desk: Desk, now_ms: int = T0, *, room: int = 100, has_prompt: bool = True) -> list[Order]:
    return list(desk.orders(now_ms, room=room, has_prompt=has_prompt))


def started(found: list[Order]) -> list[tuple[str, str]]:
    return [(order.call.call_id, order.model) for order in found if isinstance(order, Start)]


def concluded(found: list[Order]) -> list[tuple[str, str | None, str]]:
    return [(order.call.call_id, order.agent, order.why) for order in found if isinstance(order, Conclude)]


def fail(desk: Desk, name: str, why: Why = "failed", at_ms: int = T0) -> None:
    desk.ended(desk.calls[name], at_ms, (why, "it did not work"))


def test_the_oldest_are_asked_first_and_no_more_than_fit_at_once() -> None:
    desk = Desk(agent(concurrency=2))
    for name, at_ms in (("young", T0 + 2), ("old", T0), ("middle", T0 + 1)):
        desk.take(call(name, at_ms=at_ms))

    assert started(orders(desk, T0 + 3)) == [("old", "large"), ("middle", "large")]
    assert (desk.in_flight, desk.waiting) == (2, 1)
    desk.ended(desk.calls["old"], T0 + 4, None)
    assert started(orders(desk, T0 + 5)) == [("young", "large")]


def test_nothing_starts_without_room_in_the_operator() -> None:
    desk = Desk(agent())
    desk.take(call("a"))
    assert orders(desk, room=0) == []
    assert started(orders(desk, room=1)) == [("a", "large")]


def test_what_waits_is_not_given_up_however_long_it_waits_for_its_turn() -> None:
    desk = Desk(agent(concurrency=1, fallback=[{"agent": "rule"}]))
    desk.take(call("a"))
    desk.take(call("b"))
    assert started(orders(desk)) == [("a", "large")]
    assert orders(desk, T0 + 3_600_000) == []
    desk.ended(desk.calls["a"], T0 + 3_600_000, None)
    (order,) = orders(desk, T0 + 3_600_000)
    assert isinstance(order, Start)
    assert (order.call.call_id, order.until_ms) == ("b", T0 + 3_610_000), "its deadline begins when it does"


def test_all_models_of_a_call_together_have_its_deadline() -> None:
    desk = Desk(agent(fallback=[{"model": "small"}]))
    desk.take(call("a"))
    orders(desk)
    fail(desk, "a", at_ms=T0 + 9_000)
    (order,) = orders(desk, T0 + 9_000)
    assert isinstance(order, Start)
    assert (order.model, order.until_ms) == ("small", T0 + 10_000)


def test_a_call_past_its_deadline_asks_no_cheaper_model_and_says_so() -> None:
    desk = Desk(agent(fallback=[{"model": "small"}, {"agent": "rule"}]))
    desk.take(call("a"))
    orders(desk)
    fail(desk, "a", "deadline", at_ms=T0 + 10_000)
    (order,) = orders(desk, T0 + 10_000)
    assert isinstance(order, Conclude)
    assert (order.agent, order.why) == ("rule", "deadline")
    assert "deadline: the 10 s since it was first asked leave no time" in order.explanation


def test_what_was_begun_goes_before_what_waits_since_its_deadline_runs() -> None:
    desk = Desk(agent(concurrency=1, fallback=[{"model": "small"}]))
    desk.take(call("begun", at_ms=T0 + 1))
    orders(desk, T0 + 1)
    desk.take(call("older", at_ms=T0))
    fail(desk, "begun", at_ms=T0 + 2)
    assert started(orders(desk, T0 + 2)) == [("begun", "small")]


def test_a_call_lost_in_flight_has_only_what_is_left_of_its_deadline() -> None:
    desk = Desk(agent())
    desk.take(call("a"))
    orders(desk)
    kept = [c.to_dict() for c in desk.calls.values()]
    (order,) = orders(Desk(desk.agent, desk.to_dict(), kept), T0 + 4_000)
    assert isinstance(order, Start)
    assert order.until_ms == T0 + 10_000
    assert concluded(orders(Desk(desk.agent, desk.to_dict(), kept), T0 + 10_000)) == [("a", None, "deadline")]


def test_tokens_of_the_last_minute_bound_what_is_asked_and_are_corrected_by_what_was_taken() -> None:
    desk = Desk(agent(budget={"tokens_per_minute": 500}))
    for name in ("a", "b", "c"):  # each may take 200
        desk.take(call(name))

    first = orders(desk)
    assert started(first) == [("a", "large"), ("b", "large")]
    assert concluded(first) == [("c", None, "budget")]
    assert "400 of 500 tokens a minute" in next(o.explanation for o in first if isinstance(o, Conclude))
    for name in ("a", "b"):
        desk.spent(desk.calls[name], T0, 10, 0.0)
        desk.ended(desk.calls[name], T0, None)
    for name in ("d", "e"):
        desk.take(call(name))
    assert len(started(orders(desk))) == 2


def test_a_minutes_budget_is_there_again_after_the_minute() -> None:
    desk = Desk(agent(budget={"tokens_per_minute": 200}))
    desk.take(call("a"))
    assert len(started(orders(desk))) == 1
    desk.spent(desk.calls["a"], T0, 200, 0.0)
    desk.ended(desk.calls["a"], T0, None)
    desk.take(call("b", at_ms=T0 + 1))
    assert concluded(orders(desk, T0 + 1)) == [("b", None, "budget")]
    desk.take(call("c", at_ms=T0 + 60_000))
    assert len(started(orders(desk, T0 + 60_000))) == 1


def test_a_days_cost_bounds_the_dear_model_and_the_cheaper_one_is_asked_instead() -> None:
    desk = Desk(
        agent(
            budget={"cost_per_day": 0.5, "price_in": 1000.0, "price_out": 1000.0},
            fallback=[{"model": "small", "price_in": 1.0, "price_out": 1.0}, {"agent": "rule"}],
        )
    )
    for number in range(2):
        desk.take(call(f"c{number}"))
        (order,) = orders(desk)
        assert isinstance(order, Start)
        assert order.model == ("large" if number == 0 else "small")
        desk.spent(order.call, T0, 200, 0.4 if number == 0 else 0.0002)
        desk.ended(order.call, T0, None)


def test_after_failures_in_a_row_the_circuit_opens_lets_one_through_later_and_closes() -> None:
    desk = Desk(agent(circuit={"failures": 2, "open_s": 5}))
    for name in ("a", "b"):
        desk.take(call(name))
    assert len(started(orders(desk))) == 2
    fail(desk, "a")
    fail(desk, "b")
    assert concluded(orders(desk)) == [("a", None, "failed"), ("b", None, "failed")]

    desk.take(call("c"))
    assert concluded(orders(desk, T0 + 4_999)) == [("c", None, "circuit_open")]
    for name in ("probe", "other"):
        desk.take(call(name, at_ms=T0 + 5_000))
    found = orders(desk, T0 + 5_000)
    assert started(found) == [("probe", "large")]
    assert concluded(found) == [("other", None, "circuit_open")]
    desk.ended(desk.calls["probe"], T0 + 5_100, None)
    desk.take(call("d", at_ms=T0 + 5_200))
    assert started(orders(desk, T0 + 5_200)) == [("d", "large")]


def test_a_reply_that_does_not_fit_is_no_failure_of_the_server() -> None:
    desk = Desk(agent(circuit={"failures": 1, "open_s": 5}, fallback=[{"model": "small"}, {"agent": "rule"}]))
    desk.take(call("a"))
    orders(desk)
    fail(desk, "a", "malformed")
    assert started(orders(desk)) == [("a", "small")]
    fail(desk, "a", "malformed")
    (order,) = orders(desk)
    assert isinstance(order, Conclude)
    assert (order.agent, order.why) == ("rule", "malformed")
    assert order.explanation == "malformed: it did not work; malformed: it did not work"
    assert not desk.calls


def test_what_waits_past_its_expirytime_is_dropped_once_a_newer_situation_of_its_subject_came() -> None:
    desk = Desk(agent(concurrency=1))
    desk.take(call("asked", expiry_ms=50_000))
    assert len(started(orders(desk))) == 1
    desk.take(call("stale", expiry_ms=50_000))
    desk.take(call("of another", subject="t", expiry_ms=50_000))
    desk.take(call("newer", event_ms=50_001))

    assert concluded(orders(desk)) == [("stale", None, "expired")], "though nothing can start"
    assert set(desk.calls) == {"asked", "of another", "newer"}


def test_other_subjects_clocks_expire_nothing() -> None:
    desk = Desk(agent(concurrency=1))
    desk.take(call("asked"))
    desk.take(call("behind", subject="t", event_ms=10, expiry_ms=50))
    orders(desk)
    desk.take(call("years ahead", subject="u", event_ms=T0))
    assert orders(desk) == []
    desk.ended(desk.calls["asked"], T0, None)
    assert started(orders(desk)) == [("behind", "large")]


def test_what_came_late_is_expired_by_what_its_subject_knows_already() -> None:
    desk = Desk(agent(concurrency=1))
    desk.take(call("newer", event_ms=100_000))
    desk.take(call("late", event_ms=10, expiry_ms=50_000))
    found = orders(desk)
    assert (started(found), concluded(found)) == ([("newer", "large")], [("late", None, "expired")])


def test_what_waited_longer_than_it_was_of_use_is_dropped_though_nothing_newer_came() -> None:
    desk = Desk(agent(concurrency=1))
    for name in ("asked", "once"):
        desk.take(call(name, subject=name, event_ms=1_000, expiry_ms=31_000))
    assert started(orders(desk)) == [("asked", "large")]
    desk.take(call("lasting", subject="u", at_ms=T0 + 1))

    assert orders(desk, T0 + 30_000) == []
    assert concluded(orders(desk, T0 + 30_001)) == [("once", None, "expired")]
    assert set(desk.calls) == {"asked", "lasting"}


def test_what_was_asked_asks_its_next_model_though_it_expired_meanwhile() -> None:
    desk = Desk(agent(fallback=[{"model": "small"}, {"agent": "rule"}]))
    desk.take(call("a", event_ms=10, expiry_ms=50))
    orders(desk)
    desk.take(call("newer", event_ms=51))
    assert started(orders(desk, T0 + 1_000)) == [("newer", "large")]
    fail(desk, "a")
    assert started(orders(desk, T0 + 1_000)) == [("a", "small")]


def test_what_was_lost_in_flight_is_asked_again_though_it_expired_meanwhile() -> None:
    desk = Desk(agent())
    desk.take(call("a", event_ms=10, expiry_ms=50))
    orders(desk)
    again = Desk(desk.agent, desk.to_dict(), [c.to_dict() for c in desk.calls.values()])
    again.take(call("newer", event_ms=51))
    assert started(orders(again, T0 + 1_000)) == [("a", "large"), ("newer", "large")]


def test_what_was_answered_before_a_restart_does_not_expire() -> None:
    desk = Desk(agent())
    desk.take(call("answered", expiry_ms=50, is_answered=True))
    desk.take(call("newer", event_ms=51))
    assert started(orders(desk, T0 + 1_000)) == [("answered", "large"), ("newer", "large")]


def test_nothing_is_kept_of_a_subject_whose_last_call_is_over() -> None:
    desk = Desk(agent())
    for name, event_ms in (("old", 10), ("new", 100_000)):
        desk.take(call(name, event_ms=event_ms))
    assert len(started(orders(desk))) == 2
    desk.ended(desk.calls["new"], T0, None)
    desk.take(call("of use until then", event_ms=10, expiry_ms=50_000))
    assert concluded(orders(desk)) == [("of use until then", None, "expired")], "the old one is still there"
    desk.ended(desk.calls["old"], T0, None)
    assert desk._of_subject == {}


def test_a_look_at_what_may_not_start_yet_gives_it_to_no_cheaper_model() -> None:
    desk = Desk(agent(circuit={"failures": 1, "open_s": 5}, fallback=[{"model": "small"}]))
    desk.take(call("fails"))
    orders(desk)
    fail(desk, "fails", "failed")
    desk.take(call("waits", at_ms=T0 + 1))
    assert started(orders(desk, T0 + 1, room=1)) == [("fails", "small")]
    assert orders(desk, T0 + 1, room=0) == []
    assert (desk.calls["waits"].level, desk.calls["waits"].troubles) == (0, [])
    assert started(orders(desk, T0 + 5_000)) == [("waits", "large")]


def test_what_was_answered_by_a_model_that_is_none_any_more_is_asked_from_the_first() -> None:
    desk = Desk(agent(fallback=[{"agent": "rule"}]))
    desk.take(call("by the second", level=1, is_answered=True, troubles=["failed: x"]))
    desk.take(call("by the third", level=2, is_answered=True))
    assert started(orders(desk)) == [("by the second", "large"), ("by the third", "large")]
    assert not any(each.is_answered or each.troubles for each in desk.calls.values())


def test_a_call_is_told_what_it_may_take_of_what_is_left() -> None:
    desk = Desk(agent(budget={"tokens_per_minute": 1500, "tokens_per_day": 2000, "cost_per_day": 1.0, "price_in": 1000.0}))
    for name in ("a", "b"):  # each may take 200, and cost 0.1
        desk.take(call(name))
    found = [(order.tokens, round(order.cost, 6)) for order in orders(desk) if isinstance(order, Start)]
    assert found == [(1500.0, 1.0), (1300.0, 0.9)]
    desk.take(call("c", at_ms=T0 + 60_000))
    (order,) = orders(desk, T0 + 60_000)
    assert isinstance(order, Start)
    assert order.tokens == 1500.0


def test_without_a_prompt_nothing_is_asked() -> None:
    desk = Desk(agent(fallback=[{"agent": "rule"}]))
    desk.take(call("a"))
    assert concluded(orders(desk, has_prompt=False)) == [("a", "rule", "no_prompt")]


def test_after_a_restart_calls_wait_again_and_what_they_had_reserved_is_free() -> None:
    desk = Desk(agent(budget={"tokens_per_day": 450}))
    for name in ("a", "b"):
        desk.take(call(name))
    assert len(started(orders(desk))) == 2

    again = Desk(desk.agent, orjson.loads(orjson.dumps(desk.to_dict())), [c.to_dict() for c in desk.calls.values()])

    assert (again.in_flight, again.waiting) == (0, 2)
    found = orders(again)
    assert started(found) == [("a", "large"), ("b", "large")]
    assert [order.call.starts for order in found] == [2, 2]


def test_what_was_answered_before_a_restart_is_used_though_its_deadline_has_passed() -> None:
    desk = Desk(agent(concurrency=1, budget={"tokens_per_day": 1}))
    desk.take(call("answered", is_answered=True, level=0, asked_at_ms=T0))
    desk.take(call("not", asked_at_ms=T0))
    late_ms = T0 + 60_000
    found = orders(desk, late_ms)
    assert [(o.call.call_id, o.until_ms) for o in found if isinstance(o, Start)] == [("answered", late_ms + 10_000)]
    assert concluded(found) == [("not", None, "deadline")]


def test_what_was_reserved_is_given_back_in_the_minute_it_was_reserved_in() -> None:
    desk = Desk(agent(deadline_s=70.0, budget={"tokens_per_minute": 400}))
    for name in ("a", "b"):  # each may take 200
        desk.take(call(name))
    assert len(started(orders(desk, T0 + 59_999))) == 2
    for name in ("a", "b"):
        desk.spent(desk.calls[name], T0 + 60_000, 10, 0.0)
        desk.ended(desk.calls[name], T0 + 60_000, None)
    for name in ("c", "d", "e"):
        desk.take(call(name, at_ms=T0 + 60_001))
    found = orders(desk, T0 + 60_001)
    assert (len(started(found)), concluded(found)) == (1, [("d", None, "budget"), ("e", None, "budget")])


def test_cost_of_what_is_in_flight_counts_before_it_is_spent() -> None:
    desk = Desk(agent(budget={"cost_per_day": 0.5, "price_in": 1000.0, "price_out": 1000.0}))  # a call may cost 0.2
    for name in ("a", "b", "c"):
        desk.take(call(name))
    found = orders(desk)
    assert (len(started(found)), concluded(found)) == (2, [("c", None, "budget")])
    for name in ("a", "b"):
        fail(desk, name)
    assert desk.books.day.taken(T0) == (0, 0.0)


def test_a_second_model_is_no_call_that_was_lost() -> None:
    desk = Desk(agent(fallback=[{"model": "small"}]))
    desk.take(call("a"))
    orders(desk)
    fail(desk, "a")
    (order,) = orders(desk)
    assert (isinstance(order, Start), order.call.starts) == (True, 1)
    again = Desk(desk.agent, desk.to_dict(), [order.call.to_dict()])
    assert again.calls["a"].starts == 2


def test_a_call_kept_by_an_older_version_is_read() -> None:
    kept = call("a", is_asked=True, reserved=200).to_dict()
    for name in ("reserved_cost", "reserved_at_ms", "is_answered"):
        del kept[name]
    desk = Desk(agent(budget={"tokens_per_minute": 200}), {"minutes": {str(T0 // 60_000): [200.0, 0.0]}}, [kept])
    assert started(orders(desk)) == [("a", "large")]


def test_a_model_that_would_have_no_time_for_an_answer_is_not_asked() -> None:
    """It would be paid for, cancelled, and count as a failure of a model that is well."""
    desk = Desk(agent(fallback=[{"model": "small"}]))
    desk.take(call("first", level=1))
    orders(desk)
    desk.ended(desk.calls["first"], T0 + 3_000, None)
    for name in ("late", "in time"):
        desk.take(call(name))
    orders(desk)
    fail(desk, "in time", at_ms=T0 + 6_000)
    assert started(orders(desk, T0 + 6_000)) == [("in time", "small")]
    fail(desk, "late", at_ms=T0 + 7_500)
    assert concluded(orders(desk, T0 + 7_500)) == [("late", None, "failed")]


def test_a_model_slower_than_half_the_deadline_is_still_asked() -> None:
    desk = Desk(agent())
    desk.take(call("slow"))
    orders(desk)
    desk.ended(desk.calls["slow"], T0 + 60_000, None)
    desk.take(call("next", at_ms=T0 + 60_000))
    assert started(orders(desk, T0 + 60_000)) == [("next", "large")]


def test_after_a_restart_what_was_asked_is_looked_for_from_then_on_and_what_was_not_since_the_books_were_kept() -> None:
    def since(*kept: Call, state: dict[str, Any] | None = None) -> int:
        return Desk(agent(), state, [each.to_dict() for each in kept]).unknown_since_ms() - T0

    waits, hour_ms = call("waits"), 3_600_000
    asked = call("asked", asked_at_ms=T0 + hour_ms)
    answered = call("answered", asked_at_ms=T0 + hour_ms, is_answered=True, appended_ms=T0 + 5)
    books = {"seconds": {str(T0 // 1000 + 7200): [1.0, 0.0]}, "minutes": {}}
    assert since(waits) == 0
    assert since(asked) == hour_ms
    assert since(asked, waits) == 0
    assert since(waits, state=books) == 2 * hour_ms - 60_000
    assert since(asked, waits, state=books) == hour_ms
    assert since(asked, answered, state=books) == 5, "it is not known when it was"
