"""Times as files have them."""

from __future__ import annotations

import pytest

from contracts.errors import BadInput
from ops.csv_time import parse_loose_time_ms
from ops.world import load_world

AT_MS = 1_522_540_831_000  # 2018-04-01T00:00:31Z


@pytest.mark.parametrize(
    ("text", "at_ms"),
    [
        ("2018-04-01T00:00:31Z", AT_MS),
        ("2018-04-01T02:00:31+02:00", AT_MS),
        ("2018-04-01 00:00:31", AT_MS),
        (" 2018-04-01T00:00:31.250 ", AT_MS + 250),
        ("2018-04-01 00:00", AT_MS - 31_000),
        ("2018-04-01", AT_MS - 31_000),
        ("1522540831", AT_MS),
        (" 1522540831 ", AT_MS),
        (1522540831, AT_MS),  # as JSON has it
        ("1522540831250", AT_MS + 250),
        ("1000000000", 1_000_000_000_000),
        ("9999999999999", 9_999_999_999_999),
    ],
)
def test_a_time_is_read_in_each_way_people_write_it(text: object, at_ms: int) -> None:
    assert parse_loose_time_ms(text) == at_ms


@pytest.mark.parametrize(
    "text",
    [
        "", None, "yesterday", "2018-13-01", "152254083", "15225408310", "152254083100", "15225408312500", "0522540831", "-1522540831",
        "+1522540831", "1522540831.0", "1_522_540_831", "1522540831Z", "١٥٢٢٥٤٠٨٣١", "20180401", 1522540831.5, True,
    ],
)  # fmt: skip
def test_what_might_be_another_time_is_refused(text: object) -> None:
    with pytest.raises(BadInput, match="expected a time like") as refused:
        parse_loose_time_ms(text)
    assert refused.value.code == "row_invalid"


def test_a_payment_is_the_same_fact_however_its_time_is_written() -> None:
    row = {"transaction_id": "0007", "customer_id": "596", "terminal_id": "3156", "amount": "57.16"}
    facts = [load_world("payments").row_to_fact({**row, "ts": ts}, None) for ts in ("2018-04-01 00:00:31", "1522540831", "1522540831000")]
    assert facts[0].event_ms == AT_MS
    assert facts == [facts[0]] * 3
