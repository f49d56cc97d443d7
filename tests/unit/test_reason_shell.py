"""The Flink shell of `reason` over states that are dictionaries, with real calls: restarts, and what comes from outside."""

from __future__ import annotations

import base64
import copy
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from pyflink.common import Row

from contracts.dead_letter import Cause
from contracts.envelope import derive_id
from contracts.errors import BadInput, BrokerUnavailable
from contracts.prompt import Prompt
from contracts.topics import DAY_MS, topic
from ops.model_rules import Rule
from ops.model_server import Behaviour, ModelServer, running
from tests.confluent_stand_in import StandInTopic
from tests.unit.test_converse import answering
from tests.unit.test_govern_shell import Runtime
from udfs.reason import caller, recorded
from udfs.reason.flink import DONE_STATE, Reason
from udfs.reason.recorded import digest
from udfs.serde import write_event
from udfs.state import BOOKS, CALLS

AGENTS = """\
agents:
  - agent: carer
    version: 1
    kind: llm
    situation: machines.cooling_failed
    prompt: care
    model: m
    actions: [schedule_maintenance]
    attempts: 1
    asks: 1
    deadline_s: 20
    fallback: [{agent: rule}]
  - agent: rule
    version: 1
    kind: rule
    is_fallback: true
    situation: machines.cooling_failed
    when: "true"
    confidence: 0.5
    propose: {action: schedule_maintenance, parameters: {priority: normal}, reason: nobody answered}
"""
NOBODY = "agents: []\n"
GOOD = Rule.model_validate_json(
    orjson.dumps({"name": "good", "reply": {"action": "schedule_maintenance", "parameters": {"priority": "urgent"}}})
)
FAILS = Rule.model_validate_json(orjson.dumps({"name": "fails", "status": 400}))
TEXT = "Decide whether the machine needs maintenance."
PROMPT = Prompt(prompt_id="care", version=3, model="m", text=TEXT, sha256=digest(TEXT))


class Counted:
    """Flink's metrics, as far as they are asked: gauges are kept, and what was counted."""

    def __init__(self, gauges: dict[str, Callable[[], int]], counts: Counter[str], name: str = "") -> None:
        self._gauges, self._counts, self._name = gauges, counts, name

    def add_group(self, *_: str) -> Counted:
        return self

    def counter(self, name: str) -> Counted:
        return Counted(self._gauges, self._counts, name)

    def inc(self, by: int = 1) -> None:
        self._counts[self._name] += by

    def gauge(self, name: str, value: Callable[[], int]) -> None:
        self._gauges[name] = value


class Operator(Runtime):
    """What Flink gives to `reason`."""

    def __init__(self) -> None:
        super().__init__()
        self.gauges: dict[str, Callable[[], int]] = {}
        self.counts: Counter[str] = Counter()

    def get_metrics_group(self) -> Counted:
        return Counted(self.gauges, self.counts)

    def items(self) -> list[tuple[str, str]]:
        return list(self.broadcast.items())

    def remove(self, name: str) -> None:
        del self.broadcast[name]

    def checkpoint(self) -> Operator:
        """Another operator with what this one has in state."""
        other = Operator()
        for name, keyed in self.states.items():
            other.get_state(type("Descriptor", (), {"name": name}), keyed.empty).all = copy.deepcopy(keyed.all)
        other.timers, other.broadcast = set(self.timers), dict(self.broadcast)
        return other


class Shell:
    """`reason` with what it wrote."""

    def __init__(self, agents: Path, url: str, runtime: Operator | None = None, *, prompts: int = 0, model: str = "") -> None:
        self.runtime, self.wrote, self.offset = runtime or Operator(), list[tuple[str, dict[str, Any]]](), 0
        self.reason = Reason("machines", str(agents), "nowhere", {"machines.prompts": prompts}, 10, url, model)
        self.reason.open(self.runtime)  # type: ignore[arg-type]

    def _keep(self, rows: Iterator[Any]) -> None:
        self.wrote += [(row[0], orjson.loads(row[2])) for row in rows]

    def publish(self, value: bytes | None = None) -> None:
        event = orjson.dumps({"type": Prompt.event_type, "data": PROMPT.model_dump()}) if value is None else value
        self._keep(self.reason.process_broadcast_element(Row(b"", event, "machines.prompts", 0, self.offset), self.runtime))
        self.offset += 1

    def read(self, *values: bytes, appended_ms: int | None = None) -> None:
        self.runtime.key = "carer"
        for value in values:
            row = Row("carer", orjson.loads(value)["subject"].encode(), value, "machines.situations", 0, self.offset, appended_ms or int(time.time() * 1000))
            self.offset += 1
            self._keep(self.reason.process_element(row, self.runtime))

    def fire(self) -> None:
        """Every timer there is, once."""
        due, self.runtime.timers = sorted(self.runtime.timers), set()
        for at, key in due:
            self.runtime.now, self.runtime.key = at, key
            self._keep(self.reason.on_timer(at, self.runtime))

    def fire_until(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not holds():
            assert time.monotonic() < deadline, f"wrote {self.wrote}, calls {self.calls}"
            self.fire()
            time.sleep(0.005)

    @property
    def calls(self) -> list[dict[str, Any]]:
        return [CALLS.load(text) for text in self.runtime.states["calls"].all.get("carer", {}).values()]

    @property
    def books(self) -> dict[str, Any]:
        found: dict[str, Any] = BOOKS.load(self.runtime.states["books"].all.get("carer", "{}"))
        return found

    @property
    def reserved(self) -> float:
        return float(sum(tokens for tokens, _ in self.books["minutes"].values()))

    def of(self, topic: str) -> list[dict[str, Any]]:
        return [event for name, event in self.wrote if name == topic]

    @property
    def proposed(self) -> list[tuple[str, str]]:
        return [(event["causationid"], event["data"]["agent"]) for event in self.of("proposals")]

    @property
    def causes(self) -> list[str]:
        return [event["data"]["cause"] for event in self.of("dead-letters")]


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> StandInTopic:
    made = StandInTopic()
    monkeypatch.setattr(recorded, "Producer", made.producer)
    monkeypatch.setattr(recorded, "Consumer", made.consumer)
    return made


@pytest.fixture
def agents(tmp_path: Path) -> Path:
    path = tmp_path / "agents.yaml"
    path.write_text(AGENTS)
    return path


@contextmanager
def shell(agents: Path, server: ModelServer, runtime: Operator | None = None, model: str = "") -> Iterator[Shell]:
    made = Shell(agents, server.base_url, runtime, model=model)
    try:
        if runtime is None:
            made.publish()
        yield made
    finally:
        made.reason.close()


def situation(name: str, *, at: str = "2026-01-01T00:00:00Z", subject: str = "m-1", **more: Any) -> bytes:
    return write_event(
        event_id=name, source="/a", event_type="machines.cooling_failed", subject=subject, time_ms=0, dataschema="urn:x",
        data={"event_time": at, "command_id": "c", "detail": "valve"}, correlation_id="chain", **more,
    )  # fmt: skip


def test_a_situation_becomes_one_proposal_however_often_it_comes(log: StandInTopic, agents: Path) -> None:
    with running(Behaviour(latency_ms=0), [GOOD]) as server, shell(agents, server) as reason:
        reason.read(situation("s-1"), situation("s-1"))
        reason.fire_until(lambda: bool(reason.proposed))
        reason.read(situation("s-1"))
        reason.fire()
        assert server.stats()["requests"] == 1
    assert reason.proposed == [("s-1", "carer")]
    assert reason.calls == []
    assert [gauge() for gauge in reason.runtime.gauges.values()] == [0, 0]


def test_what_was_concluded_is_remembered_for_longer_than_the_facts_it_may_be_repeated_from() -> None:
    kept_ms = topic("facts").retention_ms + 7 * DAY_MS  # Kafka removes a segment as a whole, and begins one a week
    assert DONE_STATE._ttl_config is not None
    assert DONE_STATE._ttl_config.get_ttl().to_milliseconds() > kept_ms


def test_a_situation_is_a_dead_letter_when_what_the_fallback_proposes_is_too_large(
    log: StandInTopic, agents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(*_: Any, **__: Any) -> None:
        raise BadInput(Cause.TOO_LARGE, "a test")

    with running(Behaviour(latency_ms=0)) as server, shell(agents, server, Operator()) as reason:
        monkeypatch.setattr(reason.reason._agents, "fall_back", too_large)
        reason.read(situation("s-1"))  # there is no prompt: it falls back at once
        reason.fire_until(lambda: bool(reason.causes))
    assert (reason.causes, reason.proposed, reason.calls) == (["too_large"], [], [])


def test_what_is_concluded_and_not_yet_written_counts_as_waiting(log: StandInTopic, agents: Path) -> None:
    with running(Behaviour(latency_ms=0)) as server, shell(agents, server, Operator()) as reason:
        reason.read(situation("s-1"))  # there is no prompt: it falls back at once
        assert reason.runtime.gauges["waiting"]() == 1
        reason.fire_until(lambda: bool(reason.proposed))
    assert reason.proposed == [("s-1", "rule")]


def test_a_reply_recorded_before_a_restart_is_used_again(log: StandInTopic, agents: Path) -> None:
    with running(Behaviour(latency_ms=0), [GOOD]) as server:
        with shell(agents, server) as before:
            before.read(situation("s-1"))
            lost = before.runtime.checkpoint()
            before.fire_until(lambda: bool(before.proposed))
        log.log, log.end = log.log[:1], 1  # its conclusion was not recorded
        with shell(agents, server, lost) as after:
            after.fire_until(lambda: bool(after.proposed))
        assert server.stats()["requests"] == 1
    assert after.proposed == before.proposed
    assert after.calls == []


def test_a_reply_that_was_read_back_is_known_after_one_more_restart(log: StandInTopic, agents: Path) -> None:
    agents.write_text(AGENTS.replace("attempts: 1", "concurrency: 1"))
    with running(Behaviour(latency_ms=0), [GOOD]) as server, shell(agents, server) as before:
        before.read(situation("s-1"))
        before.fire_until(lambda: bool(before.proposed))
    log.log, log.end = log.log[:1], 1  # its conclusion was not recorded, and no checkpoint knows of it
    log.log[0].timestamp_ms -= 3_600_000
    with running(Behaviour(latency_ms=60_000)) as server, shell(agents, server) as second:
        second.read(situation("s-0"))
        second.read(situation("s-1"), appended_ms=log.log[0].timestamp_ms)
        lost = second.runtime.checkpoint()
    assert sorted((call["situation_id"], call["is_answered"]) for call in second.calls) == [("s-0", False), ("s-1", True)]
    with running(Behaviour(latency_ms=0), [GOOD]) as server, shell(agents, server, lost) as after:
        after.fire_until(lambda: len(after.proposed) == 2)
        assert server.stats()["requests"] == 1, "for s-0 only"


def test_what_was_concluded_before_a_restart_is_written_as_it_was_when_a_newer_situation_comes_first(
    log: StandInTopic, agents: Path
) -> None:
    with running(Behaviour(latency_ms=0), [GOOD]) as server:
        with shell(agents, server) as before:
            before.read(situation("old", expiry="2026-01-01T00:00:10Z"))
            lost = before.runtime.checkpoint()
            before.fire_until(lambda: bool(before.proposed))
        with shell(agents, server, lost) as after:
            after.read(situation("new", at="2026-01-01T01:00:00Z"))
            after.fire_until(lambda: len(after.proposed) == 2)
    assert after.proposed == [("old", "carer"), ("new", "carer")]
    assert after.of("proposals")[0] == before.of("proposals")[0]


TOO_DEAR = AGENTS.replace(
    "fallback: [{agent: rule}]", "budget: {cost_per_day: 0.001, price_in: 1000}\n    fallback: [{model: second}, {agent: rule}]"
)


def conclusions(log: StandInTopic) -> list[dict[str, Any]]:
    events = [orjson.loads(message.value() or b"{}") for message in log.log]
    return [event["data"] for event in events if event["type"] == "flyball.concluded"]


def test_a_cheaper_model_that_answers_since_the_budget_is_spent_says_so(log: StandInTopic, agents: Path) -> None:
    agents.write_text(TOO_DEAR)
    with running(Behaviour(latency_ms=0), [GOOD]) as server, shell(agents, server) as reason:
        reason.read(situation("s-1"))
        reason.fire_until(lambda: bool(reason.proposed))
    (proposal,), (concluded,) = reason.of("proposals"), conclusions(log)
    assert (proposal["data"]["agent"], proposal["data"]["reasoned"]["model"]) == ("carer", "second")
    assert proposal["data"]["fallback"].startswith("carer: budget: 0 of 0.001 cost a day taken, this call may take ")
    assert (concluded["how"], concluded["why"], concluded["by"]) == ("proposed", "budget", "second")
    assert f"carer: {concluded['explanation']}" == proposal["data"]["fallback"]
    assert (reason.runtime.counts["fell_back"], reason.runtime.counts["proposed"]) == (1, 0)


def test_the_agents_own_model_is_no_fallback(log: StandInTopic, agents: Path) -> None:
    with running(Behaviour(latency_ms=0), [GOOD]) as server, shell(agents, server) as reason:
        reason.read(situation("s-1"))
        reason.fire_until(lambda: bool(reason.proposed))
    assert "fallback" not in reason.of("proposals")[0]["data"]
    assert (reason.runtime.counts["fell_back"], reason.runtime.counts["proposed"]) == (0, 1)


def test_a_cheaper_models_reply_that_is_used_after_a_restart_says_so_too(log: StandInTopic, agents: Path) -> None:
    agents.write_text(TOO_DEAR)
    with running(Behaviour(latency_ms=0), [GOOD]) as server:
        with shell(agents, server) as before:
            before.read(situation("s-1"))
            lost = before.runtime.checkpoint()
            for name, text in lost.states["calls"].all["carer"].items():  # as it was before it was asked
                call = CALLS.load(text) | {"level": 0, "troubles": [], "is_asked": False, "starts": 0, "asked_at_ms": 0}
                lost.states["calls"].all["carer"][name] = CALLS.dump(call)
            before.fire_until(lambda: bool(before.proposed))
        log.log = [message for message in log.log if b"flyball.exchange" in (message.value() or b"")]
        with shell(agents, server, lost) as after:
            after.fire_until(lambda: bool(after.proposed))
    assert after.of("proposals")[0]["data"]["fallback"] == "carer: failed: given up before a restart"


def test_an_answer_that_is_no_completion_goes_to_dead_letters_as_it_came(log: StandInTopic, agents: Path) -> None:
    page = b"<html>please log in</html>"
    with answering(page, "text/html") as server, shell(agents, server) as reason:
        reason.read(situation("s-1"))
        reason.fire_until(lambda: bool(reason.proposed))
    (letter,) = reason.of("dead-letters")
    assert (letter["data"]["cause"], base64.b64decode(letter["data"]["value_base64"])) == ("reply_refused", page)
    assert reason.proposed == [("s-1", "rule")]
    assert reason.runtime.counts["malformed"] == 1


def test_a_situation_that_waited_past_its_expirytime_is_dropped_as_an_event_and_never_asked(log: StandInTopic, agents: Path) -> None:
    agents.write_text(AGENTS.replace("attempts: 1", "concurrency: 1"))
    with running(Behaviour(latency_ms=60_000), [GOOD]) as server, shell(agents, server) as reason:
        reason.read(situation("first", subject="m-1"), situation("once", subject="m-2", expiry="2026-01-01T01:00:00Z"))
        reason.read(situation("newer", subject="m-2", at="2026-01-01T01:00:01Z"))
        reason.fire_until(lambda: bool(conclusions(log)))
        assert [(each["situation_id"], each["how"], each["why"]) for each in conclusions(log)] == [("once", "abstained", "expired")]
        assert server.stats()["requests"] <= 1, "only the first"


def test_a_situation_that_waited_longer_than_it_was_of_use_is_dropped_though_nothing_else_comes(log: StandInTopic, agents: Path) -> None:
    agents.write_text(AGENTS.replace("attempts: 1", "concurrency: 1"))
    with running(Behaviour(latency_ms=60_000), [GOOD]) as server, shell(agents, server) as reason:
        reason.read(situation("first", subject="m-1"), situation("once", subject="m-2", expiry="2026-01-01T00:00:01Z"))
        assert len(reason.calls) == 2
        reason.fire_until(lambda: bool(conclusions(log)))
        assert [(each["situation_id"], each["how"], each["why"]) for each in conclusions(log)] == [("once", "abstained", "expired")]


def test_one_model_asked_in_place_of_all_has_no_cheaper_one_under_other_prices(log: StandInTopic, agents: Path) -> None:
    agents.write_text(AGENTS.replace("fallback: [{agent: rule}]", "fallback: [{model: second}, {agent: rule}]"))
    with running(Behaviour(latency_ms=0), [GOOD]) as server, shell(agents, server, model="named-here") as reason:
        reason.read(situation("s-1"))
        reason.fire_until(lambda: bool(reason.proposed))
    assert reason.of("proposals")[0]["data"]["reasoned"]["model"] == "named-here"
    with running(Behaviour(latency_ms=0), [FAILS]) as server, shell(agents, server, model="named-here") as reason:
        reason.read(situation("s-2"))
        reason.fire_until(lambda: bool(reason.proposed))
        assert server.stats()["requests"] == 1
    assert reason.proposed == [("s-2", "rule")]


def test_a_model_that_was_given_up_is_not_asked_again_after_a_restart(log: StandInTopic, agents: Path) -> None:
    agents.write_text(AGENTS.replace("fallback: [{agent: rule}]", "fallback: [{model: second}]"))
    with running(Behaviour(latency_ms=0, malformed_rate=1)) as server, shell(agents, server) as before:
        before.read(situation("s-1"))
        before.fire_until(lambda: [call["level"] for call in before.calls] == [1])
        lost, asked = before.runtime.checkpoint(), server.stats()["requests"]
        log.log, log.end = log.log[:1], 1
    assert asked <= 2
    with running(Behaviour(latency_ms=0), [GOOD]) as server, shell(agents, server, lost) as after:
        after.fire_until(lambda: bool(after.proposed))
        assert server.stats()["requests"] == 1
    told = after.of("proposals")[0]["data"]["reasoned"]
    assert (told["model"], told["asked"]) == ("second", 2)


def test_what_calls_in_flight_had_reserved_is_given_back_once_however_many_restarts(log: StandInTopic, agents: Path) -> None:
    with running(Behaviour(latency_ms=60_000)) as server:
        with shell(agents, server) as first:
            first.read(situation("s-1"), situation("s-2"))
            runtime = first.runtime.checkpoint()
        reserved = first.calls[0]["reserved"]
        assert first.reserved == 2 * reserved > 0
        agents.write_text(AGENTS.replace("attempts: 1", "concurrency: 1"))
        for starts in (2, 3, 4):
            with shell(agents, server, runtime) as again:
                again.fire()
                runtime = again.runtime.checkpoint()
            assert again.reserved == reserved
            assert sorted(call["starts"] for call in again.calls) == [2, starts]


def test_calls_of_an_agent_that_is_declared_no_more_go_to_dead_letters(log: StandInTopic, agents: Path) -> None:
    with running(Behaviour(latency_ms=60_000)) as server:
        with shell(agents, server) as before:
            before.read(situation("s-1"), situation("s-2"))
        agents.write_text(NOBODY)
        with shell(agents, server, before.runtime.checkpoint()) as after:
            after.fire()
    assert after.causes == ["agent_gone", "agent_gone"]
    assert (after.calls, after.books, after.runtime.timers) == ([], {}, set())


def test_a_call_whose_situation_the_contract_no_longer_fits_goes_to_dead_letters(log: StandInTopic, agents: Path) -> None:
    with running(Behaviour(latency_ms=0), [GOOD]) as server:
        with shell(agents, server) as before:
            before.read(situation("s-1"))
            before.read(situation("s-2"))
            kept = before.runtime.checkpoint()
        calls = kept.states["calls"].all["carer"]
        name = derive_id("s-1", "reason", "carer")
        calls[name] = calls[name].replace("command_id", "order_id")
        with shell(agents, server, kept) as after:
            after.fire_until(lambda: bool(after.proposed))
    assert (after.causes, after.proposed, after.calls) == (["data_invalid"], [("s-2", "carer")], [])


def test_a_fallback_that_is_no_more_says_nothing(log: StandInTopic, agents: Path) -> None:
    with running(Behaviour(latency_ms=0), [FAILS]) as server:
        with shell(agents, server) as before:
            before.read(situation("s-1"))
            lost = before.runtime.checkpoint()
            before.fire_until(lambda: bool(before.proposed))
        agents.write_text(AGENTS.replace("agent: rule", "agent: other"))
        with shell(agents, server, lost) as after:
            after.fire_until(lambda: not after.calls)
    assert (before.proposed, after.proposed) == ([("s-1", "rule")], [])


def test_a_conclusion_whose_reply_is_gone_is_told(log: StandInTopic, agents: Path) -> None:
    with running(Behaviour(latency_ms=0), [GOOD]) as server:
        with shell(agents, server) as before:
            before.read(situation("s-1"))
            lost = before.runtime.checkpoint()
            before.fire_until(lambda: bool(before.proposed))
        log.log = [m for m in log.log if b"flyball.concluded" in (m.value() or b"")]
        with shell(agents, server, lost) as after:
            after.fire()
    assert (after.causes, after.proposed, after.calls) == (["reply_refused"], [], [])


def test_a_broker_that_is_away_fails_the_job_with_that_cause(log: StandInTopic, agents: Path) -> None:
    with running(Behaviour(latency_ms=0), [GOOD]) as server, shell(agents, server) as reason:
        log.is_down = True
        reason.read(situation("s-1"))
        with pytest.raises(BrokerUnavailable, match=r"machines\.exchanges"):
            reason.fire_until(lambda: False)


def test_a_situation_becomes_a_dead_letter_when_reading_it_fails_as_nobody_foresaw(
    log: StandInTopic, agents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(Behaviour(latency_ms=0), [GOOD]) as server, shell(agents, server) as reason:
        reads = reason.reason._agents.read
        monkeypatch.setattr(reason.reason._agents, "read", lambda *_: {}["Ada Lovelace"])
        reason.read(situation("s-1"))
        monkeypatch.setattr(reason.reason._agents, "read", reads)
        reason.read(situation("s-2"))
        reason.fire_until(lambda: bool(reason.proposed))
    assert (reason.causes, reason.proposed) == (["internal"], [("s-2", "carer")])
    assert "Lovelace" not in str(reason.wrote)


def test_an_error_nobody_foresaw_asks_the_next_one_and_tells_no_more_than_its_kind(
    log: StandInTopic, agents: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: object) -> None:
        raise KeyError("Ada Lovelace")

    monkeypatch.setattr(caller, "converse", broken)
    with running(Behaviour(latency_ms=0)) as server, shell(agents, server) as reason:
        reason.read(situation("s-1"))
        reason.fire_until(lambda: bool(reason.proposed))
    assert reason.proposed == [("s-1", "rule")]
    assert "internal error, KeyError" in reason.of("proposals")[0]["data"]["fallback"]
    assert reason.reserved > 0, "it may have been billed"
    assert "KeyError" in caplog.text and "Lovelace" not in caplog.text + str(reason.wrote) + str(log.log)


@pytest.mark.parametrize("value", [b"", b"{", b"[]", b'"x"', b'{"type":"flyball.prompt"}', b'{"type":"flyball.prompt","data":{"x":1}}', b"\xff"])
def test_a_malformed_prompt_goes_to_dead_letters_and_the_one_before_stays(log: StandInTopic, agents: Path, value: bytes) -> None:
    with running(Behaviour(latency_ms=0), [GOOD]) as server, shell(agents, server) as reason:
        reason.publish(value)
        reason.read(situation("s-1"))
        reason.fire_until(lambda: bool(reason.proposed))
    assert (len(reason.causes), reason.proposed) == (1, [("s-1", "carer")])


def test_no_request_is_told_in_a_log(log: StandInTopic, agents: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A line a call is much, and a look-up's URL holds what is masked in prompts."""
    with caplog.at_level(logging.INFO), running(Behaviour(latency_ms=0), [GOOD]) as server, shell(agents, server) as reason:
        reason.read(situation("s-1"))
        reason.fire_until(lambda: bool(reason.proposed))
    assert not [record for record in caplog.records if "HTTP Request" in record.getMessage()]
