"""Names and meanings of a job's operators: by what a job finds its state again, and when it must not.

A savepoint holds state by operator uid. Operators of SQL get theirs from the step (view) they belong to, so
that another step may come or go. Flink checks the types of a state, not what it counts: where a query's own
text, or any step that feeds it, has changed, its state would be misread in silence. So each stateful query
has a meaning, the digest of both, and a job does not start from state of another meaning.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import orjson

from contracts.errors import StateRefused

# Operators of SQL that keep nothing; one that is not known is taken as one that does.
_KEEPS_NOTHING = ("Calc", "PythonCalc", "Correlate", "PythonCorrelate", "ConstraintEnforcer", "TableToDataStream", "Union")
_NUMBER = re.compile(r"\[\d+\]")
_STREAM = re.compile(r"\*anonymous_datastream_source\$\d+\*")
# "[7]:Calc(...)"; but not "decisions_sink[20]: Writer".
_KIND = re.compile(r"(?:\[\d+\]:)?(\w+)(?:\(|\[\D)")


@dataclass(frozen=True)
class Operator:
    """`meaning` is what Flink does not check: "" where the state says itself what it is (udfs/state.py)."""

    uid: str
    meaning: str = ""


def name_step(stream: Any, step: str) -> None:
    """Uids for the operators (Java transformations) of a step that have none yet: its name, their kind, which of them."""
    known: dict[str, int] = {}
    for one in reversed(list(stream.getTransformation().getTransitivePredecessors())):
        if one.getUid() is None:
            one.setUid(_nth(known, f"{step}: {_plain(one.getName())}"))


def name_operators(graph: Any) -> dict[str, Operator]:
    """Give every operator of a StreamGraph a uid; those that keep state, in the order of their uids.

    Raises StateRefused when two bear one name.
    """
    known: dict[str, int] = {}
    nodes = {node.getId(): node for node in graph.getStreamNodes().toArray()}
    found: dict[str, Operator] = {}
    for number in sorted(nodes):
        node = nodes[number]
        if node.getTransformationUID() is None:
            graph.setTransformationUID(number, _nth(known, _plain(node.getOperatorName())))
        if (kind := _kind(node)) in _KEEPS_NOTHING or _STREAM.match(node.getOperatorName()):
            continue
        is_query = kind is not None and kind != "TableSourceScan"
        meaning = _meaning(nodes, node, {}) if is_query else ""
        operator = Operator(str(node.getTransformationUID()), meaning)
        if operator.uid in found:
            raise StateRefused(f"two operators of the job are named {operator.uid!r}; state needs a name each")
        found[operator.uid] = operator
    return dict(sorted(found.items()))


def _plain(name: str) -> str:
    return _STREAM.sub("stream", _NUMBER.sub("", name))


def _nth(known: dict[str, int], name: str) -> str:
    known[name] = known.get(name, 0) + 1
    return name if known[name] == 1 else f"{name} {known[name]}"


def _kind(node: Any) -> str | None:
    """Kind of an operator of SQL; None for others."""
    found = _KIND.match(node.getOperatorDescription() or "")
    return found[1] if found else None


def _meaning(nodes: Mapping[int, Any], node: Any, known: dict[int, str]) -> str:
    """Digest of the operator's text and of all before it, as far as the sources."""
    number = int(node.getId())
    if number not in known:
        if _kind(node) == "TableSourceScan" and not node.getInEdges().size():
            told = str(node.getTransformationUID())
        else:
            told = _plain(node.getOperatorDescription() or "")
        before = [_meaning(nodes, nodes[edge.getSourceId()], known) for edge in node.getInEdges().toArray()]
        known[number] = hashlib.sha256("\n".join([told, *before]).encode()).hexdigest()[:16]
    return known[number]


# ------------------------------------------------------------------------------ kept beside checkpoints


def _folder(checkpoints: str) -> Path | None:
    """Where a job's operators are written down: beside its checkpoints, when those are files."""
    parts = urlsplit(checkpoints)
    return Path(url2pathname(parts.path)) / "operators" if parts.scheme == "file" else None


def write_down(checkpoints: str, job_id: str, operators: Mapping[str, Operator]) -> None:
    """Note what a submitted job's state will mean. `checkpoints`: the URI of its own folder of checkpoints."""
    if (folder := _folder(checkpoints)) is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{job_id}.json").write_bytes(orjson.dumps([asdict(each) for each in operators.values()]))


def check_state(checkpoints: str, state: str, operators: Mapping[str, Operator]) -> list[str]:
    """What begins without state, when the job starts from `state` (path of a checkpoint or savepoint, or a job id).

    Raises StateRefused, naming every operator whose state would be lost or misread. A state of which
    nothing is written down (submitted elsewhere) is left to Flink's own check.
    """
    folder = _folder(checkpoints)
    ids = [] if folder is None else [folder / f"{part}.json" for part in state.rstrip("/").split("/")]
    noted = next((path for path in ids if path.exists()), None)
    if noted is None:
        return []
    before = {raw["uid"]: Operator(**raw) for raw in orjson.loads(noted.read_bytes())}
    wrong = [f"{uid!r} is there no more" for uid in before if uid not in operators]
    wrong += [
        f"{uid!r}, or what feeds it, is another query now"
        for uid, was in before.items()
        if uid in operators and operators[uid].meaning != was.meaning
    ]
    if wrong:
        raise StateRefused("state would be lost or misread: " + "; ".join(wrong))
    return [uid for uid in operators if uid not in before]
