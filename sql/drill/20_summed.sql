-- A subject's amounts of ten minutes, as a subject of its own: what is decided about it moves no clock of the amounts.
-- Grain: one row a subject and ten minutes that have amounts. Lane: event time (tumbling window).
-- Event time: row_time; lateness: the domain's watermark_delay_s; later rows are kept in late-facts.
-- Consumer: `propose`, sum-rule.
CREATE VIEW summed AS
SELECT
    CONCAT(subject, '-sums') AS subject,
    LAST_VALUE(fact_id) AS cause_id,
    UNIX_TIMESTAMP(CAST(window_end AS STRING)) * 1000 AS event_ms,
    LAST_VALUE(correlation_id) AS correlation_id,
    NULLIF(LAST_VALUE(COALESCE(traceparent, '')), '') AS traceparent,
    MAX(hops) AS hops,
    COUNT(*) AS facts,
    SUM(amount) AS amounts
FROM TUMBLE(TABLE drill_counted, DESCRIPTOR(row_time), INTERVAL '10' MINUTE)
GROUP BY subject, window_start, window_end;
