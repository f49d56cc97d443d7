-- A node that told at least 20 measurements told none for fifteen minutes of event time.
-- Grain: one row a node and silence. Lane: event time (session window of all measurements of the node).
-- Event time: event_ms is the end of the fifteen minutes, cause_id its last measurement. A row waits until the
-- watermark, which lags by the domain's watermark_delay_s, has passed it. By node, not by series: what is seldom
-- called tells its latency seldom. State: a count and a text a node. Consumer: `propose`.
CREATE VIEW silences AS
SELECT
    subject,
    node,
    UNIX_TIMESTAMP(CAST(window_end AS STRING)) * 1000 AS event_ms,
    MAX(
        CONCAT_WS(
            CHR(9), LPAD(CAST(event_ms AS STRING), 14, '0'), fact_id, metric, statistic, correlation_id,
            COALESCE(traceparent, '')
        )
    ) AS last_row,
    MAX(hops) AS hops,
    COUNT(*) AS measurements
FROM SESSION(
    TABLE incident_metric_measured PARTITION BY (subject, node), DESCRIPTOR(row_time), INTERVAL '15' MINUTE
)
GROUP BY subject, node, window_start, window_end;

CREATE VIEW metric_absent AS
SELECT
    subject,
    SPLIT_INDEX(last_row, CHR(9), 1) AS cause_id,
    event_ms,
    SPLIT_INDEX(last_row, CHR(9), 4) AS correlation_id,
    NULLIF(SPLIT_INDEX(last_row, CHR(9), 5), '') AS traceparent,
    hops,
    SPLIT_INDEX(last_row, CHR(9), 1) AS incident_id,
    node,
    SPLIT_INDEX(last_row, CHR(9), 2) AS metric,
    SPLIT_INDEX(last_row, CHR(9), 3) AS statistic,
    CAST(NULL AS DOUBLE) AS `value`,
    CAST(NULL AS DOUBLE) AS usual,
    CAST(NULL AS DOUBLE) AS deviation,
    node AS suspect,
    '' AS suspect_signs,
    '' AS deploy_id,
    CAST(NULL AS STRING) AS deployed_by,
    CAST(NULL AS DOUBLE) AS minutes_since_deploy,
    FALSE AS is_frozen,
    CAST(0 AS BIGINT) AS remedies_tried,
    '' AS last_remedy,
    '' AS alert_text,
    ARRAY[node] AS suspects,
    ARRAY[SPLIT_INDEX(last_row, CHR(9), 1)] AS evidence
FROM silences
WHERE measurements >= 20;
