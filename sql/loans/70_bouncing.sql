-- A case that goes to and fro: somebody works on it, then another, then the first again, then the other again.
-- Grain: one row a match; matches do not overlap (AFTER MATCH SKIP PAST LAST ROW).
-- Lane: log order (MATCH_RECOGNIZE over PROCTIME). Only rows at which the person changes reach the pattern, so each
-- one's work in a row is one turn however many rows it has. The bound in time stands in DEFINE on event times: all
-- four turns within 14 days; WITHIN, which counts by the clock, clears state of cases that are over.
-- Consumer: `propose`, bouncing-rule.
CREATE VIEW case_turns AS
SELECT
    subject,
    fact_id AS cause_id,
    event_ms,
    correlation_id,
    traceparent,
    hops,
    worked_by,
    arrival
FROM case_changes
WHERE is_turn;

CREATE VIEW bouncing AS
SELECT
    subject,
    cause_id,
    event_ms,
    correlation_id,
    traceparent,
    hops,
    one_resource,
    other_resource,
    CAST(event_ms - first_event_ms AS DOUBLE) / 3.6E6 AS bouncing_hours
FROM case_turns
MATCH_RECOGNIZE (
    PARTITION BY subject
    ORDER BY arrival
    MEASURES
        back_again.cause_id AS cause_id,
        back_again.event_ms AS event_ms,
        back_again.correlation_id AS correlation_id,
        back_again.traceparent AS traceparent,
        back_again.hops AS hops,
        there.worked_by AS one_resource,
        back.worked_by AS other_resource,
        there.event_ms AS first_event_ms
    ONE ROW PER MATCH
    AFTER MATCH SKIP PAST LAST ROW
    PATTERN (there back there_again back_again) WITHIN INTERVAL '15' DAY
    DEFINE
        there_again AS there_again.worked_by = there.worked_by,
        back_again AS back_again.worked_by = back.worked_by
            AND back_again.event_ms - there.event_ms BETWEEN 0 AND 1209600000
);
