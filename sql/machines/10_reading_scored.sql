CREATE VIEW reading_scored AS
SELECT subject, fact_id AS cause_id, event_ms, correlation_id, hops, temperature,
    CAST(readings_seen AS BIGINT) AS readings_seen, mean_recent, deviation_recent,
    (temperature - mean_recent) / GREATEST(deviation_recent, 1e-9) AS level_score
FROM (
    SELECT *, COUNT(temperature) OVER w AS readings_seen, AVG(temperature) OVER w AS mean_recent, STDDEV_POP(temperature) OVER w AS deviation_recent
    FROM machine_temperature_measured
    WINDOW w AS (PARTITION BY subject ORDER BY arrival ROWS BETWEEN 50 PRECEDING AND CURRENT ROW)
);
CREATE VIEW cooling_failed AS
SELECT subject, fact_id AS cause_id, event_ms, correlation_id, hops, command_id, detail
FROM flyball_outcome
WHERE action = 'activate_cooling' AND status = 'failed';
