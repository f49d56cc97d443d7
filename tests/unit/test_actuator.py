"""The actuator: once per command whatever happens, with real SQLite and a broker in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from kafka.errors import KafkaError

from contracts.envelope import derive_id
from contracts.outcome import Outcome
from ops.actuator import without_handler
from ops.consume import Commands
from ops.memory import Memory
from ops.world import Done, Order
from tests.kafka_stand_in import StandInBroker, StandInConsumer, StandInProducer

NOW_MS = 1_400_000_000_000


def a_command(command_id: str = "c-1", *, action: str = "cool", expiry: str | None = None, **changes: object) -> bytes:
    event: dict[str, Any] = {
        "specversion": "1.0", "id": command_id, "type": "flyball.command", "subject": "m-1", "hops": 2,
        "correlationid": "chain-1",
        "data": {
            "event_time": "2014-01-01T00:00:00Z", "command_id": command_id, "action": action,
            "parameters": {"duration_s": 60}, "agent": "a", "decision_id": "d", "proposal_id": "p",
            "reason": "",
        },
    }  # fmt: skip
    if expiry is not None:
        event["expirytime"] = expiry
    return orjson.dumps(event | changes)


class Plant:
    """A broker, a memory on disk and handlers that count; `start` makes an actuator on them."""

    def __init__(self, folder: Path) -> None:
        self.broker = StandInBroker()
        self.orders: list[Order] = []
        self.step_s = 0.0  # how far the actuator's clock is off
        self._file = folder / "actuator.sqlite"
        self._memory: Memory | None = None

    def start(self) -> Commands:
        if self._memory is not None:
            self._memory.close()
        self._memory = Memory(self._file)

        def cool(order: Order) -> Done:
            self.orders.append(order)
            return Done("succeeded", "", 30)

        def mow(order: Order) -> Done:
            return Done("succeeded", cost=12.5)

        def explode(order: Order) -> Done:
            self.orders.append(order)
            raise RuntimeError("valve stuck")

        return Commands(
            "machines", {"cool": cool, "explode": explode, "mow": mow},
            reader=StandInConsumer(self.broker, "machines.commands"),  # type: ignore[arg-type]
            writer=StandInProducer(self.broker),  # type: ignore[arg-type]
            memory=self._memory, otherwise=without_handler, now_ms=lambda: NOW_MS + int(self.step_s * 1000),
        )  # fmt: skip

    def command(self, value: bytes | None, *, waited_s: float = 0.0) -> None:
        self.broker.put("machines.commands", b"m-1", value, timestamp=NOW_MS - int(waited_s * 1000))

    def outcomes(self) -> list[dict[str, Any]]:
        return [orjson.loads(value or b"") for value in self.broker.values("machines.outcomes")]


@pytest.fixture
def plant(tmp_path: Path) -> Plant:
    return Plant(tmp_path)


def test_an_outcome_is_reported_when_a_command_is_done(plant: Plant) -> None:
    plant.command(a_command(traceparent="00-1-2-01"))
    assert plant.start().step() == 1
    (outcome,) = plant.outcomes()
    assert Outcome.model_validate(outcome["data"])
    assert (outcome["data"]["status"], outcome["data"]["command_id"]) == ("succeeded", "c-1")
    assert outcome["time"] == outcome["data"]["event_time"] == "2014-01-01T00:00:30Z"
    assert outcome["id"] == derive_id("c-1", "actuator", "cool")
    assert (outcome["subject"], outcome["hops"], outcome["traceparent"]) == ("m-1", 3, "00-1-2-01")
    assert (outcome["correlationid"], outcome["causationid"]) == ("chain-1", "c-1")
    assert [(o.command_id, o.parameters) for o in plant.orders] == [("c-1", {"duration_s": 60})]


def test_nothing_is_done_when_a_command_carries_the_obligation_of_a_dry_run(plant: Plant) -> None:
    event = orjson.loads(a_command())
    event["data"]["obligations"] = {"dry_run": True, "notify": "shift"}
    plant.command(orjson.dumps(event))
    plant.start().step()
    (outcome,) = plant.outcomes()
    assert (outcome["data"]["status"], outcome["data"]["detail"]) == ("succeeded", "dry run: nothing was done")
    assert plant.orders == []


def test_the_outcome_tells_what_it_cost_when_the_handler_does(plant: Plant) -> None:
    plant.command(a_command(action="mow"))
    plant.start().step()
    (outcome,) = plant.outcomes()
    assert Outcome.model_validate(outcome["data"]).cost == 12.5


def test_each_command_is_done_once_when_the_clock_steps_back_by_a_minute_and_forth(plant: Plant) -> None:
    actuator = plant.start()
    for number, step_s in enumerate((0.0, -60.0, 0.0, 60.0)):
        plant.step_s = step_s
        for _ in range(2):
            plant.command(a_command(f"c-{number}", expiry="2014-01-01T00:02:00Z"))
            actuator.step()
    assert [(o["data"]["command_id"], o["data"]["status"]) for o in plant.outcomes()] == [
        ("c-0", "succeeded"), ("c-1", "succeeded"), ("c-2", "succeeded"), ("c-3", "succeeded"),
    ]  # fmt: skip
    assert len(plant.orders) == 4


def test_a_command_is_refused_and_not_done_when_the_clock_steps_past_its_expiry(plant: Plant) -> None:
    plant.step_s = 60.0
    plant.command(a_command(expiry="2014-01-01T00:00:30Z"))
    plant.start().step()
    (outcome,) = plant.outcomes()
    assert outcome["data"]["status"] == "failed" and outcome["data"]["detail"].startswith("expired")
    assert plant.orders == []


def test_an_outcome_is_told_once_when_its_command_comes_twice_at_once(plant: Plant) -> None:
    actuator = plant.start()
    for _ in range(2):
        plant.command(a_command("c-1"))
    actuator.step()
    assert len(plant.outcomes()) == len(plant.orders) == 1


def test_nothing_is_done_again_when_a_command_comes_twice(plant: Plant) -> None:
    actuator = plant.start()
    for _ in range(2):
        plant.command(a_command())
        actuator.step()
    plant.command(a_command())
    plant.command(a_command())
    actuator.step()
    assert len(plant.orders) == len(plant.outcomes()) == 1


def test_nothing_is_done_again_when_a_command_is_read_again_after_a_restart(plant: Plant) -> None:
    plant.command(a_command())
    plant.start().step()
    plant.broker.committed.clear()
    plant.start().step()
    assert len(plant.orders) == len(plant.outcomes()) == 1


def test_reading_goes_on_behind_what_was_committed_when_it_restarts(plant: Plant) -> None:
    plant.command(a_command("c-1"))
    plant.start().step()
    plant.command(a_command("c-2"))
    assert plant.start().step() == 1
    assert [o.command_id for o in plant.orders] == ["c-1", "c-2"]


def test_the_next_step_publishes_the_stored_outcome_when_the_broker_did_not_take_it(plant: Plant) -> None:
    plant.command(a_command())
    actuator = plant.start()
    plant.broker.is_down = True
    with pytest.raises(KafkaError):
        actuator.step()
    plant.broker.is_down = False
    actuator.step()
    assert len(plant.orders) == len(plant.outcomes()) == 1
    assert list(plant.broker.committed.values()) == [1]


def test_the_stored_outcome_is_published_when_a_crash_came_before_it_could_be(plant: Plant) -> None:
    plant.command(a_command())
    plant.broker.is_down = True
    with pytest.raises(KafkaError):
        plant.start().step()
    assert plant.outcomes() == []
    plant.broker.is_down = False
    plant.start().step()
    assert len(plant.orders) == 1, "the handler is not called again"
    assert [o["data"]["command_id"] for o in plant.outcomes()] == ["c-1"]
    plant.broker.committed.clear()
    plant.start().step()
    assert len(plant.outcomes()) == 1


def test_the_outcome_is_failed_when_the_handler_raises(plant: Plant) -> None:
    plant.command(a_command(action="explode"))
    plant.command(a_command("c-2"))
    plant.start().step()
    failed, succeeded = plant.outcomes()
    assert (failed["data"]["status"], failed["data"]["detail"]) == ("failed", "RuntimeError: valve stuck")
    assert succeeded["data"]["status"] == "succeeded"


def test_the_outcome_is_failed_when_no_handler_knows_the_action(plant: Plant) -> None:
    plant.command(a_command(action="fly"))
    plant.start().step()
    (outcome,) = plant.outcomes()
    assert outcome["data"]["status"] == "failed"
    assert "no handler for action 'fly'" in outcome["data"]["detail"]


def test_the_handler_is_not_called_when_the_command_waited_past_its_expiry(plant: Plant) -> None:
    expiry = "2014-01-01T00:01:00Z"  # a minute behind its cause
    plant.command(a_command("late", expiry=expiry), waited_s=61)
    plant.command(a_command("in-time", expiry=expiry), waited_s=10)
    plant.start().step()
    late, in_time = plant.outcomes()
    assert late["data"]["status"] == "failed"
    assert late["data"]["detail"].startswith("expired")
    assert in_time["data"]["status"] == "succeeded"
    assert [o.command_id for o in plant.orders] == ["in-time"]


@pytest.mark.parametrize(
    ("value", "cause"),
    [
        (None, "empty"),
        (b"", "empty"),
        (b"{", "not_json"),
        (b"[]", "not_json"),
        (b'{"data":{"command_id":"c"}}', "not_json"),
        (orjson.dumps({"data": {"command_id": "c"}, "subject": "m-1"}), "data_invalid"),
        (a_command(hops="many"), "envelope_invalid"),
        (a_command(expiry="soon"), "envelope_invalid"),
    ],
)
def test_a_command_goes_to_dead_letters_when_it_is_malformed(
    plant: Plant, value: bytes | None, cause: str
) -> None:
    plant.command(value)
    plant.command(a_command("good"))
    actuator = plant.start()
    actuator.step()
    (letter,) = [orjson.loads(v or b"") for v in plant.broker.values("machines.dead-letters")]
    assert (letter["data"]["cause"], letter["data"]["stage"]) == (cause, "actuator")
    assert letter["subject"] == "machines.commands/0/0"
    assert [o.command_id for o in plant.orders] == ["good"]
    assert actuator.step() == 0, "the bad record is not read again"


def test_the_same_bytes_come_out_when_two_actuators_act_on_a_command(tmp_path: Path) -> None:
    plants = [Plant(tmp_path / name) for name in ("one", "two")]
    for plant in plants:
        plant.command(a_command())
        plant.start().step()
    assert plants[0].outcomes() == plants[1].outcomes()
