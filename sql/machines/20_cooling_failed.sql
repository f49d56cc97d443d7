-- A cooling command that came back as failed: the loop's own outcome, noticed like any fact.
-- Grain: one row a failed `activate_cooling` outcome. Lane: log order. Event time: event_ms.
-- Consumer: `propose`, escalation-rule.
CREATE VIEW cooling_failed AS
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
WHERE action = 'activate_cooling' AND status = 'failed';
