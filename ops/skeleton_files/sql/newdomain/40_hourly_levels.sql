-- A tank's levels over one hour of event time.
-- Grain: one row a tank and hour that has readings. Lane: event time (tumbling window): a row waits
-- for the watermark, so nothing that must answer now goes here.
-- Event time: row_time; lateness: the domain's watermark_delay_s; later rows are kept in late-facts.
-- Consumer: analysis, SQL client; no agent proposes on it.
CREATE VIEW hourly_levels AS
SELECT
    subject,
    LAST_VALUE(fact_id) AS cause_id,
    UNIX_TIMESTAMP(CAST(window_end AS STRING)) * 1000 AS event_ms,
    LAST_VALUE(correlation_id) AS correlation_id,
    NULLIF(LAST_VALUE(COALESCE(traceparent, '')), '') AS traceparent,
    MAX(hops) AS hops,
    COUNT(*) AS readings,
    AVG(level_percent) AS mean_percent,
    MIN(level_percent) AS min_percent
FROM TUMBLE(TABLE newdomain_level_measured, DESCRIPTOR(row_time), INTERVAL '1' HOUR)
GROUP BY subject, window_start, window_end;
