"""Delivery on a real broker: what readers see, the README's consumer, and records put back exactly once."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pytest
from kafka import KafkaConsumer, TopicPartition
from kafka.admin import KafkaAdminClient

from contracts.envelope import parse_time_ms
from contracts.errors import BrokerUnavailable
from ops import dead_letters, flink_jobs, kafka, redrive
from ops.consume import Commands, Patience
from ops.home import CHECKOUT, Home
from ops.world import Done, Order
from tests.loop import Loop, Said, proposal, reading

START_MS = parse_time_ms("2015-01-01T00:00:00Z")
# Topics of no domain that is up, so that nobody else consumes them.
NOBODY = "consumed"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(CHECKOUT)}


def a_command(command_id: str, subject: str) -> tuple[bytes, bytes]:
    data = {
        "event_time": "2015-01-01T00:00:00Z", "command_id": command_id, "action": "activate_cooling",
        "parameters": {"duration_s": 60}, "agent": "a", "decision_id": "d", "proposal_id": "p", "reason": "",
    }  # fmt: skip
    event = {"id": command_id, "type": "flyball.command", "subject": subject, "hops": 0, "data": data}
    return subject.encode(), orjson.dumps(event)


@pytest.fixture(scope="module")
def broker(instance: Home) -> str:
    """Its address; it has the topics of NOBODY."""
    bootstrap = str(instance.read_state()["bootstrap_servers"])
    kafka.create_topics(bootstrap, NOBODY)
    return bootstrap


@pytest.fixture
def command(broker: str) -> Iterator[Callable[[str, str], None]]:
    writer = kafka.producer(broker)

    def send(command_id: str, subject: str) -> None:
        key, value = a_command(command_id, subject)
        writer.send(f"{NOBODY}.commands", key=key, value=value).get(timeout=30)

    yield send
    writer.close()


def outcomes(broker: str, prefix: str) -> list[str]:
    events = [orjson.loads(r.value or b"") for r in kafka.read_all(broker, [f"{NOBODY}.outcomes"])]
    found = [event["data"]["command_id"] for event in events]
    return sorted(name for name in found if name.startswith(prefix))


# ----------------------------------------------------------------------------------- the setting


def has_markers(loop: Loop, name: str) -> bool:
    """Whether some partition has offsets that no record takes: transactions end in them."""
    reader = kafka.consumer(loop.bootstrap)
    ends = reader.end_offsets(kafka.partitions(reader, [f"{loop.domain}.{name}"]))
    reader.close()
    loop.wait_for("our own reader", lambda: all(loop.log.positions.get(place, 0) >= end for place, end in ends.items()))
    return sum(ends.values()) > len(loop.records(name))


def test_a_domain_is_delivered_as_its_own_settings_say_when_two_share_a_cluster(machines: Loop, payments: Loop) -> None:
    assert (machines.settings.delivery, payments.settings.delivery) == ("exactly_once", "at_least_once")
    cooling, event = proposal("delivered-1", event_ms=START_MS)
    machines.send("proposals", ("delivered-1", event))
    review, event = proposal(
        "delivered-1", event_ms=START_MS, action="review_payment", domain="payments", features={},
        parameters={"transaction_id": "t", "terminal_id": "w", "amount_minor": 100}, situation_type="payments.payment_assessed",
    )  # fmt: skip
    payments.send("proposals", ("delivered-1", event))
    machines.decision_of(cooling, "delivered-1")
    payments.decision_of(review, "delivered-1")
    assert has_markers(machines, "decisions")
    assert not has_markers(payments, "decisions")


def transactional_ids(loop: Loop) -> list[str]:
    admin = KafkaAdminClient(bootstrap_servers=loop.bootstrap)
    found = [each.transactional_id for of_broker in admin.list_transactions().values() for each in of_broker]
    admin.close()
    return [name for name in found if name.startswith(f"{loop.domain}-")]


def test_the_broker_keeps_a_few_transactional_ids_however_many_checkpoints_there_are(machines: Loop) -> None:
    enough = 60

    def checkpoints() -> int:
        states = {each.name: each for each in flink_jobs.states(machines.home, machines.domain)}
        return states[f"{machines.domain}.govern"].checkpoints_completed

    machines.wait_for(f"{enough} checkpoints of govern", lambda: checkpoints() >= enough)
    known = transactional_ids(machines)
    assert 0 < len(known) < 10, f"{len(known)} after {checkpoints()} checkpoints"


# ---------------------------------------------------------------------------------- ops/consume.py


def readme_example() -> str:
    (found,) = re.findall(r"```python\n(.*?)```", (CHECKOUT / "README.md").read_text(), re.S)
    return str(found)


def send_and_undo(broker: str, command_id: str) -> None:
    """The command stands in the topic, in a transaction that was not committed; raises InterruptedError."""
    writer = kafka.TransactionalWriter(broker, "test-undone")
    with writer.transaction():
        writer.send(f"{NOBODY}.commands", *a_command(command_id, "e-0"))
        writer.flush()
        raise InterruptedError


def test_the_readme_example_does_each_command_once_when_it_is_stopped_and_started(
    broker: str, command: Callable[[str, str], None], tmp_path: Path
) -> None:
    script = tmp_path / "plant.py"
    script.write_text(readme_example().replace('"machines"', f'"{NOBODY}"'))
    with pytest.raises(InterruptedError):
        send_and_undo(broker, "example-undone")
    command("example-1", "e-1")
    command("example-2", "e-2")
    command("example-1", "e-1")

    def run(*more: str) -> list[str]:
        """Run it until it has handled as many commands as `more` names and those before; what it printed."""
        plant = subprocess.Popen(
            [sys.executable, str(script), broker], cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
        )
        assert plant.stdout is not None
        lines = [plant.stdout.readline() for _ in more]
        plant.send_signal(signal.SIGTERM)
        lines += plant.stdout.read().splitlines()
        assert plant.wait(60) == 0
        return sorted(line.split()[-1] for line in lines)

    assert run("example-1", "example-2") == ["example-1", "example-2"]
    command("example-3", "e-1")
    assert run("example-3") == ["example-3"]
    assert outcomes(broker, "example-") == ["example-1", "example-2", "example-3"]


class Program(threading.Thread):
    """Consumes on a thread of its own, as on a machine of its own: it does not know what another one did."""

    def __init__(self, broker: str, memory: Path, done: queue.SimpleQueue[tuple[str, str]]) -> None:
        super().__init__(name=memory.stem, daemon=True)
        self._broker, self._memory, self._done = broker, memory, done
        self.commands: Commands | None = None

    def run(self) -> None:
        refused: set[str] = set()

        def cool(order: Order) -> Done:
            if order.subject == "s-3" and order.command_id not in refused:
                refused.add(order.command_id)
                raise ConnectionError("once")
            self._done.put((self.name, order.command_id))
            return Done("succeeded")

        with Commands.open(
            NOBODY, {"activate_cooling": cool}, bootstrap_servers=self._broker, group="moving", memory=self._memory,
            patience=Patience(attempts=3, retry_s=0.2),
        ) as self.commands:  # fmt: skip
            self.commands.run(signals=())

    def stop(self) -> None:
        assert self.commands is not None
        self.commands.stop()
        self.join(60)


def test_no_command_is_lost_and_no_program_does_one_twice_when_a_second_joins_and_the_first_leaves(
    broker: str, command: Callable[[str, str], None], tmp_path: Path
) -> None:
    said: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
    sent: list[str] = []
    done: list[tuple[str, str]] = []

    def give(count: int) -> None:
        for _ in range(count):
            sent.append(f"moved-{len(sent)}")
            command(sent[-1], f"s-{len(sent) % 6}")

    def take(is_enough: Callable[[], bool]) -> None:
        while not is_enough():
            name, command_id = said.get(timeout=150)
            if command_id.startswith("moved-"):
                done.append((name, command_id))

    first, second = (Program(broker, tmp_path / f"{name}.sqlite", said) for name in ("first", "second"))
    first.start()
    give(30)
    take(lambda: len(done) >= 20)
    second.start()
    while all(name == "first" for name, _ in done):
        give(6)
        take(lambda: len(done) >= len(sent) - 6)
    first.stop()
    give(12)
    take(lambda: len({command_id for _, command_id in done}) == len(sent))
    second.stop()
    take(said.empty)
    assert {command_id for _, command_id in done} == set(sent)
    assert len(set(done)) == len(done), "a program did a command twice"
    assert set(outcomes(broker, "moved-")) == set(sent)


# --------------------------------------------------------------------------------------- redrive


def letter_about(loop: Loop, place: str) -> dead_letters.History:
    loop.dead_letter(place)
    found: list[dead_letters.History] = dead_letters.read(loop.bootstrap, loop.domain)
    return next(history for history in found if history.letter.place == place)


def state_of(loop: Loop, letter_id: str) -> str:
    is_past = dead_letters.passed(loop.bootstrap, loop.domain, flink_jobs.jobs_of(loop.domain))
    found = dead_letters.read(loop.bootstrap, loop.domain)
    return next(history.state(is_past) for history in found if history.letter.id == letter_id)


def headers_at(broker: str, place: str) -> dict[str, str]:
    name, partition, offset = place.rsplit("/", 2)
    reader = KafkaConsumer(bootstrap_servers=broker, isolation_level="read_committed", metrics_enabled=False)
    where = TopicPartition(name, int(partition))
    reader.assign([where])
    reader.seek(where, int(offset))
    record = next(iter(reader))
    reader.close()
    assert record.offset == int(offset)
    return {key: value.decode() for key, value in record.headers}


def test_a_record_is_put_back_once_and_its_history_goes_on_until_it_is_accepted(
    machines: Loop, flyball: Callable[..., Said]
) -> None:
    subject = "redriven-1"
    (event,) = machines.encode(reading(subject, START_MS, 33.0))
    (place,) = machines.send("facts", (subject, event.replace(b"33.0", b'"33.0"')))
    first = letter_about(machines, place).letter.id

    said = flyball("dead-letters", "redrive", "machines", "--id", first, "--json")
    (result,) = orjson.loads(said.out)
    assert (said.code, result["result"], result["attempt"]) == (0, "redriven", 1)
    assert headers_at(machines.bootstrap, result["place"]) == {"flyball-dead-letter": first, "flyball-attempt": "1"}
    second = letter_about(machines, result["place"]).letter.id
    assert state_of(machines, first) == "dead_again"

    wrong, right = (orjson.dumps({"id": second, "value": text.decode()}) for text in (b"{}", event))
    said = flyball("dead-letters", "redrive", "machines", "-", stdin=wrong)
    assert (said.code, "envelope_invalid" in said.out) == (1, True)
    said = flyball("dead-letters", "redrive", "machines", "-", "--json", stdin=right)
    (result,) = orjson.loads(said.out)
    assert (said.code, result["result"], result["attempt"]) == (0, "redriven", 2)
    (situation,) = machines.wait_for("the reading", lambda: machines.situations("reading_scored", subject))
    assert situation["data"]["temperature"] == 33.0
    machines.wait_for("the reader past it", lambda: state_of(machines, second) == "accepted")
    machines.settle()  # a marker behind the last record is no lag

    said = flyball("dead-letters", "redrive", "machines", "--id", f"{first},{second}", "--json")
    assert (said.code, [row["result"] for row in orjson.loads(said.out)]) == (0, ["skipped", "skipped"])
    shown = orjson.loads(flyball("dead-letters", "show", "machines", second).out)
    assert [(each["id"], each["state"]) for each in shown["history"]] == [(first, "dead_again"), (second, "accepted")]
    assert len(machines.records("facts", subject)) == 3


# Kills itself in the middle of a redrive: argv is the broker, the letter's id and where.
KILLED = """
import os, signal, sys
from ops import dead_letters, redrive

broker, letter_id, where = sys.argv[1:]
writer = redrive.transactional_writer(broker, "machines")
send, commit, sends = writer.send, writer._writer.commit_transaction, []

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def counted(*arguments, **options):
    sends.append(arguments)
    if where == "between record and mark" and len(sends) == 2:
        die()
    send(*arguments, **options)

class Client:
    def __getattr__(self, name):
        return getattr(inner, name)
    def commit_transaction(self, timeout):
        if where == "before the commit":
            die()
        commit(timeout)
        die()

inner, writer._writer, writer.send = writer._writer, Client(), counted
chosen = dead_letters.choose(dead_letters.read(broker, "machines"), ids=[letter_id])
redrive.redrive(broker, "machines", chosen, now_ms=0, writer=writer)
"""


@pytest.mark.parametrize(
    ("where", "then"),
    [("between record and mark", "redriven"), ("before the commit", "redriven"), ("behind the commit", "skipped")],
)
def test_a_record_is_put_back_once_when_the_command_is_killed_half_way(machines: Loop, where: str, then: str) -> None:
    subject = f"killed {where}"
    (place,) = machines.send("facts", (subject, b"{nope"))
    history = letter_about(machines, place)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, machines.bootstrap, history.letter.id, where], env=ENVIRONMENT, check=False, timeout=60
    )
    assert killed.returncode == -signal.SIGKILL
    (result,) = redrive.redrive(machines.bootstrap, "machines", [history], now_ms=0)
    assert result.what == then
    assert result.place is not None
    machines.dead_letter(result.place)
    seen = machines.wait_for("the record", lambda: (r := machines.records("facts", subject)) and len(r) > 1 and r)
    assert len(seen) == 2, "the one that was refused, and the one put back"
    (again,) = redrive.redrive(machines.bootstrap, "machines", [history], now_ms=0)
    assert (again.what, again.place) == ("skipped", result.place)


def test_the_first_of_two_redrives_writes_nothing_more_when_the_second_has_begun(machines: Loop) -> None:
    places = machines.send("facts", ("fenced-1", b"{nope"), ("fenced-1", b"{nope"))
    first, second = (letter_about(machines, place) for place in places)
    slow = redrive.transactional_writer(machines.bootstrap, "machines")
    assert [r.what for r in redrive.redrive(machines.bootstrap, "machines", [first], now_ms=0)] == ["redriven"]
    with pytest.raises(BrokerUnavailable, match="another process"):
        redrive.redrive(machines.bootstrap, "machines", [second], now_ms=0, writer=slow)
    assert state_of(machines, second.letter.id) == "dead"
    assert [r.what for r in redrive.redrive(machines.bootstrap, "machines", [first, second], now_ms=0)] == ["skipped", "redriven"]
