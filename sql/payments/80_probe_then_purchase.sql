-- A small payment to see whether the card works, then at once one at least twenty times as large.
-- Grain: one row a match; matches do not overlap (AFTER MATCH SKIP PAST LAST ROW).
-- Lane: log order (MATCH_RECOGNIZE over PROCTIME). The bound in time stands in DEFINE on event times: both within an
-- hour, with up to three other payments between them. No WITHIN: Flink keeps a timer for each row that may begin a match,
-- here for every payment, until that time of the clock is over; without it an account that fell silent keeps four rows.
-- Consumer: analysis and policies over patterns; no agent proposes on it by itself.
CREATE VIEW probe_then_purchase AS
SELECT
    subject,
    cause_id,
    event_ms,
    correlation_id,
    traceparent,
    hops,
    probe_transaction_id,
    transaction_id,
    probe_amount_minor,
    amount_minor,
    (event_ms - probe_ms) / 1000 AS apart_s
FROM payment_authorisation_requested
MATCH_RECOGNIZE (
    PARTITION BY subject
    ORDER BY arrival
    MEASURES
        purchase.fact_id AS cause_id,
        purchase.event_ms AS event_ms,
        purchase.correlation_id AS correlation_id,
        purchase.traceparent AS traceparent,
        purchase.hops AS hops,
        probe.transaction_id AS probe_transaction_id,
        purchase.transaction_id AS transaction_id,
        probe.amount_minor AS probe_amount_minor,
        purchase.amount_minor AS amount_minor,
        probe.event_ms AS probe_ms
    ONE ROW PER MATCH
    AFTER MATCH SKIP PAST LAST ROW
    PATTERN (probe other{0,3}? purchase)
    DEFINE
        other AS other.event_ms - probe.event_ms BETWEEN 0 AND 3600000,
        purchase AS purchase.amount_minor >= 20 * GREATEST(probe.amount_minor, 1)
            AND purchase.event_ms - probe.event_ms BETWEEN 0 AND 3600000
);
