"""Jobs submitted by hand: `flink run -py jobs/<job>.py -- --domain <domain>`."""

from __future__ import annotations

import re

from contracts.envelope import parse_time_ms
from ops import flink_jobs
from ops.world import NewFact
from tests.loop import Loop


def test_each_job_runs_when_it_was_submitted_with_flink_run(payments: Loop) -> None:
    """The fixture submitted them; what it printed names the jobs that run."""
    running = {job.name: job for job in flink_jobs.states(payments.home, "payments")}
    assert {name: job.state for name, job in running.items()} == {
        f"payments.{name}": "RUNNING" for name in flink_jobs.jobs_of("payments")
    }
    for name, job in running.items():
        said = (payments.home.logs / f"flink-run-{name}.out").read_text()
        assert re.findall(r"JobID ([0-9a-f]{32})", said) == [job.job_id]


def test_a_payment_is_decided_by_the_jobs_submitted_by_hand(payments: Loop) -> None:
    data = {"transaction_id": "hand-t1", "terminal_id": "hand-shop", "amount_minor": 1250}
    payments.emit(
        NewFact(
            "payment.authorisation_requested", "hand-account", parse_time_ms("2021-03-01T12:00:00Z"), data, "1"
        )
    )
    (decision,) = payments.wait_for("a decision", lambda: payments.events("decisions", "hand-account"))
    assert decision["data"]["parameters"]["transaction_id"] == "hand-t1"
    assert decision["data"]["verdict"] == "allow"
