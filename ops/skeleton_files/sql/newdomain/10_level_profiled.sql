-- One reading with its tank's recent past.
-- Grain: one row a deduplicated `newdomain.level_measured`, in the order of arrival within its tank.
-- Lane: log order (PARTITION BY subject ORDER BY arrival: emits at once, the same again on replay).
-- Event time: event_ms, carried and not ordered by; a late reading counts where it arrives.
-- State: one running count, one earlier reading and the last ten readings a tank, kept for ever.
-- Consumer: `propose`, low-level-rule.
CREATE VIEW level_profiled AS
WITH steps AS (
    SELECT
        subject,
        fact_id,
        event_ms,
        correlation_id,
        traceparent,
        hops,
        level_percent,
        level_percent
            - COALESCE(LAG(level_percent) OVER (PARTITION BY subject ORDER BY arrival), level_percent) AS change_percent,
        COUNT(*) OVER (PARTITION BY subject ORDER BY arrival) AS readings_seen,
        arrival
    FROM newdomain_level_measured
),

-- All OVER aggregates of one query share one window: a second window is a second step.
recent AS (
    SELECT
        *,
        AVG(level_percent) OVER (
            PARTITION BY subject ORDER BY arrival ROWS BETWEEN 9 PRECEDING AND CURRENT ROW
        ) AS recent_mean_percent
    FROM steps
)

SELECT
    subject,
    fact_id AS cause_id,
    event_ms,
    correlation_id,
    traceparent,
    hops,
    level_percent,
    change_percent,
    recent_mean_percent,
    100 - level_percent AS missing_percent,
    readings_seen
FROM recent;
