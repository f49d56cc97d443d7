"""Facts signed by their producers: what passes, and the cause of each that does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import jwt
import pytest
import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from contracts.data import FactData, Upcast
from contracts.dead_letter import Cause
from contracts.domain import DomainContract, load_domain
from contracts.envelope import check_event, parse_time_ms, schema_urn
from contracts.errors import BadInput, SetupFailed
from jobs.settings import load_settings
from ops import producers
from udfs.policy.signing import public_text
from udfs.serde import Fact, FactReader
from udfs.signed_facts import Mode, ProducerKey, SignatureCheck, load_producers, sign_fact

MACHINES = load_domain("machines")
METERS = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHERS = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
NOW_MS = parse_time_ms("2026-03-01T12:00:00Z")
DAY_MS = 86_400_000
TYPE = "machine.temperature_measured"
KEYS = [
    ProducerKey(
        key_id="meters", producer="the meters", public_key=public_text(METERS), types=(TYPE,), subjects=("pump-*",),
        not_before="2026-01-01T00:00:00Z", not_after="2026-06-01T00:00:00Z",
    ),
    ProducerKey(key_id="others", producer="the others", public_key=public_text(OTHERS), types=(TYPE, "flyball.outcome")),
]  # fmt: skip
EVENT = {
    "specversion": "1.0", "id": "a1", "source": "/plant", "type": TYPE, "subject": "pump-1",
    "time": "2014-03-01T11:59:00Z", "dataschema": schema_urn("machines", TYPE), "data": {"temperature": 73.5},
}  # fmt: skip
OUTCOME = {
    "specversion": "1.0", "id": "o1", "source": "/actuator", "type": "flyball.outcome", "subject": "pump-1",
    "time": "2014-03-01T11:59:00Z",
    "data": {"event_time": "2014-03-01T11:59:00Z", "command_id": "c", "action": "activate_cooling", "status": "failed", "detail": ""},
}  # fmt: skip


def text(**changes: object) -> bytes:
    return json.dumps({**EVENT, **changes}).encode()


def signed(
    value: bytes | None = None, *, key: Ed25519PrivateKey = METERS, key_id: str = "meters", audience: str = "machines.facts",
    at_ms: int = NOW_MS,
) -> bytes:  # fmt: skip
    return sign_fact(value or text(), key=key, key_id=key_id, audience=audience, now_ms=at_ms)


def read(value: bytes, *, mode: Mode = "required", topic: str = "machines.facts", now_ms: int = NOW_MS) -> Fact:
    check = SignatureCheck("machines", KEYS, mode=mode, max_age_ms=DAY_MS)
    subject = str(json.loads(value)["subject"])
    reader = FactReader(MACHINES, max_ahead_ms=3_600_000, signatures=check, outcomes_since_ms=0)
    return reader.read(subject.encode(), value, now_ms, topic)


def cause(value: bytes, **options: object) -> str:
    with pytest.raises(BadInput) as refused:
        read(value, **options)  # type: ignore[arg-type]
    return refused.value.code


def with_jws(jws: object) -> bytes:
    return text(jws=jws)


def jws(header: dict[str, object], *, key: object = METERS, algorithm: str = "EdDSA") -> str:
    return jwt.PyJWS().encode(
        rfc8785.dumps(EVENT), key, algorithm, {"kid": "meters", "aud": "machines.facts", "iat": NOW_MS // 1000, **header},  # type: ignore[arg-type]
        is_payload_detached=True,
    )  # fmt: skip


def test_a_signed_fact_is_used_and_still_is_a_cloud_event() -> None:
    value = signed()
    assert read(value) == read(text(), mode="accepted")
    assert check_event(value) == {"valid": True, "error": None}


def test_a_signed_fact_is_used_when_it_was_written_anew_on_the_way() -> None:
    again = json.loads(signed())
    again["data"] = {"temperature": 7.35e1}
    value = json.dumps(dict(reversed(again.items())), indent=1).encode()
    assert read(value).data.temperature == 73.5  # type: ignore[attr-defined]


def test_years_old_facts_are_used_when_they_were_signed_as_they_were_played() -> None:
    assert read(signed(text(time="1999-01-01T00:00:00Z"))).event_ms == parse_time_ms("1999-01-01T00:00:00Z")


@pytest.mark.parametrize(
    "changed",
    [{"data": {"temperature": 74.5}}, {"id": "a2"}, {"subject": "pump-2"}, {"time": "2014-03-01T11:59:01Z"}, {"source": "/x"},
     {"hops": 1}, {"correlationid": "c"}, {"more": "text"}],
)  # fmt: skip
def test_a_fact_is_refused_when_anything_in_it_was_altered(changed: dict[str, object]) -> None:
    value = json.dumps({**json.loads(signed()), **changed}).encode()
    assert cause(value) == Cause.SIGNATURE_INVALID


FORGED = {
    "another's key under a known name": (jws({}, key=OTHERS), Cause.SIGNATURE_INVALID),
    "a key nobody knows": (jws({"kid": "strangers"}), Cause.PRODUCER_UNKNOWN),
    "no key": (jws({"kid": ""}), Cause.PRODUCER_UNKNOWN),
    "no algorithm": (jws({}, key="", algorithm="none"), Cause.SIGNATURE_INVALID),
    "the public key as a shared secret": (
        jws({}, key=METERS.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw), algorithm="HS256"), Cause.SIGNATURE_INVALID,
    ),
    "an extension it says must be understood": (jws({"crit": ["b64", "exp"], "exp": 1}), Cause.SIGNATURE_INVALID),
    "no time": (jws({"iat": "noon"}), Cause.SIGNATURE_INVALID),
    "a boolean time": (jws({"iat": True}), Cause.SIGNATURE_INVALID),
    "an endless time": (jws({"iat": 10**30}), Cause.SIGNATURE_INVALID),
    "no text": (7, Cause.SIGNATURE_INVALID),
    "empty": ("", Cause.SIGNATURE_INVALID),
    "two dots": ("..", Cause.SIGNATURE_INVALID),
    "not base64": ("!!!..!!!", Cause.SIGNATURE_INVALID),
    "not ASCII": ("ä..ö", Cause.SIGNATURE_INVALID),
    "too long": ("x" * 1025, Cause.SIGNATURE_INVALID),
    "its payload inside": (jwt.PyJWS().encode(rfc8785.dumps(EVENT), METERS, "EdDSA", {"kid": "meters"}), Cause.SIGNATURE_INVALID),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_signature_is_refused_with_its_cause(name: str) -> None:
    value, wanted = FORGED[name]
    assert cause(with_jws(value)) == wanted
    assert cause(with_jws(value), mode="accepted") == wanted


def test_a_fact_is_refused_when_it_was_signed_for_another_domain_or_topic() -> None:
    assert cause(signed(audience="payments.facts")) == Cause.SIGNATURE_MISPLACED
    assert cause(signed(audience="machines.outcomes")) == Cause.SIGNATURE_MISPLACED


def test_a_fact_is_refused_when_it_comes_long_after_it_was_signed() -> None:
    assert read(signed(), now_ms=NOW_MS + DAY_MS)
    assert cause(signed(), now_ms=NOW_MS + DAY_MS + 1) == Cause.SIGNATURE_EXPIRED
    assert read(signed(), now_ms=NOW_MS - 60_000)
    assert cause(signed(), now_ms=NOW_MS - 60_001) == Cause.SIGNATURE_EXPIRED


def test_a_key_counts_only_between_its_times() -> None:
    first, last = parse_time_ms("2026-01-01T00:00:00Z"), parse_time_ms("2026-06-01T00:00:00Z")
    assert read(signed(at_ms=first), now_ms=first)
    assert cause(signed(at_ms=first - 1000), now_ms=first) == Cause.PRODUCER_NOT_PERMITTED
    assert read(signed(at_ms=last - 1000), now_ms=last + 1000), "signed in time, arrived after"
    assert cause(signed(at_ms=last), now_ms=last) == Cause.PRODUCER_NOT_PERMITTED


def test_a_key_may_sign_only_its_types_and_subjects() -> None:
    assert cause(signed(text(subject="fan-1"))) == Cause.PRODUCER_NOT_PERMITTED
    outcome = json.dumps(OUTCOME).encode()
    assert cause(signed(outcome)) == Cause.PRODUCER_NOT_PERMITTED
    assert read(signed(outcome, key=OTHERS, key_id="others")).type == "flyball.outcome"


def test_an_unsigned_fact_is_used_where_signatures_are_accepted_and_refused_where_required() -> None:
    assert read(text(), mode="accepted").fact_id == "a1"
    assert read(text(jws=None), mode="accepted").fact_id == "a1"
    assert cause(text()) == Cause.SIGNATURE_MISSING
    assert cause(text(jws=None)) == Cause.SIGNATURE_MISSING
    assert cause(json.dumps(OUTCOME).encode()) == Cause.SIGNATURE_MISSING


def test_what_the_loop_writes_itself_needs_no_signature_on_its_own_topic() -> None:
    assert read(json.dumps(OUTCOME).encode(), topic="machines.outcomes").type == "flyball.outcome"
    tick = {**EVENT, "type": "flyball.clock_ticked", "dataschema": None, "subject": "clock-0", "data": {}}
    assert read(json.dumps(tick).encode(), topic="machines.outcomes").type == "flyball.clock_ticked"


@pytest.mark.parametrize("mode", ["accepted", "required"])
def test_a_producer_cannot_tell_that_its_own_actions_succeeded(mode: Mode) -> None:
    forged = json.dumps({**OUTCOME, "data": {**OUTCOME["data"], "status": "succeeded"}}).encode()  # type: ignore[dict-item]
    assert cause(forged, mode=mode) == Cause.SIGNATURE_MISSING
    assert cause(signed(forged), mode=mode) == Cause.PRODUCER_NOT_PERMITTED
    assert read(signed(forged, key=OTHERS, key_id="others"), mode=mode).type == "flyball.outcome", "its types name it"


@pytest.mark.parametrize("mode", ["accepted", "required"])
def test_a_fact_is_refused_when_it_comes_among_the_outcomes(mode: Mode) -> None:
    assert cause(text(), topic="machines.outcomes", mode=mode) == Cause.UNKNOWN_TYPE
    assert cause(signed(), topic="machines.outcomes", mode=mode) == Cause.UNKNOWN_TYPE, "nor does a signature help there"


def test_an_event_that_cannot_be_signed_is_refused_when_signed() -> None:
    for value in (b"[]", b"{}", b"nonsense", signed(), text(big=2**60)):
        with pytest.raises(BadInput):
            signed(value)


def test_a_made_key_signs_facts_that_its_own_entry_lets_pass(tmp_path: Path) -> None:
    settings = load_settings("machines", producers=str(tmp_path / "producers.yaml"))
    made = producers.keygen(settings, "meters-2026", tmp_path / "meters.pem")
    assert made.file.stat().st_mode & 0o077 == 0
    (tmp_path / "producers.yaml").write_text("keys:\n" + made.entry)
    keys = load_producers(settings.producers_file, MACHINES)
    sign = producers.signer(settings, made.file)
    check = SignatureCheck("machines", keys, mode="required", max_age_ms=10**15)
    fact = FactReader(MACHINES, max_ahead_ms=0, signatures=check).read(
        b"pump-1", sign(text(), "machines.facts"), parse_time_ms("2999-01-01T00:00:00Z"), "machines.facts"
    )
    assert fact.fact_id == "a1"


def test_a_key_is_not_made_over_another(tmp_path: Path) -> None:
    settings = load_settings("machines", producers=str(tmp_path / "producers.yaml"))
    made = producers.keygen(settings, "meters", tmp_path / "meters.pem")
    before = made.file.read_bytes()
    with pytest.raises(SetupFailed, match="exists"):
        producers.keygen(settings, "meters", tmp_path / "meters.pem")
    assert made.file.read_bytes() == before
    (tmp_path / "producers.yaml").write_text("keys:\n" + made.entry)
    with pytest.raises(SetupFailed, match="taken"):
        producers.keygen(settings, "meters", tmp_path / "others.pem")
    with pytest.raises(SetupFailed, match="expected a key id like"):
        producers.keygen(settings, "../meters", tmp_path / "others.pem")
    with pytest.raises(SetupFailed, match=r"expected a key of .*its public key is"):
        producers.signer(load_settings("machines", producers=str(tmp_path / "none.yaml")), tmp_path / "meters.pem")


ENTRY = f"key_id: m, producer: p, public_key: {public_text(METERS)}"
WRONG_FILES = {
    "not YAML": ("keys: [", "not YAML"),
    "no keys": ("people: []", "keys: Field required"),
    "no types": (f"keys: [{{{ENTRY}}}]", "types: Field required"),
    "a type that is none": (f"keys: [{{{ENTRY}, types: [x.y]}}]", "expected types of"),
    "a key that is none": ("keys: [{key_id: m, producer: p, public_key: abc, types: [x]}]", "public_key"),
    "twice": (f"keys: [{{{ENTRY}, types: [{TYPE}]}}, {{{ENTRY}, types: [{TYPE}]}}]", "once, came"),
    "no such day": (f'keys: [{{{ENTRY}, types: [{TYPE}], not_after: "2026-02-31T00:00:00Z"}}]', "expected an RFC 3339 time"),
    "times reversed": (
        f'keys: [{{{ENTRY}, types: [{TYPE}], not_before: "2026-02-01T00:00:00Z", not_after: "2026-01-01T00:00:00Z"}}]',
        "to lie before",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_FILES)
def test_a_file_of_keys_is_refused_with_what_was_expected(tmp_path: Path, name: str) -> None:
    content, said = WRONG_FILES[name]
    (tmp_path / "producers.yaml").write_text(content)
    with pytest.raises(SetupFailed, match=said):
        load_producers(tmp_path / "producers.yaml", MACHINES)


def test_a_domain_without_the_file_knows_no_producer(tmp_path: Path) -> None:
    assert load_producers(tmp_path / "none.yaml", MACHINES) == ()


class Measured(FactData):
    """Version 2: degrees, which were tenths of them."""

    event_type: ClassVar[str] = TYPE
    schema_version: ClassVar[int] = 2
    upcasts: ClassVar[tuple[Upcast, ...]] = (lambda data: {"degrees": data["tenths"] / 10},)

    degrees: float


def test_a_fact_of_an_older_version_is_held_to_the_signature_over_what_its_producer_wrote() -> None:
    check = SignatureCheck("machines", KEYS, mode="required", max_age_ms=DAY_MS)
    reader = FactReader(DomainContract("machines", {TYPE: Measured}, {}, {}), max_ahead_ms=0, signatures=check)
    good = signed(text(data={"tenths": 735}, dataschema=schema_urn("machines", TYPE, 1)))
    assert reader.read(b"pump-1", good, NOW_MS, "machines.facts").data == Measured(degrees=73.5)
    with pytest.raises(BadInput) as refused:
        reader.read(b"pump-1", good.replace(b"735", b"736"), NOW_MS, "machines.facts")
    assert refused.value.code == Cause.SIGNATURE_INVALID
