"""Samples of a system as SQL hands them over: texts in, texts out. Pure; the judging is in udfs/root_cause.py.

A row is one measurement: event_ms, node, metric, statistic, deviation, excess, `weak` or nothing, value,
usual, fact id, by tab (names have no control characters: contracts say so). Lists are texts by tab too: they
cross from SQL to Python and through its aggregates without trouble.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from udfs.root_cause import FAR, Deviation, find_symptom, rank_suspects

MOST_EVIDENCE = 12


@dataclass(frozen=True)
class _Row:
    event_ms: int
    deviation: Deviation
    text: str

    @property
    def series(self) -> tuple[str, str, str]:
        return self.deviation.node, self.deviation.metric, self.deviation.statistic


def symptom_in(rows: Sequence[str | None], calls: str | None, until_ms: int | None) -> str | None:
    """The row that is the symptom of the sample of `until_ms`; None: nothing is wrong that users feel."""
    found = _sample(rows, until_ms, times=1)
    symptom = find_symptom([row.deviation for row in found], _calls(calls))
    return next((row.text for row in found if row.deviation is symptom), None)


def nodes_in(rows: Sequence[str | None], until_ms: int | None) -> str:
    """Nodes that told something of themselves in the sample of `until_ms`. Traffic is not: that others call tells it."""
    return "\t".join(
        sorted({row.deviation.node for row in _read(rows) if row.event_ms == until_ms and not row.deviation.is_weak})
    )


def suspects_in(
    rows: Sequence[str | None], calls: str | None, until_ms: int | None, times: int, node: str | None
) -> str:
    """Nodes that may have caused what shows at `node`, the likeliest first; `node` alone when none stands out.

    `times`: of how many samples the latest row of each series counts; 2 where the newest is not complete.
    """
    if node is None:
        return ""
    found = rank_suspects([row.deviation for row in _sample(rows, until_ms, times)], _calls(calls), node)
    return "\t".join(found or (node,))


def evidence_in(rows: Sequence[str | None], until_ms: int | None, times: int, suspects: str | None) -> str:
    """Ids of the measurements that are FAR off at the first suspects, the likeliest and the farthest off first."""
    order = {node: place for place, node in enumerate((suspects or "").split("\t")[:5])}
    far = [
        row.deviation
        for row in _sample(rows, until_ms, times)
        if row.deviation.node in order and row.deviation.score >= FAR
    ]
    far.sort(key=lambda d: (order[d.node], -d.score, d.metric, d.statistic))
    return "\t".join(d.fact_id for d in far[:MOST_EVIDENCE])


def signs_in(rows: Sequence[str | None], until_ms: int | None, times: int, suspects: str | None) -> str:
    """Metrics of the first suspect that are FAR off, the farthest first, by space. Traffic says nothing of its node."""
    head = (suspects or "").split("\t")[0]
    far = [
        row.deviation
        for row in _sample(rows, until_ms, times)
        if row.deviation.node == head and row.deviation.score >= FAR and not row.deviation.is_weak
    ]
    far.sort(key=lambda d: (-d.score, d.metric, d.statistic))
    return " ".join(dict.fromkeys(d.metric for d in far))


def worst_of(rows: Sequence[str | None], node: str | None, until_ms: int | None, times: int) -> str | None:
    """The newest row of the node's series that is FAR off in most of the last `times` samples; None: there is none."""
    newest: dict[tuple[str, str, str], list[_Row]] = {}
    for row in _read(rows):
        if row.deviation.node == node and not row.deviation.is_weak and row.event_ms <= (until_ms or 0):
            newest.setdefault(row.series, []).append(row)
    worst = [
        found[-1]
        for found in newest.values()
        if 2 * sum(row.deviation.score >= FAR for row in found[-times:]) > times
    ]
    return max(worst, key=lambda row: row.deviation.score).text if worst else None


def last_deploy(deploys: Sequence[str | None], node: str | None, before_ms: int | None) -> str | None:
    """Of texts `event_ms node deploy_id fact_id deployed_by` the node's last before then; None: none is known."""
    found = [
        text
        for text in deploys
        if text is not None
        and text.split("\t", 2)[1] == node
        and (before_ms is None or int(text.split("\t", 1)[0]) <= before_ms)
    ]
    return found[-1] if found else None


def _read(rows: Sequence[str | None]) -> list[_Row]:
    found = []
    for text in rows:
        if text is None:
            continue
        event_ms, node, metric, statistic, score, excess, weak, _, _, fact_id = text.split("\t")
        deviation = Deviation(
            node, metric, statistic, float(score), float(excess), is_weak=weak == "weak", fact_id=fact_id
        )
        found.append(_Row(int(event_ms), deviation, text))
    return found


def _sample(rows: Sequence[str | None], until_ms: int | None, times: int) -> list[_Row]:
    """The newest row of each series in the last `times` samples up to `until_ms`, with its score before them."""
    read = [row for row in _read(rows) if until_ms is None or row.event_ms <= until_ms]
    counted = sorted({row.event_ms for row in read})[-times:]
    if not counted:
        return []
    before: dict[tuple[str, str, str], float] = {}
    newest: dict[tuple[str, str, str], _Row] = {}
    for row in read:
        if row.event_ms < counted[0]:
            before[row.series] = row.deviation.score
        else:
            newest[row.series] = row
    return [
        _Row(row.event_ms, _after(row.deviation, before.get(series, 0.0)), row.text) for series, row in newest.items()
    ]


def _after(d: Deviation, score_before: float) -> Deviation:
    return Deviation(
        d.node, d.metric, d.statistic, d.score, d.excess,
        score_before=score_before, is_weak=d.is_weak, fact_id=d.fact_id,
    )  # fmt: skip


def _calls(text: str | None) -> list[tuple[str, str]]:
    pairs = (line.split("\t") for line in (text or "").split("\n") if line)
    return [(pair[0], pair[1]) for pair in pairs if len(pair) == 2]
