-- What happened at a terminal so far.
-- Grain: one row a payment, chargeback or confirmation. Event time: event_ms. Consumer: payment_recovery.
-- Lane: log order, key: terminal. NOT the topic's key: how accounts interleave is the run's own, so terminal_* features
-- computed again from the facts may differ within that interleaving; the situation records what was seen.
-- State: running totals and last times a terminal, for ever.
-- is_unexplained chargebacks accuse the terminal, the others their account (payment_profiled).
CREATE VIEW payment_terminal AS
SELECT
    *,
    COUNT(CASE WHEN is_genuine THEN 1 END) OVER log_order AS terminal_genuine_count,
    SUM(CASE WHEN is_payment THEN weight ELSE 0E0 END) OVER log_order AS terminal_payment_weight,
    SUM(CASE WHEN is_unexplained THEN weight ELSE 0E0 END) OVER log_order AS terminal_fraud_weight,
    SUM(CASE WHEN is_unexplained THEN weight * CAST(payment_ms - 1640995200000 AS DOUBLE) ELSE 0E0 END) OVER log_order
        AS terminal_fraud_ms_total,
    SUM(CASE WHEN is_genuine THEN weight ELSE 0E0 END) OVER log_order AS terminal_genuine_weight,
    MAX(CASE WHEN is_unexplained THEN payment_ms END) OVER log_order AS terminal_fraud_ms,
    MAX(CASE WHEN is_genuine THEN payment_ms END) OVER log_order AS terminal_genuine_ms,
    MAX(CASE WHEN NOT is_payment THEN event_ms END) OVER log_order AS terminal_news_ms
FROM payment_profiled
WINDOW log_order AS (PARTITION BY terminal_id ORDER BY arrival);
