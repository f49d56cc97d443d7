-- An application was handed in and its amount is known: it can be analysed.
-- Grain: one row a case, at the fact that completed it. Lane: log order (amount_deviation: see case_assessed).
-- Event time: event_ms. Consumer: `propose`, analyst-rule.
CREATE VIEW application_received AS
SELECT
    subject,
    cause_id,
    event_ms,
    correlation_id,
    traceparent,
    hops,
    amount,
    rating,
    first_handled_by,
    handled_by,
    handled_by_all,
    touches,
    hand_overs,
    hours_so_far,
    submissions,
    amount_changes,
    amount_deviation,
    is_suspicious,
    is_cancelled
FROM case_assessed
WHERE is_now_received;
