"""`payments`, from a generated world with late chargebacks to blocked and reviewed payments."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ops import run as runner
from ops.player import Emitter
from ops.watch import Watch
from ops.world import NewFact, load_world
from ops.worlds.payments_generator import LabelledPayment
from tests.loop import Loop

COUNT = 6000
SEED = 4711  # not one of those the model was trained on


def test_fraud_is_caught_and_genuine_payments_pass_when_a_world_is_played(payments: Loop) -> None:
    world = load_world("payments")
    truth: dict[str, bool] = {}

    class Watched:
        """The world, noting the truth about what it plays."""

        def __getattr__(self, name: str) -> Any:
            return getattr(world, name)

        def played(self, facts: Any, decision_of: Any) -> Iterator[NewFact | None]:
            for fact in world.played(facts, decision_of):
                if isinstance(fact, LabelledPayment) and fact.is_fraud is not None:
                    truth[str(fact.data["transaction_id"])] = fact.is_fraud
                yield fact

    watch = Watch(
        payments.bootstrap, "payments", is_committed=False, from_beginning=False,
        decision_key=world.decision_key,
    )  # fmt: skip
    watch.start()
    try:
        asked = runner.Asked(domain="payments", seed=SEED, count=COUNT)
        emitter = Emitter(payments.contract, payments._writer, file_name="seed")
        emitter.emit(runner.items(asked, payments.settings, Watched(), watch), rate=None)  # type: ignore[arg-type]
        payments.settle(timeout_s=300)
    finally:
        watch.stop()

    by_payment = {
        d["data"]["parameters"]["transaction_id"]: d["data"]
        for d in payments.events("decisions")
        if d["data"]["parameters"].get("transaction_id") in truth
    }
    assert len(truth) >= COUNT * 0.9
    assert set(by_payment) == set(truth), "every payment gets a decision"
    stopped = {
        name for name, data in by_payment.items()
        if data["verdict"] == "allow" and data["action"] in ("block_payment", "review_payment")
    }  # fmt: skip
    frauds = {name for name, is_fraud in truth.items() if is_fraud}
    caught = len(stopped & frauds)
    precision, recall = caught / max(1, len(stopped)), caught / max(1, len(frauds))
    told = f"{len(frauds)} frauds, {len(stopped)} stopped, precision {precision:.2f}, recall {recall:.2f}"
    assert precision >= 0.75, told
    assert recall >= 0.6, told

    commanded = {c["data"]["parameters"]["transaction_id"] for c in payments.events("commands")}
    assert commanded & set(truth) == stopped, "blocking and reviewing are commanded, letting pass is not"
    charged_back = {
        e["data"]["transaction_id"] for e in payments.events("facts", type_="payment.charged_back")
    }
    blocked = {name for name in stopped if by_payment[name]["action"] == "block_payment"}
    assert charged_back & set(truth) == frauds - blocked, "what was blocked is never charged back"
