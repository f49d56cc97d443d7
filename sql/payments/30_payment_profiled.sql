-- A payment set against its account's habit; a chargeback with or without a reason in the account.
-- Grain: one row a payment, chargeback or confirmation. Lane: log order, no key of its own. Event time: event_ms.
-- Consumer: payment_terminal. The habit is the one before this payment: its own part is taken off the totals.
-- A habit whose payments lie so long ago that their weight is rounding (over three years) is unknown.
CREATE VIEW payment_profiled AS
WITH habits AS (
    SELECT
        *,
        CASE
            WHEN is_payment AND habit_total - habit_weight > 1E-9 * slow_weight
            THEN habit_total - habit_weight
        END AS habit_before
    FROM payment_standing
    WHERE NOT is_profile
),

means AS (
    SELECT
        *,
        (habit_logs - habit_weight * log_amount) / habit_before AS habit_log,
        (habit_squared_logs - habit_weight * log_amount * log_amount) / habit_before AS habit_squared_log,
        CAST(event_ms - first_payment_ms AS DOUBLE) / CAST(payments_seen AS DOUBLE) AS usual_gap_ms
    FROM habits
)

SELECT
    subject,
    fact_id,
    correlation_id,
    traceparent,
    hops,
    arrival,
    is_payment,
    is_genuine,
    is_fraud
    AND NOT is_far
    AND NOT COALESCE(ABS(payment_ms - last_burst_ms) < 7200000, FALSE)
    AND far_weight <= 0.5E0 * weight AS is_unexplained,
    is_fraud,
    transaction_id,
    terminal_id,
    amount_minor,
    currency,
    event_ms,
    payment_ms,
    log_amount,
    weight,
    payments_seen,
    log_amount - habit_log AS amount_ratio_log,
    CASE
        WHEN payments_seen > 3
        THEN (log_amount - habit_log)
            / (SQRT(GREATEST(0E0, habit_squared_log - habit_log * habit_log)) + 0.1E0)
    END AS amount_deviation,
    CAST(ABS(event_ms - event_ms_1) AS DOUBLE) / 1E3 AS gap_1_s,
    CAST(ABS(event_ms - event_ms_2) AS DOUBLE) / 1E3 AS gap_2_s,
    CAST(ABS(event_ms - event_ms_4) AS DOUBLE) / 1E3 AS gap_4_s,
    CAST(ABS(event_ms - event_ms_8) AS DOUBLE) / 1E3 AS gap_8_s,
    (ABS(event_ms - event_ms_4) + 6E4) / (4E0 * GREATEST(0E0, usual_gap_ms) + 6E4) AS tempo_4,
    (ABS(event_ms - event_ms_8) + 6E4) / (8E0 * GREATEST(0E0, usual_gap_ms) + 6E4) AS tempo_8,
    device_id <> home_device_id AND device_id <> COALESCE(previous_device_id, '')
    OR home_device_id IS NULL AND device_id <> previous_device_id AS is_new_device,
    country <> home_country AS is_foreign,
    far_weight / weight AS account_far_chargebacks,
    near_weight / weight AS account_near_chargebacks,
    CAST(event_ms - last_fraud_ms AS DOUBLE) / 8.64E7 AS account_fraud_days,
    CAST(last_genuine_ms - last_fraud_ms AS DOUBLE) / 8.64E7 AS account_cleared_days
FROM means;
