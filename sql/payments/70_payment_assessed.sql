-- Everything known of a payment when it is asked for; one decision follows.
-- Grain: one payment. Event time: event_ms. Consumer: `propose`, payment-fraud.onnx.
-- Lane: log order of the account; terminal_* and band_* are features over other keys (see payment_terminal, payment_band).
-- Null: unknown, or never happened. Amounts only appear as ratios; counts of chargebacks and confirmations fade with 14 days.
-- is_terminal_suspected: an unexplained chargeback of late, and not yet two confirmations since the last one.
-- terminal_intensity: unexplained chargebacks over what would be expected by now if every payment here were fraud.
CREATE VIEW payment_assessed AS
WITH payments AS (
    SELECT
        *,
        CAST(event_ms - terminal_fraud_ms AS DOUBLE) / 8.64E7 AS terminal_fraud_days,
        CASE
            WHEN terminal_fraud_weight > 0E0
            THEN (CAST(event_ms - 1640995200000 AS DOUBLE) - terminal_fraud_ms_total / terminal_fraud_weight) / 8.64E7
        END AS terminal_mean_fraud_days,
        terminal_genuine_count - COALESCE(terminal_genuine_count_at_fraud, CAST(0 AS BIGINT)) AS terminal_recoveries
    FROM payment_band
    WHERE is_payment
)

SELECT
    subject,
    fact_id AS cause_id,
    event_ms,
    correlation_id,
    traceparent,
    hops,
    transaction_id,
    terminal_id,
    amount_minor,
    payments_seen,
    amount_ratio_log,
    amount_deviation,
    gap_1_s,
    gap_2_s,
    gap_4_s,
    gap_8_s,
    tempo_4,
    tempo_8,
    is_new_device,
    is_foreign,
    account_far_chargebacks,
    account_near_chargebacks,
    account_fraud_days,
    account_cleared_days,
    terminal_fraud_weight / weight AS terminal_chargebacks,
    terminal_genuine_weight / weight AS terminal_confirmations,
    terminal_recoveries,
    terminal_fraud_weight / (terminal_payment_weight + weight) AS terminal_share,
    terminal_fraud_weight
    / (weight + terminal_payment_weight / 14E0
        * GREATEST(0E0, 2E0 * terminal_mean_fraud_days - terminal_fraud_days - 4.5E0)) AS terminal_intensity,
    terminal_fraud_days,
    terminal_mean_fraud_days,
    CAST(event_ms - terminal_first_fraud_ms AS DOUBLE) / 8.64E7 AS terminal_first_fraud_days,
    CAST(terminal_genuine_ms - terminal_fraud_ms AS DOUBLE) / 8.64E7 AS terminal_cleared_days,
    CAST(event_ms - terminal_news_ms AS DOUBLE) / 8.64E7 AS terminal_news_days,
    band_fraud_weight / (band_payment_weight + 5E0 * weight) AS band_share,
    band_fraud_weight / (band_fraud_weight + band_genuine_weight + weight) AS band_judged_share,
    terminal_fraud_weight >= 0.5E0 * weight AND terminal_recoveries < 2 AS is_terminal_suspected
FROM payments;
