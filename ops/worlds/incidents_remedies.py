"""The simulated hands: they do what they are told, and do not know whether it helps.

Whether it did shows in the metrics that follow (incidents_simulator.py). Seeded: the same command fails
every time or never. Durations are event time.

| action | takes | fails | cost |
|---|---|---|---|
| `restart_service`, `roll_back` | 90 s | 4 % | |
| `shift_traffic`, `open_circuit` | 30 s | 4 % | |
| `scale_out` | 90 s | 4 % | 0.9 for an instance, nothing when it fails |
| `page_person` | 5 min, until somebody looks | never | |
| `triage_incident`, `close_incident` | 1 s | never | |
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from contracts.incidents import (
    CloseIncident,
    OpenCircuit,
    PagePerson,
    RestartService,
    RollBack,
    ScaleOut,
    ShiftTraffic,
    TriageIncident,
)
from ops.world import Done, Handler, Order

FAILS = 0.04
# In the unit of the budget (conf/incidents/policies/scale-out.yaml), where an instance reserves one.
COST_OF_INSTANCE = 0.9


def is_failing(seed: int, command_id: str) -> bool:
    """Whether this command is one of the share that fails."""
    digest = hashlib.sha256(f"{seed}|{command_id}".encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48 < FAILS


def handlers(seed: int) -> Mapping[str, Handler]:
    """One handler an action of the contract."""

    def remedy(done: str, failed: str, took_s: float = 90.0) -> Handler:
        def handle(order: Order) -> Done:
            if is_failing(seed, order.command_id):
                return Done("failed", failed.format(**order.parameters), took_s)
            return Done("succeeded", done.format(**order.parameters), took_s)

        return handle

    def note(detail: str, took_s: float = 1.0) -> Handler:
        return lambda order: Done("succeeded", detail.format(**order.parameters), took_s)

    def scale_out(order: Order) -> Done:
        is_failed = is_failing(seed, order.command_id)
        cost = 0.0 if is_failed else round(COST_OF_INSTANCE * order.parameters["instances"], 6)
        told = "no capacity left in the zone" if is_failed else "{instances} more of {node}".format(**order.parameters)
        return Done("failed" if is_failed else "succeeded", told, 90.0, cost)

    return {
        TriageIncident.action: note("noted as {severity}"),
        RestartService.action: remedy("{node}: {instances} restarted", "{node} did not come back in time; left as it was"),
        RollBack.action: remedy("{deploy_id} taken back", "the image before {deploy_id} is gone"),
        ScaleOut.action: scale_out,
        ShiftTraffic.action: remedy("traffic of {node} goes elsewhere", "the other region of {node} refused it", 30.0),
        OpenCircuit.action: remedy("callers do without {node}", "the callers of {node} did not take the switch", 30.0),
        PagePerson.action: note("somebody looks at {node}", 300.0),
        CloseIncident.action: note("closed"),
    }  # fmt: skip
