-- How each measurement stands against the recent past of its own series.
-- Grain: one row a fact of the domain or outcome of a command; the measures are null unless it is a measurement.
-- Lane: log order, key: series (subject, node, metric, statistic), NOT the topic's key: with more than one subtask the
-- rows of one system may come out of here interleaved otherwise than they lie in the log, and a sample be judged
-- without its last rows. The domain runs with one (conf/incidents/domain.yaml; docs/decisions/0019).
-- All facts take this way, so that with one subtask a system's measurements, deploys and outcomes keep their order.
-- State: the last 289 rows and 20 pasts a series. Consumer: sample_clock.
--
-- The past is 289 samples that ended 20 samples ago: counted in samples, so any interval will do. What goes on for fewer
-- than 20 is not yet its own past, and one sample in 20 of the past may be odd before the spread grows by it.
-- usual      their median
-- spread     their robust standard deviation: the larger of what the middle half and the middle nine tenths say of a
--            normal distribution, and a 400th of the median (a series that never moved has an accuracy too)
-- is_weak    it counts traffic, which others cause; more and less are deviations alike
-- deviation  how far off, in spreads, positive: worse. 8 where a series moves that stood still at 0; at most 1000; 0
--            for the first 40 samples
-- excess     the same in the series' own unit
CREATE VIEW series_past AS
WITH incident_facts AS (
    SELECT
        subject,
        fact_id,
        correlation_id,
        traceparent,
        hops,
        arrival,
        event_ms,
        fact_type,
        node,
        metric,
        statistic,
        `value`,
        CONCAT_WS(CHR(9), from_node, to_node) AS observed_call,
        deploy_id,
        deployed_by,
        text,
        freeze_until_ms,
        `action`,
        status
    FROM facts
    WHERE fact_type LIKE 'incident.%' OR fact_type = 'flyball.outcome'
)

SELECT
    *,
    COUNT(`value`) OVER own_past AS samples_seen,
    PERCENTILE(`value`, ARRAY[0.05, 0.25, 0.5, 0.75, 0.95]) OVER own_past AS past
FROM incident_facts
WINDOW own_past AS (
    PARTITION BY subject, node, metric, statistic
    ORDER BY arrival
    ROWS BETWEEN 288 PRECEDING AND CURRENT ROW
);

CREATE VIEW series_past_before AS
SELECT
    *,
    LAG(samples_seen, 20) OVER log_order AS samples_before,
    LAG(past, 20) OVER log_order AS past_before
FROM series_past
WINDOW log_order AS (PARTITION BY subject, node, metric, statistic ORDER BY arrival);

CREATE VIEW series_spreads AS
SELECT
    subject,
    fact_id,
    correlation_id,
    traceparent,
    hops,
    arrival,
    event_ms,
    fact_type,
    node,
    metric,
    statistic,
    `value`,
    observed_call,
    deploy_id,
    deployed_by,
    text,
    freeze_until_ms,
    `action`,
    status,
    fact_type = 'incident.metric_measured' AS is_measured,
    COALESCE(samples_before, CAST(0 AS BIGINT)) AS samples_before,
    past_before[3] AS usual,
    GREATEST(
        (past_before[4] - past_before[2]) / 1.349E0,
        (past_before[5] - past_before[1]) / 3.29E0,
        ABS(past_before[3]) / 4E2
    ) AS spread,
    COALESCE(LOWER(metric) IN ('requests', 'traffic', 'calls', 'throughput'), FALSE) AS is_weak,
    COALESCE(LOWER(metric) IN ('availability', 'success', 'success_rate', 'healthy', 'instances'), FALSE)
        AS is_worse_below
FROM series_past_before;

CREATE VIEW series_deviations AS
WITH excesses AS (
    SELECT
        *,
        CASE
            WHEN is_weak THEN ABS(`value` - usual)
            WHEN is_worse_below THEN usual - `value`
            ELSE `value` - usual
        END AS excess
    FROM series_spreads
)

SELECT
    *,
    CASE
        WHEN NOT is_measured OR samples_before < 20 THEN 0E0
        WHEN spread > 0E0 THEN GREATEST(LEAST(excess / spread, 1E3), -1E3)
        WHEN excess > 0E0 THEN 8E0
        ELSE 0E0
    END AS deviation
FROM excesses;
