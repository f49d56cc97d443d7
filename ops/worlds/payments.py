"""The world of `payments`: files and generated accounts in, late outcomes back, a simulated bank."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from contracts.errors import BadInput
from contracts.payments import AuthorisationRequested
from ops.csv_time import parse_loose_time_ms
from ops.world import DecisionOf, Done, Handler, NewFact, Order
from ops.worlds.payments_generator import LabelledPayment, generate, world_of_size
from ops.worlds.payments_outcomes import with_late_outcomes

COLUMNS = ("ts", "transaction_id", "customer_id", "terminal_id", "amount")
# Share of commands the simulated bank fails, by a hash of seed and command id.
BLOCK_FAILS = 0.01
REVIEW_FAILS = 0.03


class PaymentsWorld:
    """Files are CSV `ts,transaction_id,customer_id,terminal_id,amount[,is_fraud]`.

    The subject is the account (customer_id). The label is kept beside the fact, never in it, and
    only says which late outcome the world tells; without it, none.
    """

    def row_to_fact(self, row: Mapping[str, str], subject: str | None) -> NewFact:
        if missing := set(COLUMNS) - set(row):
            raise BadInput("row_invalid", f"expected the columns {COLUMNS}; {sorted(missing)} missing")
        event_ms = parse_loose_time_ms(row["ts"])
        if event_ms < 0:
            raise BadInput("row_invalid", f"ts: expected a time after 1970, came {row['ts'][:40]!r}")
        data = {
            "transaction_id": row["transaction_id"],
            "terminal_id": row["terminal_id"],
            "amount_minor": minor_units(row["amount"]),
        }
        try:
            AuthorisationRequested.model_validate(data)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            told = f"{first['loc'][0]}: {first['msg']}, came {str(first['input'])[:80]!r}"
            raise BadInput("row_invalid", told) from None
        account = row["customer_id"]
        if not account.strip() or len(account) > 256 or not account.isprintable():
            raise BadInput(
                "row_invalid",
                f"customer_id: expected 1 to 256 printable characters, came {account[:80]!r}",
            )
        identity = f"{event_ms}|{data['transaction_id']}|{data['terminal_id']}|{data['amount_minor']}"
        return LabelledPayment(
            AuthorisationRequested.event_type, account, event_ms, data, identity, label(row.get("is_fraud")),
        )  # fmt: skip

    def played(
        self, facts: Iterable[NewFact | None], decision_of: DecisionOf
    ) -> Iterator[NewFact | None]:
        return with_late_outcomes(facts, decision_of, until_ms=time.time() * 1000)

    def generate(self, *, seed: int, count: int) -> Iterator[NewFact]:
        return generate(world_of_size(count), seed, count)

    def decision_key(self, decision: Mapping[str, Any]) -> str | None:
        found = (decision.get("parameters") or {}).get("transaction_id")
        return found if isinstance(found, str) else None

    def handlers(self, seed: int) -> Mapping[str, Handler]:
        def answer(order: Order, *, fails: float, took_s: float, failure: str) -> Done:
            digest = hashlib.sha256(f"{seed}|{order.command_id}".encode()).digest()
            if int.from_bytes(digest[:8]) / 2**64 < fails:
                return Done("failed", failure, took_s)
            return Done("succeeded", "", took_s)

        return {
            "block_payment": lambda order: answer(
                order, fails=BLOCK_FAILS, took_s=0.2, failure="card scheme did not answer; stopped by hand"
            ),
            "review_payment": lambda order: answer(
                order, fails=REVIEW_FAILS, took_s=1, failure="customer could not be reached; letter sent"
            ),
        }

    def train(self, folder: Path) -> Mapping[str, Any]:
        """Fit payment-fraud on generated worlds; writes .onnx and .json, the same bytes each time."""
        import json

        from ops.worlds import payments_training
        from ops.worlds.payments_features import FEATURES

        model, rows = payments_training.train()
        content = payments_training.to_onnx(model)
        card = {
            "alias": "payment-fraud",
            "version": 1,
            "inputs": list(FEATURES),
            "output": "confidence",
            "trained_on": f"late outcomes of {len(payments_training.WORLDS)} generated worlds, played twice",
            "metrics": {"rows": rows},
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "payment-fraud.onnx").write_bytes(content)
        (folder / "payment-fraud.json").write_text(json.dumps(card, indent=2) + "\n")
        return {**card, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def minor_units(text: str) -> int:
    """`12.345` -> 1235: two decimals, half up, without binary fractions."""
    try:
        amount = Decimal(text.strip())
    except InvalidOperation:
        raise BadInput("row_invalid", f"amount: expected a number, came {text[:40]!r}") from None
    if not amount.is_finite() or not 0 <= amount < 10**13:
        raise BadInput("row_invalid", f"amount: expected 0 up to 10^13, came {text[:40]!r}")
    return int((amount * 100).to_integral_value(rounding=ROUND_HALF_UP))


def label(text: str | None) -> bool | None:
    """The label of a row; None when there is none."""
    match (text or "").strip().lower():
        case "":
            return None
        case "1" | "1.0" | "true" | "yes":
            return True
        case "0" | "0.0" | "false" | "no":
            return False
        case other:
            raise BadInput("row_invalid", f"is_fraud: expected 0 or 1, came {other[:40]!r}")


WORLD = PaymentsWorld()
