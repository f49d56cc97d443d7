-- What is known of a case after each of its facts: last amount, last person, rating, how often received.
-- Grain: one row a fact of the log or outcome of our own commands, in the order of arrival within its case.
-- Lane: log order, key: case. Event time: event_ms, carried and not ordered by; a late fact counts where it arrives.
-- Both kinds come from the one view `facts`, so that a case's log and our outcomes keep their order.
-- State: running counts, last values and the names of who worked on it a case, for ever; no row store.
-- Consumer: case_standing.
--
-- Read as the log means it: activity and lifecycle in upper case, no lifecycle is COMPLETE. Somebody worked on a
-- case where a resource stands on anything but a SCHEDULE. The amount of an O_ row is the offer's, of any other
-- the request's; what a row leaves out stays as it was. handled_by_all: each who worked on it once, one a line, since
-- no name holds a line break (contracts/data.py, Identifier); all of them, however many: who is left out may approve.
-- A rating is told in the analysis's detail ("rating B: ...").
CREATE VIEW case_history AS
WITH case_facts AS (
    SELECT
        subject,
        fact_id,
        correlation_id,
        traceparent,
        hops,
        arrival,
        event_ms,
        UPPER(activity) AS activity,
        UPPER(COALESCE(lifecycle, 'COMPLETE')) AS lifecycle,
        resource,
        amount,
        CASE WHEN status = 'succeeded' THEN `action` END AS done_action,
        detail,
        cost
    FROM facts
    WHERE fact_type IN ('loan.activity_recorded', 'flyball.outcome')
),

read_facts AS (
    SELECT
        subject,
        fact_id,
        correlation_id,
        traceparent,
        hops,
        arrival,
        event_ms,
        CASE WHEN lifecycle = 'COMPLETE' THEN activity END AS completed_activity,
        CASE WHEN lifecycle <> 'SCHEDULE' THEN resource END AS worked_by,
        CASE WHEN SUBSTRING(activity, 1, 2) <> 'O_' THEN amount END AS requested,
        CASE
            WHEN activity IN ('O_CREATED', 'O_SENT') THEN amount
            WHEN done_action = 'make_offer' THEN cost
        END AS offered,
        done_action,
        CASE
            WHEN done_action = 'analyse_application' AND detail LIKE 'rating _:%' THEN SUBSTRING(detail, 8, 1)
        END AS told_rating,
        COALESCE(done_action = 'check_fraud' AND detail LIKE 'fraud confirmed%', FALSE) AS is_fraud_told
    FROM case_facts
)

SELECT
    subject,
    fact_id,
    correlation_id,
    traceparent,
    hops,
    arrival,
    event_ms,
    completed_activity,
    worked_by,
    done_action,
    MIN(event_ms) OVER log_order AS first_ms,
    COUNT(CASE WHEN completed_activity IN ('A_SUBMITTED', 'A_PARTLYSUBMITTED') THEN 1 END) OVER log_order AS receipts,
    COUNT(CASE WHEN completed_activity = 'A_SUBMITTED' THEN 1 END) OVER log_order AS submissions,
    COUNT(CASE WHEN completed_activity = 'A_CANCELLED' THEN 1 END) OVER log_order AS cancellations,
    COUNT(CASE WHEN is_fraud_told THEN 1 END) OVER log_order AS frauds_told,
    COUNT(worked_by) OVER log_order AS touches,
    FIRST_VALUE(worked_by) OVER log_order AS first_handled_by,
    LAST_VALUE(worked_by) OVER log_order AS handled_by,
    LISTAGG(DISTINCT worked_by, U&'\000A') OVER log_order AS handled_by_all,
    LAST_VALUE(requested) OVER log_order AS amount,
    LAST_VALUE(offered) OVER log_order AS offered_amount,
    LAST_VALUE(told_rating) OVER log_order AS rating
FROM read_facts
WINDOW log_order AS (PARTITION BY subject ORDER BY arrival);
