-- Temperature of a machine over one hour of event time.
-- Grain: one row a machine and hour that has readings. Lane: event time (tumbling window).
-- Event time: row_time; lateness: the domain's watermark_delay_s; later rows are kept in late-facts.
-- Consumer: analysis, SQL client; no agent proposes on it.
CREATE VIEW hourly_profile AS
SELECT
    subject,
    LAST_VALUE(fact_id) AS cause_id,
    UNIX_TIMESTAMP(CAST(window_end AS STRING)) * 1000 AS event_ms,
    LAST_VALUE(correlation_id) AS correlation_id,
    NULLIF(LAST_VALUE(COALESCE(traceparent, '')), '') AS traceparent,
    MAX(hops) AS hops,
    COUNT(*) AS readings,
    AVG(temperature) AS mean_temperature,
    MIN(temperature) AS min_temperature,
    MAX(temperature) AS max_temperature
FROM TUMBLE(TABLE machine_temperature_measured, DESCRIPTOR(row_time), INTERVAL '1' HOUR)
GROUP BY subject, window_start, window_end;
