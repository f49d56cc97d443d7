-- A hot machine that keeps getting hotter: four readings in a row, each more than two deviations above
-- the machine's recent mean and each higher than the one before.
-- Grain: one row a match; matches do not overlap (AFTER MATCH SKIP PAST LAST ROW).
-- Lane: log order (MATCH_RECOGNIZE over PROCTIME). "In a row" is readings_seen going up by one; only hot
-- readings reach the pattern, since matching costs ten times a filter. The bound in time stands in
-- DEFINE on event times: all four within 12 hours. No WITHIN: Flink keeps a timer for each row that may begin a match
-- until that time of the clock is over; without it a machine that fell silent keeps a row or two.
-- Consumer: analysis and policies over patterns; no agent proposes on it by itself.
CREATE VIEW hot_readings AS
SELECT
    subject,
    fact_id AS cause_id,
    event_ms,
    correlation_id,
    traceparent,
    hops,
    temperature,
    readings_seen,
    arrival
FROM reading_shifts
WHERE deviation > 2;

CREATE VIEW temperature_climbing AS
SELECT
    subject,
    cause_id,
    event_ms,
    correlation_id,
    traceparent,
    hops,
    first_temperature,
    last_temperature,
    (event_ms - first_event_ms) / 1000 AS climbing_s
FROM hot_readings
MATCH_RECOGNIZE (
    PARTITION BY subject
    ORDER BY arrival
    MEASURES
        LAST(rise.cause_id) AS cause_id,
        LAST(rise.event_ms) AS event_ms,
        LAST(rise.correlation_id) AS correlation_id,
        LAST(rise.traceparent) AS traceparent,
        LAST(rise.hops) AS hops,
        hot.temperature AS first_temperature,
        LAST(rise.temperature) AS last_temperature,
        hot.event_ms AS first_event_ms
    ONE ROW PER MATCH
    AFTER MATCH SKIP PAST LAST ROW
    PATTERN (hot rise{3})
    DEFINE
        rise AS rise.temperature > COALESCE(LAST(rise.temperature, 1), hot.temperature)
            AND rise.readings_seen = COALESCE(LAST(rise.readings_seen, 1), hot.readings_seen) + 1
            AND rise.event_ms - hot.event_ms BETWEEN 0 AND 43200000
);
