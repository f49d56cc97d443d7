-- The facts at which something is to be judged, with the measurements that lie before them.
-- Grain: one row a sample that is complete, and one a deploy, alert, freeze or outcome.
-- Lane: log order, key: system. Event time: event_ms, carried; it tells which measurements are one sample.
-- State: running maxima, the calls, the last 1,024 rows a system. Consumer: judged_facts.
--
-- sample_ms    time of the newest sample so far; until_ms: of the one this row judges
-- is_sample    a sample is complete: it was closed, or the next one has begun. Each is judged once.
-- calls        every call observed so far, once each, caller and callee by tab, one a line
-- latest_rows  measurements, newest last, one text each (udfs/samples.py reads them); null: another kind of fact.
--              A system of more than 500 series is judged by its last ones.
CREATE VIEW sample_clock AS
SELECT
    *,
    MAX(CASE WHEN is_measured THEN event_ms END) OVER log_order AS sample_ms,
    LISTAGG(DISTINCT CASE WHEN fact_type = 'incident.call_observed' THEN observed_call END, U&'\000A') OVER log_order AS calls
FROM series_deviations
WINDOW log_order AS (PARTITION BY subject ORDER BY arrival);

CREATE VIEW sample_ends AS
WITH closed AS (
    SELECT
        *,
        LAG(sample_ms, 1) OVER log_order AS previous_sample_ms,
        MAX(CASE WHEN fact_type = 'incident.sample_closed' THEN sample_ms END) OVER log_order AS closed_ms
    FROM sample_clock
    WINDOW log_order AS (PARTITION BY subject ORDER BY arrival)
)

SELECT
    *,
    LAG(closed_ms, 1) OVER log_order AS previous_closed_ms
FROM closed
WINDOW log_order AS (PARTITION BY subject ORDER BY arrival);

CREATE VIEW samples AS
WITH judged AS (
    SELECT
        *,
        is_measured
        AND event_ms > previous_sample_ms
        AND previous_sample_ms > COALESCE(previous_closed_ms, CAST(0 AS BIGINT)) AS is_begun,
        fact_type = 'incident.sample_closed'
        AND sample_ms > COALESCE(previous_closed_ms, CAST(0 AS BIGINT)) AS is_closed
    FROM sample_ends
),

gathered AS (
    SELECT
        *,
        ARRAY_AGG(
            CASE
                WHEN is_measured
                THEN CONCAT_WS(
                    CHR(9), CAST(event_ms AS STRING), node, metric, statistic, CAST(deviation AS STRING),
                    COALESCE(CAST(excess AS STRING), '0'), CASE WHEN is_weak THEN 'weak' ELSE '' END,
                    CAST(`value` AS STRING), COALESCE(CAST(usual AS STRING), ''), fact_id
                )
            END
        ) OVER (PARTITION BY subject ORDER BY arrival ROWS BETWEEN 1023 PRECEDING AND CURRENT ROW) AS latest_rows
    FROM judged
)

SELECT
    subject,
    fact_id,
    correlation_id,
    traceparent,
    hops,
    arrival,
    event_ms,
    fact_type,
    CASE WHEN NOT is_measured THEN node END AS node,
    deploy_id,
    deployed_by,
    text,
    freeze_until_ms,
    `action`,
    status,
    COALESCE(is_begun, FALSE) OR COALESCE(is_closed, FALSE) AS is_sample,
    CASE WHEN COALESCE(is_begun, FALSE) THEN previous_sample_ms ELSE sample_ms END AS until_ms,
    calls,
    latest_rows
FROM gathered
WHERE
    COALESCE(is_begun, FALSE)
    OR COALESCE(is_closed, FALSE)
    OR fact_type IN ('incident.deployed', 'incident.alert_raised', 'incident.freeze_declared', 'flyball.outcome');
