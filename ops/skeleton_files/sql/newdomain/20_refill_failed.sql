-- A refill that came back as failed: the loop's own outcome, read like any fact.
-- Grain: one row a failed `refill` outcome. Lane: log order. Event time: event_ms.
-- Consumer: `propose`, failed-refill-rule.
CREATE VIEW refill_failed AS
SELECT
    subject,
    fact_id AS cause_id,
    event_ms,
    correlation_id,
    traceparent,
    hops,
    command_id,
    detail
FROM flyball_outcome
WHERE action = 'refill' AND status = 'failed';
