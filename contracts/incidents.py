"""Domain `incidents`: metrics of services that call each other, what went wrong, and remedies.

The subject is the system: one set of services with its call graph. All its facts share one partition, so
that what is said about one service beside another rests on one order. Nodes are named as the source does.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from contracts.data import PERSONAL, ActionParameters, FactData, Identifier, SituationData, of_situation

Node = Annotated[Identifier, Field(description="a service, or what it calls, as the source names it")]
# A metric is a name of its own and a statistic of it: latency Average, requests Sum, availability Average.
Metric = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]+$")]


class MetricMeasured(FactData):
    """One series in one sample. The event's time is when the sample's period began: the same for all its series."""

    event_type: ClassVar[str] = "incident.metric_measured"

    node: Node
    metric: Metric
    statistic: Metric
    value: float


class SampleClosed(FactData):
    """Every series of the sample that came last has come: judge it now.

    Without it a sample is judged when the first fact of the next one comes.
    """

    event_type: ClassVar[str] = "incident.sample_closed"


class CallObserved(FactData):
    """Reference: one node calls the other. Holds from its place in the log on."""

    event_type: ClassVar[str] = "incident.call_observed"

    from_node: Node
    to_node: Node


class Deployed(FactData):
    """A node runs another version from now on."""

    event_type: ClassVar[str] = "incident.deployed"

    node: Node
    deploy_id: Identifier
    version: Identifier
    previous_version: Identifier | None = None
    deployed_by: Identifier | None = None


class AlertRaised(FactData):
    """Somebody else's monitoring says that something is wrong. Its text is data, whatever it says."""

    event_type: ClassVar[str] = "incident.alert_raised"

    node: Node
    metric: Metric | None = None
    text: str = Field(default="", max_length=4000)


class FreezeDeclared(FactData):
    """Reference: from now until then (event time, ms since 1970) nothing changes without approval; 0 ends it."""

    event_type: ClassVar[str] = "incident.freeze_declared"

    freeze_until_ms: int = Field(ge=0, le=4_102_444_800_000)


FACTS = (MetricMeasured, SampleClosed, CallObserved, Deployed, AlertRaised, FreezeDeclared)


class IncidentSituation(SituationData):
    """What every situation about an incident tells.

    An incident begins with the first symptom of a system that has none and ends when all symptoms are gone.
    `suspects` are nodes, the likeliest cause first (docs/decisions/ has the algorithm).
    """

    incident_id: str = Field(description="derived from the fact that began it")
    node: Node = Field(description="where the symptom shows")
    metric: str
    statistic: str
    value: float | None = Field(description="what was measured; null: nothing came")
    usual: float | None = Field(description="the series' own recent past")
    deviation: float | None = Field(description="how far off, in robust deviations of its past")
    suspect: str = Field(description="the likeliest cause; empty: nobody stands out")
    suspect_signs: str = Field(description="its metrics that are far off, the farthest first, by space; empty: none")
    deploy_id: str | None = Field(description="the suspect's last deploy before the symptom; empty: none is known (null: an older event)")
    deployed_by: str | None = Field(json_schema_extra=PERSONAL)
    minutes_since_deploy: float | None
    is_frozen: bool
    remedies_tried: int = Field(ge=0, description="commands about this incident that came back")
    last_remedy: str = Field(description="the last of them; empty: none yet")
    alert_text: str = Field(description="what monitoring said, as it said it; empty: nothing")
    suspects: tuple[str, ...]
    evidence: tuple[str, ...] = Field(description="ids of the facts it rests on")


class SymptomFound(IncidentSituation):
    """A series left its own past, far and long enough, or an alert was raised: an incident is open. Lane: log order."""

    event_type: ClassVar[str] = "incidents.symptom_found"


class MetricAbsent(IncidentSituation):
    """A node that used to tell its metrics told none for fifteen minutes. Lane: event time (absence)."""

    event_type: ClassVar[str] = "incidents.metric_absent"


class DeployDegraded(IncidentSituation):
    """The window after a deploy is worse than the one before. Lane: log order."""

    event_type: ClassVar[str] = "incidents.deploy_degraded"


class RemedyVerified(IncidentSituation):
    """After a remedy's outcome the symptom is gone: the incident can be closed. Lane: log order."""

    event_type: ClassVar[str] = "incidents.remedy_verified"


class RemedyFailed(IncidentSituation):
    """A remedy came back and the symptom is still there: the next one, or after two a person. Lane: log order."""

    event_type: ClassVar[str] = "incidents.remedy_failed"


SITUATIONS = (SymptomFound, MetricAbsent, DeployDegraded, RemedyVerified, RemedyFailed)


_NODES = ("node", "suspect", "suspects")
# What is acted on: where the symptom shows, or who may have caused it. No other node, whatever a text says.
OwnNode = Annotated[Node, Field(json_schema_extra=of_situation(*_NODES))]


class TriageIncident(ActionParameters):
    """Say how bad it is and what is suspected. Changes nothing."""

    action: ClassVar[str] = "triage_incident"

    severity: Literal["low", "medium", "high", "critical"]
    suspected_cause: str = Field(
        max_length=256, json_schema_extra=of_situation(*_NODES, may_be_empty=True),
        description="a node; empty where nobody is suspected",
    )  # fmt: skip


class RestartService(ActionParameters):
    """Restart so many instances of a node."""

    action: ClassVar[str] = "restart_service"
    resource: ClassVar[str | None] = "node"

    node: OwnNode
    instances: int = Field(ge=1, le=100)


class RollBack(ActionParameters):
    """Take a deploy back."""

    action: ClassVar[str] = "roll_back"
    resource: ClassVar[str | None] = "node"

    node: OwnNode
    deploy_id: Identifier = Field(json_schema_extra=of_situation("deploy_id"))


class ScaleOut(ActionParameters):
    """Add instances to a node."""

    action: ClassVar[str] = "scale_out"
    resource: ClassVar[str | None] = "node"

    node: OwnNode
    instances: int = Field(ge=1, le=100)


class ShiftTraffic(ActionParameters):
    """Send a node's traffic elsewhere."""

    action: ClassVar[str] = "shift_traffic"
    resource: ClassVar[str | None] = "node"

    node: OwnNode


class OpenCircuit(ActionParameters):
    """Let a node's callers do without it for a while."""

    action: ClassVar[str] = "open_circuit"
    resource: ClassVar[str | None] = "node"

    node: OwnNode


class PagePerson(ActionParameters):
    """Wake somebody: the loop found no remedy."""

    action: ClassVar[str] = "page_person"
    resource: ClassVar[str | None] = "node"

    node: OwnNode
    reason: str = Field(max_length=500)


class CloseIncident(ActionParameters):
    """The symptom went after a remedy."""

    action: ClassVar[str] = "close_incident"
    resource: ClassVar[str | None] = "incident_id"

    incident_id: str = Field(max_length=256, json_schema_extra=of_situation("incident_id"))


ACTIONS = (
    TriageIncident, RestartService, RollBack, ScaleOut, ShiftTraffic, OpenCircuit, PagePerson, CloseIncident,
)  # fmt: skip
