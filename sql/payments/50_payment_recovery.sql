-- Where a terminal stands in its episode of fraud: since when, and what turned out genuine after it.
-- Grain: one row a payment, chargeback or confirmation. Event time: event_ms. Consumer: payment_band.
-- Lane: log order, key: terminal (see payment_terminal). State: one total and one time a terminal, for ever.
-- An unexplained chargeback begins an episode when those before it have faded to less than a fifth of one.
-- A recovery is a payment later than the last unexplained fraud here that turned out genuine.
CREATE VIEW payment_recovery AS
SELECT
    *,
    SUM(CASE
        WHEN is_genuine AND payment_ms > COALESCE(terminal_fraud_ms, CAST(0 AS BIGINT)) THEN weight
        ELSE 0E0
    END) OVER log_order AS terminal_recovered_weight,
    LAST_VALUE(CASE WHEN is_unexplained AND terminal_fraud_weight < 1.2E0 * weight THEN payment_ms END) OVER log_order
        AS terminal_first_fraud_ms
FROM payment_terminal
WINDOW log_order AS (PARTITION BY terminal_id ORDER BY arrival);
