-- Features of one reading against its machine's own recent past.
-- Grain: one row a deduplicated `machine.temperature_measured`, in the order of arrival within its machine.
-- Lane: log order. Event time: event_ms, carried and not ordered by; a late reading counts where it arrives.
-- Windows count readings, never minutes, so any sampling interval will do.
-- State: running totals and one LAG buffer a machine (325 readings), kept for ever; no row store, nothing to evict.
-- Consumer: `propose`; machine-health.onnx reads readings_seen, level_shift, level_peak, jump, jump_peak.
--
-- level_shift  mean of the last 24 readings, less the mean of the 300 before them, in their standard deviations
-- jump         change since the last reading, in root mean squares of the 300 changes before it
-- deviation    this reading, less the same mean, in the same standard deviations
-- *_peak       largest size so far, this reading included; each size is capped (10, 50) and fades by exp(-age / 10000)
-- All are 0 for the first 54 readings: 24 to judge and 30 to judge them by.
CREATE VIEW reading_totals AS
WITH steps AS (
    SELECT
        subject,
        fact_id,
        correlation_id,
        traceparent,
        hops,
        temperature,
        temperature - COALESCE(LAG(temperature, 1) OVER (PARTITION BY subject ORDER BY arrival), temperature) AS step,
        event_ms,
        arrival
    FROM machine_temperature_measured
),

totals AS (
    SELECT
        *,
        COUNT(*) OVER (PARTITION BY subject ORDER BY arrival) AS readings_seen,
        SUM(temperature) OVER (PARTITION BY subject ORDER BY arrival) AS total,
        SUM(temperature * temperature) OVER (PARTITION BY subject ORDER BY arrival) AS total_squares,
        SUM(step * step) OVER (PARTITION BY subject ORDER BY arrival) AS total_step_squares
    FROM steps
)

-- A window's sum is the difference of two running totals: the same arithmetic whatever the window's length.
SELECT
    *,
    COALESCE(LAG(total, 24) OVER (PARTITION BY subject ORDER BY arrival), 0.0) AS total_24,
    COALESCE(LAG(total, 324) OVER (PARTITION BY subject ORDER BY arrival), 0.0) AS total_324,
    COALESCE(LAG(total_squares, 24) OVER (PARTITION BY subject ORDER BY arrival), 0.0) AS total_squares_24,
    COALESCE(LAG(total_squares, 324) OVER (PARTITION BY subject ORDER BY arrival), 0.0) AS total_squares_324,
    COALESCE(LAG(total_step_squares, 301) OVER (PARTITION BY subject ORDER BY arrival), 0.0) AS total_step_squares_301
FROM totals;

CREATE VIEW reading_baseline AS
SELECT
    subject,
    fact_id,
    event_ms,
    correlation_id,
    traceparent,
    hops,
    temperature,
    step,
    readings_seen,
    total_squares_24 - total_squares_324 AS baseline_squares,
    CAST(GREATEST(LEAST(readings_seen, 324) - 24, 1) AS DOUBLE) AS baseline_readings,
    (total_24 - total_324) / CAST(GREATEST(LEAST(readings_seen, 324) - 24, 1) AS DOUBLE) AS baseline_mean,
    (total - total_24) / CAST(24 AS DOUBLE) AS recent_mean,
    -- Smaller than a hundred-thousandth of the window's root mean square is resolution, not deviation; nor is what the
    -- difference of two running totals loses, which a single wild reading makes large (4e9: a spread of some 8).
    (CAST(1e-10 AS DOUBLE) * GREATEST(total_squares_24 - total_squares_324, CAST(0 AS DOUBLE)) + CAST(1e-15 AS DOUBLE) * total_squares)
        / CAST(GREATEST(LEAST(readings_seen, 324) - 24, 1) AS DOUBLE) + CAST(1e-24 AS DOUBLE) AS finest_variance,
    (total_step_squares - step * step - total_step_squares_301)
        / CAST(GREATEST(LEAST(readings_seen - 1, 300), 1) AS DOUBLE) AS step_variance,
    arrival
FROM reading_totals;

CREATE VIEW reading_shifts AS
WITH spread AS (
    SELECT
        *,
        SQRT(
            GREATEST(baseline_squares / baseline_readings - baseline_mean * baseline_mean, CAST(0 AS DOUBLE))
            + finest_variance
        ) AS baseline_spread,
        SQRT(GREATEST(step_variance, CAST(0 AS DOUBLE)) + finest_variance) AS step_spread
    FROM reading_baseline
)

SELECT
    subject,
    fact_id,
    event_ms,
    correlation_id,
    traceparent,
    hops,
    temperature,
    readings_seen,
    baseline_mean,
    CASE WHEN readings_seen > 54 THEN (recent_mean - baseline_mean) / baseline_spread ELSE CAST(0 AS DOUBLE) END
        AS level_shift,
    CASE WHEN readings_seen > 54 THEN step / step_spread ELSE CAST(0 AS DOUBLE) END AS jump,
    CASE WHEN readings_seen > 54 THEN (temperature - baseline_mean) / baseline_spread ELSE CAST(0 AS DOUBLE) END
        AS deviation,
    CAST(readings_seen AS DOUBLE) / CAST(10000 AS DOUBLE) AS age,
    arrival
FROM spread;

CREATE VIEW reading_scored AS
-- max(ln(size) + age) - age is the largest size faded by exp(-age): exact, and one number of state.
-- Nothing is remembered of the readings before the features count.
WITH peaks AS (
    SELECT
        *,
        MAX(CASE WHEN readings_seen > 54
            THEN LN(LEAST(GREATEST(ABS(level_shift), CAST(1e-6 AS DOUBLE)), CAST(10 AS DOUBLE))) + age END)
            OVER (PARTITION BY subject ORDER BY arrival) AS level_peak_log,
        MAX(CASE WHEN readings_seen > 54
            THEN LN(LEAST(GREATEST(ABS(jump), CAST(1e-6 AS DOUBLE)), CAST(50 AS DOUBLE))) + age END)
            OVER (PARTITION BY subject ORDER BY arrival) AS jump_peak_log
    FROM reading_shifts
)

SELECT
    subject,
    fact_id AS cause_id,
    event_ms,
    correlation_id,
    traceparent,
    hops,
    temperature,
    CAST(readings_seen AS BIGINT) AS readings_seen,
    level_shift,
    COALESCE(EXP(level_peak_log - age), CAST(0 AS DOUBLE)) AS level_peak,
    jump,
    COALESCE(EXP(jump_peak_log - age), CAST(0 AS DOUBLE)) AS jump_peak,
    deviation,
    baseline_mean
FROM peaks;
