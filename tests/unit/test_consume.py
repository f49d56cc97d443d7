"""What waits for another attempt: in its subject's order, over restarts and rebalances, and not for ever."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kafka import TopicPartition

from contracts.dead_letter import DeadLetter
from contracts.errors import Retryable
from contracts.outcome import Outcome
from ops import consume
from ops.consume import Commands, Patience, Unfinished
from ops.kafka import Record
from ops.memory import Memory
from ops.world import Done, Order
from tests.kafka_stand_in import StandInBroker, StandInConsumer, StandInProducer

COMMANDS = TopicPartition("machines.commands", 0)


class Plant:
    """A broker, a clock that stands, and a handler that fails for those subjects that `down` names."""

    def __init__(self, folder: Path) -> None:
        self.broker = StandInBroker()
        self.now_ms = 1_000_000_000_000
        self.down: dict[str, Exception] = {}
        self.tried: list[str] = []
        self.reader = StandInConsumer(self.broker)
        self.on_call: Callable[[], None] = lambda: None
        self.gives: Any = Done("succeeded")
        self._folder = folder
        self._memories: list[Memory] = []

    def start(self, *, machine: str = "here", **options: Any) -> Commands:
        """A program on `machine`, whose files are its own; the one before is gone."""
        for memory in self._memories:
            memory.close()
        self._memories = [Memory(self._folder / f"{machine}.sqlite")]
        self.reader = StandInConsumer(self.broker)
        return Commands(
            "machines", {"cool": self._cool}, reader=self.reader,  # type: ignore[arg-type]
            writer=StandInProducer(self.broker), memory=self._memories[0],  # type: ignore[arg-type]
            now_ms=lambda: self.now_ms, **{"patience": Patience(attempts=4, retry_s=1)} | options,
        )  # fmt: skip

    def _cool(self, order: Order) -> Done:
        self.tried.append(order.command_id)
        self.on_call()
        if error := self.down.get(order.subject):
            raise error
        return self.gives  # type: ignore[no-any-return]  # what a handler gives is its author's

    def command(self, command_id: str, subject: str = "m-1", *, action: str = "cool", expiry: str | None = None) -> None:
        event = {
            "id": command_id, "type": "flyball.command", "subject": subject, "hops": 0, "expirytime": expiry,
            "data": {
                "event_time": "2014-01-01T00:00:00Z", "command_id": command_id, "action": action, "parameters": {},
                "agent": "a", "decision_id": "d", "proposal_id": "p", "reason": "",
            },
        }  # fmt: skip
        self.broker.put("machines.commands", subject.encode(), orjson.dumps(event), timestamp=self.now_ms)

    def outcomes(self) -> list[tuple[str, str]]:
        data = [orjson.loads(value or b"")["data"] for value in self.broker.values("machines.outcomes")]
        return [(each["command_id"], each["status"]) for each in data]

    def letters(self) -> list[DeadLetter]:
        values = self.broker.values("machines.dead-letters")
        return [DeadLetter.model_validate_json(orjson.dumps(orjson.loads(value or b"")["data"])) for value in values]

    def after(self, seconds: float) -> None:
        self.now_ms += int(seconds * 1000)


@pytest.fixture
def plant(tmp_path: Path) -> Plant:
    return Plant(tmp_path)


def test_a_command_is_tried_again_after_doubled_times_when_its_handler_fails_for_a_passing_reason(plant: Plant) -> None:
    plant.down["m-1"] = ConnectionRefusedError("no route to the plant")
    plant.command("c")
    commands = plant.start()
    for seconds, tries in ((0, 1), (0.9, 1), (0.1, 2), (1.9, 2), (0.1, 3)):
        plant.after(seconds)
        commands.step()
        assert len(plant.tried) == tries, f"after {seconds} s more"
    assert plant.outcomes() == [], "no outcome before the end: the loop guards hold"
    plant.down.clear()
    plant.after(4)
    commands.step()
    assert plant.outcomes() == [("c", "succeeded")]
    assert plant.letters() == []
    assert plant.broker.committed[COMMANDS] == 1


def test_a_command_fails_and_is_a_dead_letter_with_every_attempt_when_the_last_one_failed(plant: Plant) -> None:
    plant.down["m-1"] = TimeoutError("no answer")
    plant.command("c")
    commands = plant.start()
    for _ in range(10):
        commands.step()
        plant.after(8)
    assert plant.tried == ["c"] * 4
    assert plant.outcomes() == [("c", "failed")]
    (letter,) = plant.letters()
    assert (letter.cause, letter.topic, letter.offset, letter.stage) == ("handler_failed", "machines.commands", 0, "actuator")
    assert [attempt.error for attempt in letter.attempts] == ["TimeoutError: no answer"] * 4
    assert [attempt.failed_at[17:19] for attempt in letter.attempts] == ["40", "48", "56", "04"]
    assert plant.start().step() == 0, "it is committed"


def test_a_command_fails_at_once_when_the_reason_does_not_pass(plant: Plant) -> None:
    plant.down["m-1"] = ValueError("valve does not exist")
    plant.command("c")
    plant.start().step()
    assert plant.outcomes() == [("c", "failed")]
    assert plant.letters() == []


def test_a_program_says_itself_what_passes_when_it_raises_retryable(plant: Plant) -> None:
    plant.down["m-1"] = Retryable("busy")
    plant.command("c")
    plant.start().step()
    assert plant.outcomes() == []


def test_others_go_on_and_its_own_follow_in_order_when_a_subject_waits(plant: Plant) -> None:
    plant.down["m-1"] = ConnectionError()
    for command_id, subject in (("a1", "m-1"), ("b1", "m-2"), ("a2", "m-1"), ("b2", "m-2")):
        plant.command(command_id, subject)
    commands = plant.start()
    commands.step()
    assert plant.tried == ["a1", "b1", "b2"]
    plant.down.clear()
    plant.command("a3")
    commands.step()
    assert plant.tried == ["a1", "b1", "b2"], "a3 waits behind a1 and a2"
    plant.after(1)
    commands.step()
    assert plant.tried[3:] == ["a1", "a2", "a3"]
    assert plant.broker.committed[COMMANDS] == 5


def test_the_committed_offset_stays_before_what_waits_when_others_are_finished(plant: Plant) -> None:
    plant.down["m-1"] = ConnectionError()
    for command_id, subject in (("b1", "m-2"), ("a1", "m-1"), ("b2", "m-2"), ("a2", "m-1")):
        plant.command(command_id, subject)
    plant.start().step()
    assert plant.broker.committed[COMMANDS] == 1
    assert plant.broker.committed_metadata[COMMANDS] == "4:1,3"


@pytest.mark.parametrize("machine", ["here", "elsewhere"])
def test_exactly_what_waited_is_taken_up_again_when_a_program_was_killed(plant: Plant, machine: str) -> None:
    plant.down["m-1"] = ConnectionError()
    for command_id, subject in (("a1", "m-1"), ("b1", "m-2"), ("a2", "m-1")):
        plant.command(command_id, subject)
    plant.start().step()
    plant.tried.clear()
    plant.down.clear()
    plant.command("b2", "m-2")
    plant.after(1)
    plant.start(machine=machine).step()
    assert plant.tried == ["a1", "a2", "b2"], "b1 is not done again, also not where nothing is remembered of it"
    assert sorted(plant.outcomes()) == [(name, "succeeded") for name in ("a1", "a2", "b1", "b2")]
    assert (plant.broker.committed[COMMANDS], plant.broker.committed_metadata[COMMANDS]) == (4, "")


def test_attempts_and_the_time_of_the_next_are_kept_when_a_program_was_killed_while_it_waited(plant: Plant) -> None:
    plant.down["m-1"] = ConnectionError()
    plant.command("c")
    plant.start().step()
    commands = plant.start()
    commands.step()
    assert len(plant.tried) == 1, "its time has not come"
    plant.after(1)
    commands.step()
    commands = plant.start()
    plant.after(2)
    commands.step()
    plant.after(4)
    plant.start().step()
    assert (len(plant.tried), plant.outcomes()) == (4, [("c", "failed")])


def test_letter_and_outcome_are_written_when_the_broker_was_down_at_the_last_attempt(plant: Plant) -> None:
    plant.down["m-1"] = ConnectionError()
    plant.command("c")
    commands = plant.start()
    for _ in range(3):
        commands.step()
        plant.after(4)
    plant.broker.is_down = True
    with pytest.raises(Exception, match="down"):
        commands.step()
    plant.broker.is_down = False
    plant.start().step()
    assert (len(plant.tried), plant.outcomes(), len(plant.letters())) == (4, [("c", "failed")], 1)


@pytest.mark.parametrize("attempts", [4, 2])
def test_a_command_is_given_up_and_not_done_when_as_many_attempts_failed_before_a_restart(plant: Plant, attempts: int) -> None:
    plant.command("c")
    commands = plant.start()
    for number in range(4):
        commands._memory.note_attempt("c", plant.now_ms + number, "TimeoutError: no answer")
    plant.start(patience=Patience(attempts)).step()
    assert (plant.tried, plant.outcomes()) == ([], [("c", "failed")])
    (letter,) = plant.letters()
    assert [attempt.error for attempt in letter.attempts] == ["TimeoutError: no answer"] * 4


@pytest.mark.parametrize("attempts", [1, 9])
def test_only_what_was_given_up_is_a_dead_letter_when_another_number_of_attempts_counts_after_a_restart(
    plant: Plant, attempts: int
) -> None:
    plant.down["m-2"] = ConnectionError()
    plant.command("done", "m-1")
    plant.command("given up", "m-2")
    commands = plant.start()
    commands._memory.note_attempt("done", plant.now_ms - 1000, "TimeoutError: no answer")
    for number in range(3):
        commands._memory.note_attempt("given up", plant.now_ms - 9000 + number, "ConnectionError: ")
    plant.broker.is_down = True
    with pytest.raises(Exception, match="down"):
        commands.step()
    plant.broker.is_down = False
    plant.start(patience=Patience(attempts)).step()
    assert plant.outcomes() == [("done", "succeeded"), ("given up", "failed")]
    (letter,) = plant.letters()
    assert letter.offset == 1
    assert plant.tried == ["done", "given up"]


@pytest.mark.parametrize(
    "given",
    [
        None, "succeeded", Done("ok"), Done("succeeded", None), Done("succeeded", "\ud800"),  # type: ignore[arg-type]
        Done("succeeded", took_s=float("nan")), Done("succeeded", took_s=float("inf")), Done("succeeded", took_s=-1),
        Done("succeeded", took_s=1e12), Done("succeeded", took_s="1"), Done("succeeded", cost=float("nan")),  # type: ignore[arg-type]
        Done("succeeded", cost=-1), Done("succeeded", cost=1e16), Done("succeeded", cost="1"),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_a_command_is_done_once_and_fails_when_its_handler_gives_what_no_outcome_can_say(plant: Plant, given: Any) -> None:
    plant.gives = given
    plant.on_call = lambda: plant.after(0.3)  # a step ends, whatever is chosen again
    plant.command("c")
    plant.command("next", "m-2")
    plant.start().step()
    assert plant.tried == ["c", "next"]
    assert plant.outcomes() == [("c", "failed"), ("next", "failed")]
    data = orjson.loads(plant.broker.values("machines.outcomes")[0] or b"")["data"]
    assert Outcome.model_validate(data).detail.startswith("the handler returned ")
    assert plant.letters() == []


def test_a_failure_is_told_when_its_text_is_no_unicode(plant: Plant) -> None:
    plant.down = {"m-1": ValueError("\udcff"), "m-2": ConnectionError("\udcff")}
    plant.command("c-1", "m-1")
    plant.command("c-2", "m-2")
    plant.start(patience=Patience(attempts=1)).step()
    assert plant.outcomes() == [("c-1", "failed"), ("c-2", "failed")]


def test_nothing_is_done_twice_and_nothing_forgotten_when_partitions_move_while_it_waits(plant: Plant) -> None:
    plant.down["m-1"] = ConnectionError()
    for command_id, subject in (("a1", "m-1"), ("b1", "m-2")):
        plant.command(command_id, subject)
    commands = plant.start()
    commands.step()
    plant.reader.rebalance()
    commands.step()
    plant.down.clear()
    plant.after(1)
    commands.step()
    assert plant.tried == ["a1", "b1", "a1"]
    assert plant.broker.committed[COMMANDS] == 2


def test_nothing_is_handled_and_nothing_committed_when_partitions_are_being_dealt_out(plant: Plant) -> None:
    plant.down["m-1"] = ConnectionError()
    plant.command("a1")
    commands = plant.start()
    commands.step()
    plant.reader.rebalance(is_dealing=True)
    plant.broker.committed_metadata[COMMANDS] = "another member's"
    plant.down.clear()
    plant.after(1)
    commands.step()
    assert (plant.tried, plant.broker.committed_metadata[COMMANDS]) == (["a1"], "another member's")
    plant.reader.rebalance()
    commands.step()
    assert plant.tried == ["a1", "a1"]
    assert plant.broker.committed[COMMANDS] == 1


def test_what_another_member_finished_is_not_done_when_its_partition_comes_to_this_one(plant: Plant) -> None:
    commands = plant.start()
    commands.step()
    for number in range(4):
        plant.command(f"c-{number}", f"m-{number}")
    plant.broker.committed[COMMANDS] = 1
    plant.broker.committed_metadata[COMMANDS] = "3:1"
    plant.reader.rebalance()
    commands.step()
    assert plant.tried == ["c-1", "c-3"]


def test_the_group_hears_of_this_program_within_a_second_when_handlers_are_slow(plant: Plant) -> None:
    plant.on_call = lambda: plant.after(0.6)
    for number in range(5):
        plant.command(f"c-{number}", f"m-{number}")
    commands = plant.start()
    commands.step()
    assert plant.tried == ["c-0", "c-1"]
    assert (plant.broker.committed[COMMANDS], plant.broker.committed_metadata[COMMANDS]) == (2, "5:2,3,4")
    plant.start(machine="elsewhere").step()
    assert plant.tried == ["c-0", "c-1", "c-2", "c-3"]


def test_a_commit_keeps_what_others_finished_when_nothing_was_read_yet(plant: Plant) -> None:
    plant.down["m-1"] = ConnectionError()
    plant.command("a1")
    plant.command("b1", "m-2")
    plant.start().step()
    commands = plant.start(machine="elsewhere")
    plant.reader.pause(COMMANDS)
    plant.reader.resume = lambda *_: None  # type: ignore[method-assign]
    commands.step()
    assert plant.broker.committed_metadata[COMMANDS] == "2:0"


def test_reading_stops_and_goes_on_when_as_many_wait_as_may(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consume, "MAX_WAITING", consume._BATCH + 1)
    names = [f"m-{n}" for n in range(5)]
    plant.down = {name: ConnectionError() for name in names}
    plant.command("m-0", "m-0")
    plant.command("m-1", "m-1")
    commands = plant.start()
    commands.step()
    assert plant.reader.paused() == {COMMANDS}
    for name in names[2:]:
        plant.command(name, name)
    commands.step()
    assert plant.tried == ["m-0", "m-1"]
    plant.down.clear()
    plant.after(1)
    commands.step()
    commands.step()
    assert plant.outcomes() == [(name, "succeeded") for name in names]
    assert plant.broker.committed[COMMANDS] == 5


def test_a_command_is_refused_when_it_expires_while_it_waits(plant: Plant) -> None:
    plant.down["m-1"] = ConnectionError()
    plant.command("c", expiry="2014-01-01T00:00:02Z")
    commands = plant.start()
    commands.step()
    plant.after(3)
    commands.step()
    assert (len(plant.tried), plant.outcomes(), plant.letters()) == (1, [("c", "failed")], [])


def test_a_command_is_passed_by_when_its_action_is_another_programs(plant: Plant) -> None:
    plant.command("c", action="mow")
    plant.start().step()
    assert plant.outcomes() == []
    assert plant.broker.committed[COMMANDS] == 1


def test_an_outcome_is_reported_once_when_a_command_stands_twice_in_what_was_read(plant: Plant) -> None:
    plant.command("c")
    plant.command("c")
    plant.start().step()
    assert (plant.tried, plant.outcomes()) == (["c"], [("c", "succeeded")])


def test_a_callback_gets_outcomes_instead_of_the_topic_and_again_until_it_took_them(plant: Plant) -> None:
    told: list[tuple[str, str]] = []
    refusing = True

    def report(subject: str, outcome: bytes) -> None:
        if refusing:
            raise RuntimeError("the ticket system is down")
        told.append((subject, orjson.loads(outcome)["data"]["status"]))

    plant.command("c")
    commands = plant.start(report=report)
    for _ in range(2):
        with pytest.raises(RuntimeError):
            commands.step()
    refusing = False
    commands.step()
    assert (plant.tried, told, plant.outcomes()) == (["c"], [("m-1", "succeeded")], [])
    assert plant.broker.committed[COMMANDS] == 1


def test_the_command_in_hand_is_finished_and_the_next_left_when_it_is_stopped(plant: Plant) -> None:
    plant.command("c-1")
    plant.command("c-2")
    commands = plant.start()
    plant.on_call = commands.stop
    commands.run(signals=())
    assert (plant.tried, plant.outcomes()) == (["c-1"], [("c-1", "succeeded")])
    assert plant.broker.committed[COMMANDS] == 1
    plant.on_call = lambda: None
    plant.start().step()
    assert plant.tried == ["c-1", "c-2"]


def test_another_programs_metadata_of_a_commit_say_nothing_when_they_are_read(plant: Plant) -> None:
    plant.command("c")
    plant.broker.committed[COMMANDS] = 0
    plant.broker.committed_metadata[COMMANDS] = "written by: another 1:program"
    plant.start().step()
    assert plant.tried == ["c"]


# ------------------------------------------------------------------------- what of a partition is unfinished


def record(offset: int, key: bytes = b"m-1") -> Record:
    return Record("machines.commands", 0, offset, 0, key, b"")


def test_the_first_is_chosen_whose_subject_does_not_wait() -> None:
    part = Unfinished(due_ms={b"m-1": 100})
    for offset, key in ((0, b"m-1"), (1, b"m-2"), (2, b"m-1")):
        part.add(record(offset, key))
    assert part.next(now_ms=99) == record(1, b"m-2")
    part.finish(record(1, b"m-2"))
    assert part.next(now_ms=99) is None
    assert part.next(now_ms=100) == record(0)


def test_its_subject_goes_on_at_once_when_what_waited_is_finished() -> None:
    part = Unfinished(due_ms={b"m-1": 100})
    part.add(record(0))
    part.add(record(1))
    part.finish(record(0))
    assert part.next(now_ms=0) == record(1)


@pytest.mark.parametrize("metadata", ["", "7:2,4", "7:2"])
def test_a_commit_says_the_same_when_nothing_was_read_since_it_was_read(metadata: str) -> None:
    part = Unfinished.committed(metadata)
    assert part.to_commit(position=2) == (2, metadata)


def test_only_what_a_commit_names_and_what_is_behind_it_is_taken_when_it_is_read_again() -> None:
    part = Unfinished.committed("7:2,4")
    for offset in range(2, 9):
        part.add(record(offset))
    assert list(part.records) == [2, 4, 7, 8]
    assert part.to_commit(position=9) == (2, "9:2,4,7,8")


def test_what_is_no_longer_in_its_topic_is_waited_for_no_more_when_the_reader_is_past_it() -> None:
    part = Unfinished.committed("7:2,4")
    part.add(record(4))
    assert part.to_commit(position=5) == (4, "7:4")
    part.finish(record(4))
    assert part.to_commit(position=5) == (7, "")


def test_what_a_commit_names_is_read_again_when_it_names_as_many_as_may_wait() -> None:
    part = Unfinished.committed("500:" + ",".join(map(str, range(200, 400))))
    for offset in range(200, 350):
        assert not part.is_full()
        part.add(record(offset))
    part.add(record(350))
    assert part.is_full()


def test_a_commit_passes_markers_of_transactions_when_nothing_waits() -> None:
    part = Unfinished()
    part.add(record(0))
    part.finish(record(0))
    assert part.to_commit(position=2) == (2, "")


@settings(deadline=None)
@given(st.sets(st.integers(0, 30)), st.sets(st.integers(0, 30)), st.integers(0, 30), st.integers(0, 30))
def test_each_takes_up_just_what_those_before_left_when_a_partition_moves_twice(
    first: set[int], second: set[int], first_read: int, second_read: int
) -> None:
    finished: set[int] = set()
    offset, metadata = 0, ""
    for done, read in ((first, first_read), (second, second_read), (set(range(31)), 31)):
        part, position = Unfinished.committed(metadata), max(offset, read)
        for number in range(offset, position):
            part.add(record(number))
            assert (number in part.records) == (number not in finished)
        for number in done & part.records.keys():
            if part.records[number]:
                part.finish(record(number))
                finished.add(number)
        offset, metadata = part.to_commit(position)
    assert (offset, metadata) == (31, "")
    assert finished == set(range(31)), "once each: what was finished is not there to be finished again"
