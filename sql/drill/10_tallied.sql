-- An amount with the count and the sum of its subject's amounts so far.
-- Grain: one row a deduplicated `drill.counted`, in the order of arrival within its subject.
-- Lane: log order (PARTITION BY subject ORDER BY arrival: emits at once, the same again on replay).
-- Event time: event_ms, carried and not ordered by. State: a count and a sum a subject, for ever.
-- Consumer: `propose`, tally-rule.
CREATE VIEW tallied AS
SELECT
    subject,
    fact_id AS cause_id,
    event_ms,
    correlation_id,
    traceparent,
    hops,
    `number`,
    amount,
    COUNT(*) OVER log_order AS seen,
    SUM(amount) OVER log_order AS total
FROM drill_counted
WINDOW log_order AS (PARTITION BY subject ORDER BY arrival);
