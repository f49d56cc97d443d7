-- The customer took an offer, ours or one the log's own people made.
-- Grain: one row a completed O_ACCEPTED. Lane: log order (amount_deviation: see case_assessed).
-- Event time: event_ms. Consumer: `propose`, acceptance-rule.
-- A case may get here before its analysis or fraud check is in, or past a decline: policies look at what it carries.
CREATE VIEW offer_accepted AS
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
    is_cancelled,
    COALESCE(offered_amount, amount) AS offered_amount,
    is_fraud_confirmed
FROM case_assessed
WHERE completed_activity = 'O_ACCEPTED';
