"""Python functions that Flink SQL calls. Thin: the work is in udfs/serde.py."""

from __future__ import annotations

import time
from hashlib import blake2b
from typing import Any

from pyflink.table import DataTypes
from pyflink.table.types import DataType
from pyflink.table.udf import FunctionContext, TableFunction, udf

from contracts.domain import load_domain
from contracts.errors import BadInput
from contracts.topics import topic
from udfs import samples
from udfs.heap import settle
from udfs.serde import FactReader, dead_letter, internal
from udfs.signed_facts import Mode, ProducerKey, SignatureCheck

_FLINK_TYPES = {
    "STRING": DataTypes.STRING,
    "BIGINT": DataTypes.BIGINT,
    "DOUBLE": DataTypes.DOUBLE,
    "BOOLEAN": DataTypes.BOOLEAN,
}
ENVELOPE_COLUMNS = {
    "dead_key": "STRING",
    "dead_letter": "STRING",
    "fact_id": "STRING",
    "fact_hash": "BIGINT",
    "fact_type": "STRING",
    "subject": "STRING",
    "event_ms": "BIGINT",
    "correlation_id": "STRING",
    "hops": "BIGINT",
    "traceparent": "STRING",
}


def hash64(text: str) -> int:
    """64 bits of BLAKE2b: what ids are compared by where many are compared for each row."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)


def fact_row_columns(domain: str) -> dict[str, str]:
    """Columns of the row `ReadFact` gives: envelope, then every data field of any fact type."""
    return {**ENVELOPE_COLUMNS, **load_domain(domain).fact_columns()}


class ReadFact(TableFunction):
    """read_fact(key, value, topic, partition, offset, appended_ms) -> exactly one row.

    Either `dead_letter` is set (and everything else null) or the fact's columns are. Stateless and
    deterministic: "now" is the broker's append time, so a replay judges as the first run did. But for outcomes that
    were appended longer before the operator opened than facts are kept: these are ticks (udfs/serde.py).
    """

    def __init__(
        self, domain: str, max_ahead_s: int, keys: tuple[ProducerKey, ...], signed_facts: Mode, signature_max_age_s: int
    ) -> None:
        self._domain = domain
        self._max_ahead_s = max_ahead_s
        self._keys = [key.model_dump(mode="json") for key in keys]
        self._signed_facts: Mode = signed_facts
        self._signature_max_age_s = signature_max_age_s

    def open(self, function_context: FunctionContext) -> None:
        contract = load_domain(self._domain)
        signatures = SignatureCheck(
            self._domain, [ProducerKey.model_validate(key) for key in self._keys], mode=self._signed_facts,
            max_age_ms=self._signature_max_age_s * 1000,
        )  # fmt: skip
        self._read = FactReader(
            contract, max_ahead_ms=self._max_ahead_s * 1000, signatures=signatures,
            outcomes_since_ms=int(time.time() * 1000) - topic("facts").retention_ms,
        ).read  # fmt: skip
        names = list(contract.fact_columns())
        width = len(ENVELOPE_COLUMNS) + len(names)
        self._empty = [None] * (width - 2)
        self._fields = {
            kind: [name if name in fact.model_fields else None for name in names]
            for kind, fact in contract.facts.items()
        }
        settle()

    def eval(
        self, key: Any, value: Any, topic: str, partition: int, offset: int, appended_ms: int
    ) -> tuple[Any, ...]:
        key = None if key is None else bytes(key)
        value = None if value is None else bytes(value)
        try:
            fact = self._read(key, value, appended_ms, topic)
        except Exception as error:
            refused = error if isinstance(error, BadInput) else internal(error)
            place, letter = dead_letter(
                domain=self._domain, stage="context", cause=refused.code, message=str(refused),
                topic=topic, partition=partition, offset=offset, key=key, value=value,
                now_ms=appended_ms,
            )  # fmt: skip
            return (place, letter.decode(), *self._empty)
        data = fact.data.__dict__
        return (
            None, None, fact.fact_id, hash64(fact.fact_id), fact.type, fact.subject, fact.event_ms, fact.correlation_id,
            fact.hops, fact.traceparent,
            *[None if name is None else data[name] for name in self._fields[fact.type]],
        )  # fmt: skip


def scalar_functions() -> dict[str, Any]:
    """Name -> function from columns to a text, for the SQL of any domain; what they promise is where they are."""
    found = (
        samples.symptom_in, samples.nodes_in, samples.suspects_in, samples.evidence_in, samples.signs_in, samples.worst_of,
        samples.last_deploy,
    )  # fmt: skip
    return {function.__name__: udf(function, result_type=DataTypes.STRING()) for function in found}


def flink_row_type(columns: dict[str, str]) -> list[DataType]:
    return [_FLINK_TYPES[kind]() for kind in columns.values()]
