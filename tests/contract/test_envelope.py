"""The envelope against CloudEvents 1.0.2 and its JSON format, and the time and id rules beneath it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from contracts.envelope import (
    check_event,
    derive_id,
    format_time_ms,
    parse_json,
    parse_time_ms,
    schema_urn,
)
from contracts.errors import BadInput
from contracts.rfc_syntax import is_absolute_uri, is_media_type, is_uri_reference

SAMPLE = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "data/cloudevents/json_cases_sample.jsonl")
    .read_text(encoding="utf-8")
    .splitlines()
]
MINIMAL = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t"}
# Stands for "without this member".
ABSENT = object()


def raw(**changes: object) -> bytes:
    """The minimal event with members changed, added or (ABSENT) taken away."""
    event = {**MINIMAL, **changes}
    return json.dumps({k: v for k, v in event.items() if v is not ABSENT}).encode()


@pytest.mark.parametrize("case", SAMPLE, ids=lambda case: case["id"])
def test_a_published_case_is_judged_as_published_when_checked(case: dict[str, Any]) -> None:
    answer = check_event(json.dumps(case["content"]).encode())
    assert answer["valid"] == case["expected_valid"]
    assert (answer["error"] is None) == case["expected_valid"]


VALID: dict[str, bytes] = {
    "id_of_a_blank": raw(id=" "),
    "id_of_any_script": raw(id="ключ 🐱"),
    "surrogates_in_a_pair": b'{"specversion":"1.0","id":"\\ud800\\udead","source":"/s","type":"t"}',
    "source_of_the_specification": raw(source="1-555-123-4567"),
    "source_mail": raw(source="mailto:cncf-wg-serverless@lists.cncf.io"),
    "source_urn": raw(source="urn:uuid:6e8bc430-9c3a-11d9-9669-0800200c9a66"),
    "source_with_fragment": raw(source="https://example.com/a?b#c"),
    "optional_attributes_null": raw(subject=None, time=None, dataschema=None, datacontenttype=None),
    "extension_null": raw(myext=None),
    "extension_string_empty": raw(myext=""),
    "extension_boolean": raw(myext=False),
    "extension_int_smallest": raw(myext=-(2**31)),
    "extension_int_largest": raw(myext=2**31 - 1),
    "extension_name_of_digits": raw(**{"0": "x"}),
    "extension_name_over_20": raw(**{"a" * 40: "x"}),  # SHOULD NOT exceed 20 characters, only
    "dataschema_absolute": raw(dataschema="https://example.com/schema?v=1"),
    "dataschema_urn": raw(dataschema="urn:x:y"),
    "media_type_with_parameter": raw(datacontenttype='text/plain; charset="utf-8"'),
    "media_type_with_suffix": raw(datacontenttype="application/vnd.a.b+json"),
    "data_of_other_content_as_json": raw(datacontenttype="text/xml", data={"a": 1}),
    "data_null": raw(data=None),
    "data_false": raw(data=False),
    "data_number": raw(data=1.5),
    "data_huge_integer": raw()[:-1] + b',"data":' + b"9" * 5000 + b"}",
    "data_array": raw(data=[1, "a", None]),
    "data_text": raw(data="not { json"),
    "data_with_a_key_twice": raw()[:-1] + b',"data":{"a":1,"a":2}}',
    "data_base64": raw(data_base64="4P8ARKo="),
    "data_base64_empty": raw(data_base64=""),
    "data_base64_null": raw(data_base64=None),
    "time_lower_case": raw(time="2018-04-05t17:31:00z"),
    "time_leap_second": raw(time="2016-12-31T23:59:60Z"),
    "time_offset_largest": raw(time="2018-04-05T17:31:00+23:59"),
    "time_fraction_long": raw(time="2018-04-05T17:31:00.12345678901234567890Z"),
    "time_year_0": raw(time="0000-01-01T00:00:00Z"),
    "blanks_around": b" \n" + raw() + b"\t\r\n",
    "batch_empty": b"[]",
    "batch_of_one": b"[" + raw() + b"]",
}
INVALID: dict[str, bytes] = {
    "nothing": b"",
    "blanks": b" \n",
    "no_json": b"{",
    "two_documents": raw() + raw(),
    "not_utf8": raw(id="x").replace(b'"x"', b'"\xff"'),
    "utf16": raw().decode().encode("utf-16"),
    "byte_order_mark": b"\xef\xbb\xbf" + raw(),
    "nan": raw()[:-1] + b',"data":NaN}',
    "infinity": raw()[:-1] + b',"data":-Infinity}',
    "nested_without_end": b"[" * 100_000,
    "number": b"1",
    "text": b'"x"',
    "null": b"null",
    "batch_in_batch": b"[[]]",
    "batch_with_null": b"[null]",
    "batch_with_a_bad_event": b"[" + raw() + b"," + raw(id="") + b"]",
    **{f"{name}_missing": raw(**{name: ABSENT}) for name in MINIMAL},
    **{f"{name}_null": raw(**{name: None}) for name in MINIMAL},
    **{f"{name}_empty": raw(**{name: ""}) for name in MINIMAL},
    **{f"{name}_number": raw(**{name: 1}) for name in MINIMAL},
    **{f"{name}_bool": raw(**{name: True}) for name in MINIMAL},
    **{f"{name}_array": raw(**{name: ["x"]}) for name in MINIMAL},
    **{f"{name}_empty": raw(**{name: ""}) for name in ("subject", "time", "dataschema", "datacontenttype")},
    **{f"{name}_number": raw(**{name: 5}) for name in ("subject", "time", "dataschema", "datacontenttype")},
    "specversion_number": raw(specversion=1.0),
    "specversion_patch": raw(specversion="1.0.2"),
    "specversion_old": raw(specversion="0.3"),
    "attribute_twice": raw()[:-1] + b',"id":"2"}',
    "attribute_twice_escaped": raw()[:-1] + b',"\\u0069d":"2"}',
    "extension_twice_same_value": raw()[:-1] + b',"a":1,"a":1}',
    "id_with_newline": raw(id="a\nb"),
    "id_with_delete": raw(id="a\x7f"),
    "id_with_c1_control": raw(id="a\x85"),
    "id_with_noncharacter": raw(id="a\uffff"),
    "id_with_noncharacter_of_the_middle": raw(id="\ufdd0"),
    "id_with_noncharacter_of_a_plane": raw(id="\U0001fffe"),
    "id_with_lone_surrogate": raw(id="\udead"),
    "extension_with_control": raw(myext="a\x00"),
    "extension_with_lone_surrogate": raw(myext="\ud800"),
    "name_upper_case": raw(myExt="x"),
    "name_with_underscore": raw(my_ext="x"),
    "name_with_hyphen": raw(**{"my-ext": "x"}),
    "name_with_dot": raw(**{"my.ext": "x"}),
    "name_with_blank": raw(**{"my ext": "x"}),
    "name_empty": raw(**{"": "x"}),
    "name_not_ascii": raw(é="x"),
    "name_of_other_digits": raw(**{"٣": "x"}),
    "name_of_data_upper_case": raw(Data={}),
    "extension_float": raw(myext=1.5),
    "extension_float_that_is_whole": raw()[:-1] + b',"myext":1.0}',
    "extension_with_exponent": raw()[:-1] + b',"myext":1e3}',
    "extension_object": raw(myext={"a": 1}),
    "extension_array": raw(myext=[]),
    "extension_int_too_small": raw(myext=-(2**31) - 1),
    "extension_int_too_large": raw(myext=2**31),
    "extension_int_of_5000_digits": raw()[:-1] + b',"myext":' + b"9" * 5000 + b"}",
    "source_with_blank": raw(source="/a b"),
    "source_not_ascii": raw(source="/ä"),
    "source_bad_escape": raw(source="/%zz"),
    "source_two_fragments": raw(source="/a#b#c"),
    "source_bad_port": raw(source="http://a:b/"),
    "source_bad_address": raw(source="http://[::1/"),
    "source_brackets_in_path": raw(source="/a[1]"),
    "source_colon_first": raw(source=":a"),
    "dataschema_relative": raw(dataschema="/schema"),
    "dataschema_no_scheme": raw(dataschema="example.com/schema"),
    "dataschema_with_fragment": raw(dataschema="https://example.com/s#a"),  # RFC 3986, 4.3
    "media_type_without_subtype": raw(datacontenttype="json"),
    "media_type_without_type": raw(datacontenttype="/json"),
    "media_type_two_slashes": raw(datacontenttype="a/b/c"),
    "media_type_with_blank": raw(datacontenttype="text /plain"),
    "media_type_parameter_without_value": raw(datacontenttype="text/plain; charset"),
    "data_twice": raw()[:-1] + b',"data":1,"data":2}',
    "data_and_base64": raw(data={}, data_base64="e30="),
    "data_null_and_base64": raw(data=None, data_base64="e30="),
    "base64_number": raw(data_base64=1),
    "base64_object": raw(data_base64={}),
    "base64_not_padded": raw(data_base64="e30"),
    "base64_alphabet_of_urls": raw(data_base64="4P-_RKo="),
    "base64_with_newline": raw(data_base64="e3\n0="),
    "base64_text": raw(data_base64="not base64!"),
    "time_date": raw(time="2018-04-05"),
    "time_without_offset": raw(time="2018-04-05T17:31:00"),
    "time_without_seconds": raw(time="2018-04-05T17:31Z"),
    "time_with_blank": raw(time="2018-04-05 17:31:00Z"),
    "time_with_comma": raw(time="2018-04-05T17:31:00,5Z"),
    "time_basic_format": raw(time="20180405T173100Z"),
    "time_of_a_week": raw(time="2018-W14-4T17:31:00Z"),
    "time_empty_fraction": raw(time="2018-04-05T17:31:00.Z"),
    "time_short_offset": raw(time="2018-04-05T17:31:00+01"),
    "time_offset_without_colon": raw(time="2018-04-05T17:31:00+0100"),
    "time_offset_with_seconds": raw(time="2018-04-05T17:31:00+01:00:30"),
    "time_offset_of_a_day": raw(time="2018-04-05T17:31:00+24:00"),
    "time_offset_60_minutes": raw(time="2018-04-05T17:31:00+01:60"),
    "time_zone_name": raw(time="2018-04-05T17:31:00 UTC"),
    "time_no_such_day": raw(time="2018-02-29T00:00:00Z"),
    "time_month_13": raw(time="2018-13-01T00:00:00Z"),
    "time_hour_24": raw(time="2018-04-05T24:00:00Z"),
    "time_minute_60": raw(time="2018-04-05T23:60:00Z"),
    "time_second_61": raw(time="2016-12-31T23:59:61Z"),
    "time_leap_second_at_noon": raw(time="2018-04-05T12:00:60Z"),
    "time_year_of_five_digits": raw(time="12018-04-05T17:31:00Z"),
    "time_other_digits": raw(time="२०१८-04-05T17:31:00Z"),
    "time_with_newline": raw(time="2018-04-05T17:31:00Z\n"),
    "time_milliseconds": raw(time="1522949460000"),
}


@pytest.mark.parametrize("text", VALID.values(), ids=VALID)
def test_an_event_is_valid_when_the_specification_allows_it(text: bytes) -> None:
    assert check_event(text) == {"valid": True, "error": None}


@pytest.mark.parametrize("text", INVALID.values(), ids=INVALID)
def test_an_event_is_refused_with_a_reason_when_it_breaks_a_rule(text: bytes) -> None:
    answer = check_event(text)
    assert answer["valid"] is False
    assert answer["error"]


def test_the_error_names_the_event_when_a_batch_holds_a_bad_one() -> None:
    answer = check_event(b"[" + raw() + b"," + raw(type="") + b"]")
    assert answer["error"] == "event 1 of the batch: attribute 'type': expected a non-empty string, came ''"


@pytest.mark.parametrize(
    ("text", "expected_ms"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1969-12-31T23:59:59.999Z", -1),
        ("2013-12-02T20:15:00Z", 1386015300000),
        ("2013-12-02T21:15:00+01:00", 1386015300000),
        ("2013-12-02T20:14:00-00:01", 1386015300000),
        ("2013-12-02T20:15:00.1Z", 1386015300100),
        ("2013-12-02T20:15:00.0019999Z", 1386015300001),
        ("2013-12-02T20:15:00.123456789+00:00", 1386015300123),
        ("2016-12-31T23:59:60Z", 1483228800000),
        ("2017-01-01T00:59:60.5+01:00", 1483228800500),
        ("0000-01-01T00:00:00Z", -62167219200000),
        ("9999-12-31T23:59:59.999Z", 253402300799999),
        ("9999-12-31T23:59:60Z", 253402300800000),
    ],
)
def test_a_time_is_counted_in_milliseconds_when_written_in_any_legal_way(text: str, expected_ms: int) -> None:
    assert parse_time_ms(text) == expected_ms


@pytest.mark.parametrize("instant_ms", [0, 1, 999, -1, 1386015300000, 1386015300120, 253402300799999])
def test_a_time_comes_back_when_formatted_and_parsed(instant_ms: int) -> None:
    assert parse_time_ms(format_time_ms(instant_ms)) == instant_ms


@pytest.mark.parametrize(
    ("text", "is_reference", "is_absolute"),
    [
        ("", True, False),
        ("a", True, False),
        ("a/b:c", True, False),
        ("./a:b", True, False),
        ("1:b", False, False),
        ("?q", True, False),
        ("#f", True, False),
        ("//host/path", True, False),
        ("a:", True, True),
        ("http://user:pw@host:80/p?q", True, True),
        ("http://[2001:db8::1]:8080/", True, True),
        ("http://[2001:db8::1::2]/", False, False),
        ("http://[v1.x:y]/", True, True),
        ("http://a@b@c/", False, False),
        ("http://a#b", True, False),
        ("tel:+1-816-555-1212", True, True),
        ("file:///etc/hosts", True, True),
        ("a\\b", False, False),
        ("a|b", False, False),
        ("a\n", False, False),
    ],
)
def test_a_uri_is_recognised_when_it_follows_rfc_3986(
    text: str, is_reference: bool, is_absolute: bool
) -> None:
    assert (is_uri_reference(text), is_absolute_uri(text)) == (is_reference, is_absolute)


def test_long_texts_are_judged_at_once_when_they_nearly_fit() -> None:
    """No pattern may backtrack without bound: the edge runs them on whatever comes."""
    assert not is_uri_reference("/" + "a/" * 200_000 + " ")
    assert not is_uri_reference("http://" + "a:" * 200_000 + "@@")
    assert not is_media_type("a/b" + ";a=b" * 200_000 + ";")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b"", "empty"),
        (b"\xff", "not_utf8"),
        (b"{", "not_json"),
        (b"NaN", "not_json"),
        (b'"\\ud800"', "not_json"),
        (b"[" * 100_000, "not_json"),
        (b"9" * 5000, "not_json"),  # JSON by the grammar; no number Flyball carries has 5000 digits
        (b'{"a":1,"a":1}', "duplicate_key"),
        (b'{"data":{"a":1,"\\u0061":2}}', "duplicate_key"),
    ],
)
def test_json_is_refused_with_a_code_when_it_is_not_strict(text: bytes, code: str) -> None:
    with pytest.raises(BadInput) as refused:
        parse_json(text)
    assert refused.value.code == code


def test_an_id_is_the_same_when_derived_again() -> None:
    assert derive_id("c", "stage", "agent") == derive_id("c", "stage", "agent", 0)
    # sha256sum of "c|stage|agent|0", first 32 digits: what jobs/context.py derives in SQL.
    assert derive_id("c", "stage", "agent") == "093c9a0a4288b2b431cc4500acbb88c8"
    assert derive_id("c", "stage", "agent", 1) != derive_id("c", "stage", "agent", 0)


def test_a_schema_urn_is_an_absolute_uri_when_made_for_any_type() -> None:
    assert schema_urn("machines", "machine.temperature_measured") == (
        "urn:flyball:machines:machine.temperature_measured:1"
    )
    assert is_absolute_uri(schema_urn("a_b", "x.y-z", 12))
