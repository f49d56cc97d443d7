"""The world of `machines`: sensor files in, a simulated plant that answers commands."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from contracts.errors import BadInput, SetupFailed
from jobs.settings import ROOT, load_settings
from ops.csv_time import parse_loose_time_ms
from ops.player import read_file
from ops.world import DecisionOf, Done, Handler, NewFact, Order

# Share of commands the simulated plant fails, by a hash of seed and command id.
COOLING_FAILS = 0.3
MAINTENANCE_FAILS = 0.05
# Nothing is fitted on more of a series than this.
CALIBRATION_SHARE = 0.15


class MachinesWorld:
    """One sensor a file: CSV `timestamp,value`, the file's name is the machine."""

    def row_to_fact(self, row: Mapping[str, str], subject: str | None) -> NewFact:
        missing = {"timestamp", "value"} - set(row)
        if missing:
            raise BadInput(
                "row_invalid",
                f"expected the columns timestamp and value, came {sorted(map(str, row))}",
            )
        machine = subject or "machine"
        try:
            temperature = float(row["value"])
        except (TypeError, ValueError):
            raise BadInput(
                "row_invalid", f"value: expected a number, came {str(row['value'])[:40]!r}"
            ) from None
        if not math.isfinite(temperature):
            raise BadInput("row_invalid", f"value: expected a finite number, came {row['value']!r}")
        event_ms = parse_loose_time_ms(row["timestamp"])
        return NewFact(
            "machine.temperature_measured",
            machine,
            event_ms,
            {"temperature": temperature},
            f"{machine}|{event_ms}|{temperature!r}",
        )

    def played(
        self, facts: Iterable[NewFact | None], decision_of: DecisionOf
    ) -> Iterator[NewFact | None]:
        return iter(facts)

    def generate(self, *, seed: int, count: int) -> Iterator[NewFact]:
        raise SetupFailed("machines plays recorded data: give --input FILE")

    def decision_key(self, decision: Mapping[str, Any]) -> str | None:
        return None

    def handlers(self, seed: int) -> Mapping[str, Handler]:
        def answer(order: Order, *, fails: float, took_s: float, failure: str) -> Done:
            digest = hashlib.sha256(f"{seed}|{order.command_id}".encode()).digest()
            if int.from_bytes(digest[:8]) / 2**64 < fails:
                return Done("failed", failure, took_s)
            return Done("succeeded", "", took_s)

        return {
            "activate_cooling": lambda order: answer(
                order, fails=COOLING_FAILS, took_s=60, failure="coolant valve did not open"
            ),
            "schedule_maintenance": lambda order: answer(
                order, fails=MAINTENANCE_FAILS, took_s=5, failure="no crew available"
            ),
        }

    def train(self, folder: Path) -> Mapping[str, Any]:
        """Calibrate machine-health on the first 15 % of the shipped series; writes .onnx and .json."""
        import hashlib
        import json

        import numpy as np

        from ops.training import situations_of
        from ops.worlds import machines_model

        settings = load_settings("machines")
        path = ROOT / "data" / settings.default_input
        rows = list(read_file(path, self, subject=None, max_ahead_ms=settings.max_ahead_s * 1000))
        facts = [row for row in rows if isinstance(row, NewFact)][: int(len(rows) * CALIBRATION_SHARE)]
        found = situations_of("machines", facts, "machines.reading_scored")
        matrix = np.array(
            [[row[name] for name in machines_model.FEATURES] for row in found], dtype=np.float32
        )
        calibration = machines_model.calibrate(matrix)
        content = machines_model.build(calibration)
        card = {
            "alias": "machine-health",
            "version": 1,
            "inputs": list(machines_model.FEATURES),
            "output": "confidence",
            "trained_on": f"calibration scores of the first {len(facts)} readings (15 %) of data/"
            + settings.default_input,
            "metrics": {"calibration_scores": len(calibration)},
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "machine-health.onnx").write_bytes(content)
        (folder / "machine-health.json").write_text(json.dumps(card, indent=2) + "\n")
        return {**card, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


WORLD = MachinesWorld()
