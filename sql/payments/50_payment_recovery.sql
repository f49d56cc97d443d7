-- Where a terminal stands in its episode of fraud: since when, and what turned out genuine after it.
-- Grain: one row a payment, chargeback or confirmation. Event time: event_ms. Consumer: payment_band.
-- Lane: log order, key: terminal (see payment_terminal). State: a time and a count a terminal, for ever.
-- An unexplained chargeback begins an episode when those before it have faded to less than a fifth of one; it takes
-- back what was confirmed before it when its payment is later than every confirmed one.
CREATE VIEW payment_recovery AS
SELECT
    *,
    LAST_VALUE(CASE WHEN is_unexplained AND terminal_fraud_weight < 1.2E0 * weight THEN payment_ms END) OVER log_order
        AS terminal_first_fraud_ms,
    LAST_VALUE(CASE
        WHEN is_unexplained AND payment_ms > COALESCE(terminal_genuine_ms, CAST(0 AS BIGINT))
        THEN terminal_genuine_count
    END) OVER log_order AS terminal_genuine_count_at_fraud
FROM payment_terminal
WINDOW log_order AS (PARTITION BY terminal_id ORDER BY arrival);
