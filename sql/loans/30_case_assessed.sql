-- A case set against all cases received so far, and whether it looks odd.
-- Grain: one row a fact of the log or outcome of a case that was received. Event time: event_ms.
-- Lane: log order, over all cases in one. NOT the topic's key: how cases interleave is the run's own, so
-- amount_deviation computed again from the facts may differ within that interleaving; the situation records it.
-- State: a count and two sums. Consumer: the situations of files 40 and 50.
--
-- amount_deviation  ln of the amount, less the mean of those received so far (this one's first amount included),
--                   in their standard deviations and a tenth; null while fewer than 20 were received
-- is_suspicious     an amount 2.3 deviations over the usual, or three submissions, or two other amounts
-- is_fraud_confirmed  a check of this case said so, now or earlier
CREATE VIEW usual_amounts AS
WITH logs AS (
    SELECT
        *,
        LN(GREATEST(COALESCE(amount, 1E0), 1E0)) AS log_amount
    FROM case_standing
)

SELECT
    *,
    COUNT(CASE WHEN is_now_received THEN 1 END) OVER all_cases AS cases_seen,
    SUM(CASE WHEN is_now_received THEN log_amount ELSE 0E0 END) OVER all_cases AS total_logs,
    SUM(CASE WHEN is_now_received THEN log_amount * log_amount ELSE 0E0 END) OVER all_cases AS total_squared_logs
FROM logs
WINDOW all_cases AS (ORDER BY arrival);

CREATE VIEW case_deviations AS
WITH means AS (
    SELECT
        *,
        total_logs / CAST(GREATEST(cases_seen, 1) AS DOUBLE) AS mean_log,
        total_squared_logs / CAST(GREATEST(cases_seen, 1) AS DOUBLE) AS mean_squared_log
    FROM usual_amounts
    WHERE receipts > 0 AND amount IS NOT NULL
)

SELECT
    *,
    CASE
        WHEN cases_seen >= 20
        THEN (log_amount - mean_log) / (SQRT(GREATEST(0E0, mean_squared_log - mean_log * mean_log)) + 0.1E0)
    END AS amount_deviation
FROM means;

CREATE VIEW case_assessed AS
SELECT
    subject,
    fact_id AS cause_id,
    event_ms,
    correlation_id,
    traceparent,
    hops,
    completed_activity,
    done_action,
    is_now_received,
    amount,
    offered_amount,
    COALESCE(rating, '') AS rating,
    first_handled_by,
    handled_by,
    handled_by_all,
    touches,
    hand_overs,
    CAST(event_ms - first_ms AS DOUBLE) / 3.6E6 AS hours_so_far,
    submissions,
    amount_changes,
    amount_deviation,
    COALESCE(amount_deviation > 2.3E0, FALSE) OR submissions >= 3 OR amount_changes >= 2 AS is_suspicious,
    cancellations > 0 AS is_cancelled,
    frauds_told > 0 AS is_fraud_confirmed
FROM case_deviations;
