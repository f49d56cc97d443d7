"""Dead letters' records put back into their topics, once each, as they were or corrected.

A record is put back in one Kafka transaction with a `flyball.redriven` event under its letter's key, by a producer of
one transactional id a domain, which reads what was redriven only after it has fenced whoever had that id before. So
a record is put back once, also when a command is killed anywhere, or two run at a time.

Every job, producer and actuator may write letters, the redriver what only some of them may write (proposals,
outcomes): so what nobody corrected is put back only if the log holds that very record where its letter says it lay.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson

from contracts.access import principal
from contracts.dead_letter import PUT_BACK, Redriven
from contracts.domain import load_domain
from contracts.envelope import derive_id, parse_json, schema_urn
from contracts.errors import BadInput, SetupFailed
from contracts.topics import MAX_FACT_BYTES, topic
from jobs.settings import load_settings
from ops import kafka
from ops.dead_letters import (
    ATTEMPT_HEADER,
    LETTER_HEADER,
    History,
    Letter,
    Mark,
    choose,
    home_of,
    is_line,
    place_of,
    read,
    sha256,
)
from udfs.serde import MAX_KEPT_BYTES, MAX_KEPT_KEY_BYTES, FactReader, write_event

STAGE = "redrive"
# One transaction holds at most so many records; readers of the topics wait until it ends.
_BATCH = 50
_PUBLISH_ANEW = "publish it anew, which checks it: './flyball {} publish'"
# Why a topic's records are not put back. What is not here and not in PUT_BACK only its own writer may write.
_NEVER: Mapping[str, str] = {
    "commands": "only govern writes commands, and this one's outcome is told: propose it anew, or './flyball override'",
    "policies": _PUBLISH_ANEW.format("policy"),
    "models": _PUBLISH_ANEW.format("model"),
    "prompts": _PUBLISH_ANEW.format("prompt"),
    "exchanges": "it is a model's reply: its agent has asked again or fallen back",
}


@dataclass(frozen=True)
class Put:
    """A record to be put back; `letter` is the one it comes from, `attempt` counts from 1."""

    letter: Letter
    topic: str
    key: bytes | None
    value: bytes | None
    is_edited: bool
    attempt: int

    @property
    def partition(self) -> int | None:
        """The one it was in; by its key (None) where that is another one now."""
        return self.letter.data.partition if self.topic == self.letter.data.topic and self.key == self.letter.key else None


@dataclass(frozen=True)
class Result:
    """What came of one letter: `redriven`, `would_redrive`, `skipped` (it was before) or `refused`, and why."""

    letter_id: str
    what: Literal["redriven", "would_redrive", "skipped", "refused"]
    why: str = ""
    place: str | None = None
    attempt: int | None = None

    def told(self) -> dict[str, Any]:
        return {"id": self.letter_id, "result": self.what, "why": self.why, "place": self.place, "attempt": self.attempt}


# ----------------------------------------------------------------------------------- correcting


def corrected_lines(lines: Iterable[bytes]) -> dict[str, bytes]:
    """Letter's id (or place) -> corrected record, from JSONL of `{"id", "value"}`; other members are ignored.

    `value` is the event, or its text: what `dead-letters show` prints, corrected. Raises SetupFailed.
    """
    found: dict[str, bytes] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            given = orjson.loads(line)
            name, value = given["id"], given["value"]
            if not isinstance(name, str):
                raise TypeError(f"'id' is no text but {type(name).__name__}")
            found[name] = value.encode() if isinstance(value, str) else orjson.dumps(value)
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:  # TypeError: also what is nested too deeply
            expected = '{"id": "<of the dead letter>", "value": {<the corrected event>}}'
            raise SetupFailed(f"line {number}: expected {expected}, came {error!r}") from None
    return found


def choose_corrected(found: Sequence[History], lines: Iterable[bytes]) -> tuple[list[History], dict[str, bytes]]:
    """The letters that corrected lines name, and each one's record. Raises SetupFailed."""
    given = corrected_lines(lines)
    chosen = choose(found, ids=given) if given else []
    return chosen, {h.letter.id: given[h.letter.id if h.letter.id in given else h.letter.place] for h in chosen}


def edit(letter: Letter, path: Path) -> bytes:
    """The record as the editor ($VISUAL, $EDITOR, otherwise vi) leaves it in the file `path`; JSON is shown indented.

    Raises SetupFailed when the editor does not run or fails.
    """
    original = letter.value or b""
    try:
        shown = orjson.dumps(parse_json(original), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    except (BadInput, TypeError):
        shown = original
    path.write_bytes(shown)
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    try:
        code = subprocess.run([*shlex.split(editor), str(path)], check=False).returncode
    except OSError as error:
        raise SetupFailed(f"cannot run the editor {editor!r} ($VISUAL, $EDITOR): {error.strerror}") from None
    if code:
        raise SetupFailed(f"the editor {editor!r} ended with exit code {code}; nothing was put back")
    came = path.read_bytes()
    return original if came == shown else came.strip()


# --------------------------------------------------------------------------------------- judging

Judge = Callable[[bytes | None, bytes | None], object]


def judges(domain: str, now_ms: int) -> dict[str, Judge]:
    """Topic -> what raises BadInput for a record (key, value) that its readers would refuse."""
    from udfs.agents.core import Agents
    from udfs.policy.reading import Reader

    contract = load_domain(domain)
    reader = FactReader(contract, max_ahead_ms=load_settings(domain).max_ahead_s * 1000)

    def fact(key: bytes | None, value: bytes | None) -> object:
        return reader.read(key, value, now_ms)

    return {
        "facts": fact, "outcomes": fact, "situations": Agents(contract, ()).read, "proposals": Reader(contract).proposal,
    }  # fmt: skip


def plan(
    domain: str, history: History, corrected: bytes | None, judge: Mapping[str, Judge]
) -> Put:
    """What is to be put back for a letter: its record as it was, or `corrected`. Raises BadInput or SetupFailed with why not."""
    letter = history.letter
    name = home_of(domain, letter)
    if name not in PUT_BACK:
        raise SetupFailed(_NEVER.get(name, f"only its own writer writes to {domain}.{name}"))
    if corrected is None:
        if is_line(domain, letter):
            raise SetupFailed("a line of a file is no event: give the event with --edit or '-', or emit the corrected file")
        if len(letter.value or b"") >= MAX_KEPT_BYTES or len(letter.key or b"") >= MAX_KEPT_KEY_BYTES:
            raise SetupFailed("only its first bytes were kept")
        return Put(letter, topic(name).of(domain), letter.key, letter.value, False, history.attempt + 1)
    if name not in judge:
        raise SetupFailed(f"a record of {domain}.{name} is signed: it is put back as it was, or not at all")
    if len(corrected) > MAX_FACT_BYTES:
        raise SetupFailed(f"expected at most {MAX_FACT_BYTES} bytes, came {len(corrected)}")
    event = parse_json(corrected)
    subject = event.get("subject") if isinstance(event, dict) else None
    key = subject.encode() if isinstance(subject, str) else letter.key
    value = orjson.dumps(event)
    judge[name](key, value)
    return Put(letter, topic(name).of(domain), key, value, True, history.attempt + 1)


# ------------------------------------------------------------------------------------ putting back


def transactional_writer(bootstrap_servers: str, domain: str) -> kafka.TransactionalWriter:
    """The one that puts records of the domain back; whoever had it before can write no more."""
    return kafka.TransactionalWriter(
        bootstrap_servers, f"{domain}-redriver-0", principal=principal(domain, "redriver")
    )


def redrive(
    bootstrap_servers: str, domain: str, chosen: Sequence[History], *, corrected: Mapping[str, bytes] | None = None,
    is_dry: bool = False, now_ms: int, writer: kafka.TransactionalWriter | None = None,
    originals: kafka.RecordsAt | None = None, on_progress: Callable[[int], None] = lambda _: None,
) -> list[Result]:  # fmt: skip
    """Put the records of the chosen letters back; what came of each, in their order.

    What was not corrected goes back with the headers it had.

    `corrected`: letter id -> record, for every chosen letter; None: as they were. Raises BrokerUnavailable, also when
    another redrive of the domain has taken over; then what this one has not committed is not there.
    """
    judge = judges(domain, now_ms) if corrected is not None or is_dry else {}
    results: dict[str, Result] = {}
    todo: list[Put] = []
    for history in chosen:
        name = history.letter.id
        if history.redriven is not None:
            results[name] = _skipped(name, history.redriven, history.is_seen)
            continue
        given = None if corrected is None else corrected[name]
        if given is not None and given == (history.letter.value or b""):
            results[name] = Result(name, "skipped", "it was not changed")
            continue
        try:
            put = plan(domain, history, given, judge)
        except (BadInput, SetupFailed) as error:
            why = f"{error.code}: {error}" if isinstance(error, BadInput) else str(error)
            results[name] = Result(name, "refused", why)
            continue
        if is_dry:
            results[name] = Result(name, "would_redrive", _foreseen(put, domain, judge), attempt=put.attempt)
        else:
            todo.append(put)
    if todo:
        writer = writer or transactional_writer(bootstrap_servers, domain)
        originals = originals or kafka.RecordsAt(bootstrap_servers, domain)
        try:
            for result in _put_back(bootstrap_servers, domain, todo, writer, originals, now_ms):
                results[result.letter_id] = result
                on_progress(len(results))
        finally:
            writer.close()
            originals.close()
    return [results[history.letter.id] for history in chosen]


def _skipped(letter_id: str, before: Redriven, is_seen: bool) -> Result:
    place = place_of(before)
    unseen = "" if is_seen else ", says an event, and that record cannot be looked at (any more): 'dead-letters show', and 'emit' it as a fact if it was not"
    return Result(letter_id, "skipped", f"redriven before, to {place}{unseen}", place, before.attempt)


def _foreseen(put: Put, domain: str, judge: Mapping[str, Judge]) -> str:
    """Why its reader would refuse the record again, as far as that can be told without it."""
    reads = judge.get(put.topic.removeprefix(f"{domain}."))
    try:
        if reads is not None:
            reads(put.key, put.value)
    except BadInput as error:
        return f"it would be refused again: {error.code}: {error}"
    return ""


def _original(put: Put, originals: kafka.RecordsAt) -> kafka.Record:
    """The record as the log holds it. Raises SetupFailed when it does not, or another: then anybody may have made it up."""
    data = put.letter.data
    found = originals.get(data.topic, data.partition, data.offset)
    if found is None:
        raise SetupFailed("its record has left the log, so nobody can tell that it was there: 'dead-letters show', and 'emit' it as a fact")
    if (found.key, found.value) != (put.key, put.value):
        raise SetupFailed(f"the record at {put.letter.place} is another: the letter is forged")
    return found


def _put_back(
    bootstrap_servers: str, domain: str, todo: Sequence[Put], writer: kafka.TransactionalWriter, originals: kafka.RecordsAt,
    now_ms: int,
) -> Iterator[Result]:  # fmt: skip
    """In transactions of records with their marks; `writer` has fenced every other, so the marks read here are all."""
    of = {put.letter.mark for put in todo}
    done = {h.letter.mark: (h.redriven, h.is_seen) for h in read(bootstrap_servers, domain, of=of) if h.redriven is not None}
    for start in range(0, len(todo), _BATCH):
        batch: dict[Mark, Put] = {}
        headers: dict[Mark, list[tuple[str, str | bytes]]] = {}
        for put in todo[start : start + _BATCH]:
            mark = put.letter.mark
            if mark in done:
                yield _skipped(put.letter.id, *done[mark])
            elif mark in batch:
                yield Result(put.letter.id, "skipped", f"the same record as of {batch[mark].letter.id}")
            else:
                try:
                    kept = () if put.is_edited else _original(put, originals).headers
                except SetupFailed as error:
                    yield Result(put.letter.id, "refused", str(error))
                    continue
                batch[mark] = put
                headers[mark] = [each for each in kept if each[0] not in (LETTER_HEADER, ATTEMPT_HEADER)]
                headers[mark] += [(LETTER_HEADER, put.letter.id), (ATTEMPT_HEADER, str(put.attempt))]
        if not batch:
            continue
        with writer.transaction():
            for mark, put in batch.items():
                writer.send(put.topic, put.key, put.value, partition=put.partition, headers=headers[mark])
            places = writer.flush()
            for put, (partition, offset) in zip(batch.values(), places, strict=True):
                redriven = Redriven(
                    refused_sha256=sha256(put.letter.value), attempt=put.attempt, is_edited=put.is_edited,
                    topic=put.topic, partition=partition, offset=offset, sha256=sha256(put.value),
                )  # fmt: skip
                done[put.letter.mark] = redriven, True
                writer.send(
                    topic("dead-letters").of(domain), put.letter.place.encode(),
                    _event(domain, put.letter, redriven, now_ms),
                )  # fmt: skip
            writer.flush()
        for mark, put in batch.items():
            at, _ = done[mark]
            yield Result(put.letter.id, "redriven", "", place_of(at), at.attempt)


def _event(domain: str, letter: Letter, redriven: Redriven, now_ms: int) -> bytes:
    return write_event(
        event_id=derive_id("/".join(letter.mark), STAGE, "redriven"),
        source=f"/flyball/{domain}/{STAGE}",
        event_type=Redriven.event_type,
        subject=letter.place,
        time_ms=now_ms,
        dataschema=schema_urn(domain, Redriven.event_type, Redriven.schema_version),
        causation_id=letter.id,
        data=redriven.model_dump(),
    )
