"""Training without a second implementation of the features: the domain's own SQL makes them.

Facts are played through the real `context` job on an instance of its own; the model is fitted on the
situations it wrote, so what a model saw in training is to the bit what it sees in `propose`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import Any

import orjson

from contracts.domain import load_domain
from contracts.errors import JobFailed
from contracts.topics import topic
from ops import flink_jobs, instance, kafka
from ops.home import Home
from ops.player import Emitter
from ops.submission import Submission
from ops.world import NewFact

PATIENCE_S = 300.0


def situations_of(domain: str, facts: Iterable[NewFact], situation_type: str) -> list[dict[str, Any]]:
    """The `data` of every situation of one type that `context` makes of `facts`, in log order.

    Starts and stops a broker and a cluster under `.flyball/train`. Raises JobFailed when the job
    fails or does not come to rest.
    """
    home = Home(Home.default().path / "train")
    instance.stop(home)
    instance.start(home, fresh=True, while_pid=os.getpid())
    try:
        instance.wait_ready(home)
        bootstrap = str(home.read_state()["bootstrap_servers"])
        kafka.create_topics(bootstrap, domain)
        Submission(home, domain, ["context"]).go().wait()
        writer = kafka.producer(bootstrap)
        emitted = Emitter(load_domain(domain), writer, file_name="training").emit(facts, rate=None)
        writer.close()
        deadline = time.monotonic() + PATIENCE_S
        while len(found := _situations(bootstrap, domain, situation_type)) < emitted.facts:
            flink_jobs.check(home, domain)
            if time.monotonic() > deadline:
                raise JobFailed(
                    f"expected {emitted.facts} situations {situation_type!r}, came"
                    f" {len(found)} within {PATIENCE_S:.0f} s"
                )
            time.sleep(1)
        return found
    finally:
        instance.stop(home)


def _situations(bootstrap: str, domain: str, situation_type: str) -> list[dict[str, Any]]:
    needle = f'"type":"{situation_type}"'.encode()
    return [
        orjson.loads(record.value)["data"]
        for record in kafka.read_all(bootstrap, [topic("situations").of(domain)])
        if record.value is not None and needle in record.value
    ]
