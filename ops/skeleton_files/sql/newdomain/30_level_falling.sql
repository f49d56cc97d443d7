-- Three readings of a tank in a row, each more than 3 points below the one before, within half an hour.
-- Grain: one row a match; matches do not overlap.
-- Lane: log order (pattern). The bound in time stands in DEFINE on event times. No WITHIN: Flink keeps a timer for each
-- row that may begin a match until that time of the clock is over.
-- Consumer: none yet; kept in the topic for analysis. An agent of conf/newdomain/agents.yaml may take it up.
CREATE VIEW level_falling AS
SELECT
    subject,
    cause_id,
    event_ms,
    correlation_id,
    traceparent,
    hops,
    first_percent,
    last_percent
FROM newdomain_level_measured
MATCH_RECOGNIZE (
    PARTITION BY subject
    ORDER BY arrival
    MEASURES
        LAST(fall.fact_id) AS cause_id,
        LAST(fall.event_ms) AS event_ms,
        LAST(fall.correlation_id) AS correlation_id,
        LAST(fall.traceparent) AS traceparent,
        LAST(fall.hops) AS hops,
        start_row.level_percent AS first_percent,
        LAST(fall.level_percent) AS last_percent
    ONE ROW PER MATCH
    AFTER MATCH SKIP PAST LAST ROW
    PATTERN (start_row fall{3})
    DEFINE
        fall AS fall.level_percent < COALESCE(LAST(fall.level_percent, 1), start_row.level_percent) - 3
            AND fall.event_ms - start_row.event_ms BETWEEN 0 AND 1800000
);
