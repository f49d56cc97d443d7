"""Masking: nothing of a personal value leaves, and what comes back is what left."""

from __future__ import annotations

import json
import re
import time

import pytest

from tests.asking import CONTRACT, PROMPT, agent, symptom
from udfs.reason.masking import Mask
from udfs.reason.prompt import messages

PERSON = "Ada Lovelace"


def mask(**personal: str) -> Mask:
    return Mask(personal or {"deployed_by": PERSON})


@pytest.mark.parametrize(
    "spelling",
    [
        "Ada Lovelace", "ADA LOVELACE", "ada lovelace", "aDa lOvElAcE", "Ada  Lovelace", "Ada\nLovelace", "Ada\u00a0Lovelace",
        "Ada%20Lovelace", "Ada+Lovelace", "xAda Lovelacex", "Ada%2520Lovelace", "Ada\\u0020Lovelace", "Ada\\\\u0020Love\\u006Cace",
        "Ada\\nLovelace", "&#65;da&nbsp;Lovelace", "\\u0041\\u0064\\u0061 Lovelace", "%41da%20%4Covelace",
    ],
)  # fmt: skip
def test_a_value_is_hidden_in_other_text_when_written_otherwise(spelling: str) -> None:
    hidden = mask().hide(f"by {spelling}, they say")
    assert re.fullmatch(r"by x?\[\[deployed_by\.[0-9a-f]{10}\]\]x?, they say", hidden)


@pytest.mark.parametrize("value", ['Zoë "Z" O\'Brien\\', "Straße 7", "Ünal\tÖz", "李小龍", "a<b>&c", "new\nline", "e\u0301mile"])
def test_a_value_is_hidden_in_json_of_json_when_it_needs_escapes(value: str) -> None:
    one = mask(name=value)
    for is_ascii in (True, False):
        inner = json.dumps({"who": value}, ensure_ascii=is_ascii)
        for text in (inner, json.dumps({"log": inner}, ensure_ascii=is_ascii), inner.upper().replace("\\N", "\\n")):
            hidden = one.hide(text)
            assert "[[name." in hidden
            for part in re.findall(r"\w{4,}", value):
                assert part.casefold() not in hidden.casefold()


def test_a_hostile_text_costs_no_more_than_its_length() -> None:
    began = time.process_time()
    for text in ("\\" * 200_000, "Ada " * 50_000, "Ada" + " " * 200_000, "A" * 200_000, "%25" * 60_000, "&#0" * 60_000):
        assert mask().hide(text) == text
    assert time.process_time() - began < 5


def test_a_long_value_is_hidden_too() -> None:
    story = "Once upon a time. " * 100
    assert "Once" not in mask(story=story).hide(f"they said: {story.upper()}")


def test_upper_case_that_changes_the_length_is_hidden_when_written_so() -> None:
    assert "STRASSE" not in mask(street="Hauptstraße 7").hide("AN DER HAUPTSTRASSE 7")


def test_one_value_has_one_placeholder_when_it_stands_in_two_fields() -> None:
    one = mask(approved_by=PERSON, deployed_by=PERSON)
    assert one.hide_field("approved_by", PERSON) == one.hide_field("deployed_by", PERSON) == one.hide(PERSON)


def test_the_longer_value_goes_first_when_one_holds_the_other() -> None:
    one = mask(a="ada", b="ada.lovelace@example.org")
    hidden = one.hide("ada wrote as ADA.Lovelace@example.org")
    assert re.fullmatch(r"\[\[a\.\w+\]\] wrote as \[\[b\.\w+\]\]", hidden)
    assert one.restore(hidden) == "ada wrote as ada.lovelace@example.org"


@pytest.mark.parametrize("short", ["x", "no", "7"])
def test_a_short_value_is_hidden_only_as_a_whole_field(short: str) -> None:
    one = mask(code=short)
    assert one.hide(f"{short} is 7 and no x") == f"{short} is 7 and no x"
    assert one.hide(short) == one.hide(short.upper()) == one.hide_field("code", short)
    assert one.hide(short) != short


def test_a_personal_number_is_hidden_wherever_it_stands() -> None:
    one = mask(account="4711007")
    assert one.hide_field("account", 4711007) == one.hide_field("other", 4711007) == one.hide("4711007")
    assert one.hide_field("other", 4711008) == 4711008
    assert one.hide_field("flag", True) is True
    assert one.hide_field("nothing", None) is None


def test_hiding_twice_changes_nothing_more() -> None:
    one = mask()
    once = one.hide(f"{PERSON} and [[deployed_by]] and [[deployed_by.0123456789]]")
    assert one.hide(once) == once


def test_a_reply_gets_its_values_back_when_it_is_nested() -> None:
    one = mask()
    there = one.hide(PERSON)
    came = {"reason": f"{there} did it", "list": [there, 1, None, {"deep": f"<{there}>"}], there: True}
    assert one.restore(came) == {"reason": f"{PERSON} did it", "list": [PERSON, 1, None, {"deep": f"<{PERSON}>"}], there: True}


def test_text_like_a_placeholder_is_no_placeholder_when_it_stands_in_the_data() -> None:
    forged = "[[deployed_by]] [[deployed_by.0123456789]] [[deployed_by.ffffffffff]]"
    situation = symptom(alert_text=forged)
    one = Mask.of(situation, CONTRACT.personal_fields)
    hidden = one.hide(forged)
    assert hidden == forged
    assert one.restore(f"x {hidden}") == f"x {forged}"
    tag = one.hide(PERSON)
    stolen = Mask.of(symptom(alert_text=tag), CONTRACT.personal_fields)
    assert stolen.restore(f"x {tag}") == f"x {tag}", "the tag changes with the data, so data cannot hold it"


def test_a_value_that_looks_like_a_placeholder_is_not_restored_again() -> None:
    one = mask(a="[[b.0123456789]]", b="secret name")
    assert one.restore(one.hide("[[b.0123456789]]")) == "[[b.0123456789]]"


def test_an_unknown_placeholder_stays_when_a_reply_makes_one_up() -> None:
    assert mask().restore("[[other.0123456789]]") == "[[other.0123456789]]"


def test_a_known_name_comes_back_as_it_was_when_a_value_stands_in_it() -> None:
    situation = symptom(node="ADA lovelace-shop", suspects=("ADA lovelace-shop", "db"))
    one = Mask.of(situation, CONTRACT.personal_fields)
    assert one.restore(one.hide("ADA lovelace-shop")) == "ADA lovelace-shop"


def test_the_tag_tells_nothing_of_the_value_when_only_the_value_differs() -> None:
    tags = {Mask.of(symptom(deployed_by=name), CONTRACT.personal_fields).hide(name) for name in ("Ada Lovelace", "Grace Hopper")}
    assert len(tags) == 1


def test_no_value_shows_when_a_mask_is_printed() -> None:
    assert "Lovelace" not in repr(mask())


def test_nothing_personal_stands_in_the_messages_wherever_the_value_stood() -> None:
    situation = symptom(
        node="svc-ada lovelace", alert_text='{"by": "ADA LOVELACE", "note": "ask Ada\\u0020Lovelace"}', suspect="ada%20lovelace",
        suspects=("Ada Lovelace", "db"), evidence=("f-Ada Lovelace",),
    )  # fmt: skip
    told = json.dumps(messages(PROMPT, agent(), situation, CONTRACT, [("who", '{"name": "Ada Lovelace"}')]))
    assert "ovelace" not in told.lower().replace("\\", "")
