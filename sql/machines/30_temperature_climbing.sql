-- Five readings of a machine in a row, each at least as high as the one before and the last well above the first.
-- Grain: one row a match; matches do not overlap (AFTER MATCH SKIP PAST LAST ROW).
-- Lane: log order (MATCH_RECOGNIZE over PROCTIME). The bound in time stands in DEFINE on event times:
-- all five within 12 hours; WITHIN only clears state of machines that fell silent.
-- Consumer: kept for analysis and for policies over patterns; no agent proposes on it by itself.
CREATE VIEW temperature_climbing AS
SELECT
    subject,
    cause_id,
    event_ms,
    correlation_id,
    hops,
    first_temperature,
    last_temperature,
    (event_ms - first_event_ms) / 1000 AS climbing_s
FROM machine_temperature_measured
MATCH_RECOGNIZE (
    PARTITION BY subject
    ORDER BY arrival
    MEASURES
        LAST(rise.fact_id) AS cause_id,
        LAST(rise.event_ms) AS event_ms,
        LAST(rise.correlation_id) AS correlation_id,
        LAST(rise.hops) AS hops,
        start_row.temperature AS first_temperature,
        LAST(rise.temperature) AS last_temperature,
        start_row.event_ms AS first_event_ms
    ONE ROW PER MATCH
    AFTER MATCH SKIP PAST LAST ROW
    PATTERN (start_row rise{4}) WITHIN INTERVAL '7' DAY
    DEFINE
        rise AS rise.temperature > COALESCE(LAST(rise.temperature, 1), start_row.temperature)
            AND rise.event_ms - start_row.event_ms BETWEEN 0 AND 43200000
);
