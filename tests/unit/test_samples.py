"""Samples as SQL hands them over: texts by tab in, texts by tab out."""

from __future__ import annotations

from udfs.samples import evidence_in, last_deploy, nodes_in, suspects_in, symptom_in, worst_of

CALLS = "web\tshop\nshop\tdb\n"


def row(ms: int, node: str, score: float, *, metric: str = "latency", weak: str = "", fact: str = "") -> str:
    fact_id = fact or f"{node}-{metric}-{ms}"
    return f"{ms}\t{node}\t{metric}\tAverage\t{score}\t{score / 10}\t{weak}\t1.5\t0.5\t{fact_id}"


CALM = [row(1000, node, 0.2) for node in ("web", "shop", "db")]
FAULT = [None, row(2000, "db", 30), row(2000, "shop", 20), row(2000, "web", 9)]


def test_a_symptom_is_given_as_the_row_it_is() -> None:
    assert symptom_in([*CALM, *FAULT], CALLS, 2000) == row(2000, "web", 9)


def test_only_the_sample_asked_for_counts() -> None:
    assert symptom_in([*CALM, *FAULT], CALLS, 1000) is None
    assert symptom_in([*FAULT, row(3000, "web", 0)], CALLS, 2000) is not None


def test_the_sample_before_tells_whether_what_nobody_calls_is_off_twice() -> None:
    assert symptom_in([row(1000, "web", 9), row(2000, "web", 9)], CALLS, 2000) == row(2000, "web", 9)
    assert symptom_in([row(1000, "web", 1), row(2000, "web", 9)], CALLS, 2000) is None


def test_a_node_is_told_of_in_a_sample_when_a_row_of_it_says_more_than_traffic() -> None:
    rows = [*CALM, row(2000, "shop", 0.1), row(2000, "db", 0.1), row(2000, "web", 30, metric="requests", weak="weak")]
    assert nodes_in(rows, 1000) == "db\tshop\tweb"
    assert nodes_in(rows, 2000) == "db\tshop"


def test_no_node_is_told_of_when_other_facts_pushed_the_sample_out() -> None:
    assert nodes_in([*CALM, None], 2000) == ""
    assert nodes_in([None], None) == ""


def test_suspects_are_listed_by_tab() -> None:
    assert suspects_in([*CALM, *FAULT], CALLS, 2000, 1, "web").split("\t")[0] == "db"


def test_the_node_itself_is_suspected_when_nothing_else_stands_out() -> None:
    assert suspects_in(CALM, CALLS, 1000, 1, "web") == "web"
    assert suspects_in([], None, None, 2, "web") == "web"
    assert suspects_in(CALM, CALLS, 1000, 1, None) == ""


def test_the_latest_row_of_each_series_counts_when_the_newest_sample_is_not_complete() -> None:
    begun = [row(3000, "db", 31)]
    assert suspects_in([*FAULT, *begun], CALLS, 3000, 2, "web").split("\t")[0] == "db"
    assert suspects_in([*FAULT, *begun], CALLS, 3000, 1, "shop") == "db"


def test_evidence_is_of_the_likeliest_first_and_only_what_is_far_off() -> None:
    rows = [*FAULT, row(2000, "db", 1, metric="errors")]
    assert evidence_in(rows, 2000, 1, "db\tshop") == "db-latency-2000\tshop-latency-2000"
    assert evidence_in(rows, 2000, 1, None) == ""


def test_a_node_is_worse_when_it_was_far_off_in_most_samples() -> None:
    after = [row(ms, "shop", score) for ms, score in ((1, 9), (2, 1), (3, 8))]
    assert worst_of(after, "shop", 3, 3) == after[-1]
    assert worst_of([*after[:-1], row(3, "shop", 1)], "shop", 3, 3) is None
    assert worst_of(after, "web", 3, 3) is None
    assert worst_of([row(ms, "shop", 9, weak="weak") for ms in (1, 2, 3)], "shop", 3, 3) is None


def test_the_last_deploy_of_the_node_before_then_is_found() -> None:
    deploys = ["10\tshop\td-1\tf-1\tada", None, "20\tdb\td-2\tf-2\t", "30\tshop\td-3\tf-3\t"]
    assert last_deploy(deploys, "shop", 25) == deploys[0]
    assert last_deploy(deploys, "shop", None) == deploys[3]
    assert last_deploy(deploys, "web", 40) is None
