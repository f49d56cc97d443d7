-- What an account is used to, and what became of its earlier payments.
-- Grain: one row a fact of the four payment types. Lane: log order, key: account. Event time: event_ms.
-- State: running totals and last times an account, for ever. Consumer: payment_profiled.
--
-- is_habit  a payment at most e^1.1 (3) times the account's geometric mean before it; the first three always
-- is_far    a charged back amount over e^0.9 (2.5) times that mean: it speaks of the account, not of the terminal
-- is_burst  the fifth fact of the account within an hour, a payment
CREATE VIEW payment_standing AS
WITH judged AS (
    SELECT
        *,
        CASE
            WHEN payments_seen <= 3
                OR (log_amount - 1.1E0) * (raw_weight - slow_weight) <= raw_logs - slow_weight * log_amount
            THEN slow_weight
            ELSE 0E0
        END AS habit_weight,
        is_fraud AND raw_weight > 0E0 AND (log_amount - 0.9E0) * raw_weight > raw_logs AS is_far,
        is_payment AND ABS(event_ms - event_ms_4) < 3600000 AS is_burst
    FROM payment_history
)

SELECT
    *,
    SUM(habit_weight) OVER log_order AS habit_total,
    SUM(habit_weight * log_amount) OVER log_order AS habit_logs,
    SUM(habit_weight * log_amount * log_amount) OVER log_order AS habit_squared_logs,
    SUM(CASE WHEN is_far THEN weight ELSE 0E0 END) OVER log_order AS far_weight,
    SUM(CASE WHEN is_fraud AND NOT is_far THEN weight ELSE 0E0 END) OVER log_order AS near_weight,
    MAX(CASE WHEN is_fraud THEN payment_ms END) OVER log_order AS last_fraud_ms,
    MAX(CASE WHEN is_genuine THEN payment_ms END) OVER log_order AS last_genuine_ms,
    MAX(CASE WHEN is_burst THEN event_ms END) OVER log_order AS last_burst_ms
FROM judged
WINDOW log_order AS (PARTITION BY subject ORDER BY arrival);
