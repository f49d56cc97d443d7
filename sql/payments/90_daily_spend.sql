-- What an account asked to pay on one day (UTC).
-- Grain: one row an account and day that has payments. Lane: event time (tumbling window).
-- Event time: row_time; lateness: the domain's watermark_delay_s; later rows are kept in late-facts.
-- Consumer: analysis, SQL client; no agent proposes on it.
CREATE VIEW daily_spend AS
SELECT
    subject,
    LAST_VALUE(fact_id) AS cause_id,
    UNIX_TIMESTAMP(CAST(window_end AS STRING)) * 1000 AS event_ms,
    LAST_VALUE(correlation_id) AS correlation_id,
    NULLIF(LAST_VALUE(COALESCE(traceparent, '')), '') AS traceparent,
    MAX(hops) AS hops,
    COUNT(*) AS payments,
    SUM(amount_minor) AS spent_minor,
    MAX(amount_minor) AS highest_minor
FROM TUMBLE(TABLE payment_authorisation_requested, DESCRIPTOR(row_time), INTERVAL '1' DAY)
GROUP BY subject, window_start, window_end;
