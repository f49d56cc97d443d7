-- How often payments of about this size were charged back: finds "everything above a limit is fraud", at any scale.
-- Grain: one row a payment, chargeback or confirmation. Event time: event_ms. Consumer: payment_assessed.
-- Lane: log order, key: currency and amount band (a seventh of e, 15 %). NOT the topic's key, see payment_terminal.
-- State: running totals a band, for ever.
CREATE VIEW payment_band AS
WITH banded AS (
    SELECT
        *,
        CONCAT(COALESCE(currency, ''), CAST(FLOOR(7E0 * log_amount) AS STRING)) AS amount_band
    FROM payment_recovery
)

SELECT
    *,
    SUM(CASE WHEN is_payment THEN weight ELSE 0E0 END) OVER log_order AS band_payment_weight,
    SUM(CASE WHEN is_fraud THEN weight ELSE 0E0 END) OVER log_order AS band_fraud_weight,
    SUM(CASE WHEN is_genuine THEN weight ELSE 0E0 END) OVER log_order AS band_genuine_weight
FROM banded
WINDOW log_order AS (PARTITION BY amount_band ORDER BY arrival);
