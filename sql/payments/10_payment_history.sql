-- What an account did before: habit in the raw, gaps, profile as of arrival.
-- Grain: one row a fact of the four payment types, in the order of arrival within its account.
-- Lane: log order, key: account. Event time: event_ms, carried and not ordered by; a late fact counts where it arrives.
-- All types come from the one view `facts`, so that an account's payments and outcomes keep their order.
-- State: running totals, the last eight times, the profile, for ever; no row store.
-- Consumer: payment_standing.
--
-- A fading count is SUM(EXP(t / tau)) / EXP(now / tau): it fades with event time and is one number of state.
-- weight fades with 14 days, slow_weight (payments only) with 60; exponents are bounded to +-300 around 2022-01-01.
CREATE VIEW payment_history AS
WITH payment_facts AS (
    SELECT
        subject,
        fact_id,
        correlation_id,
        traceparent,
        hops,
        arrival,
        fact_type = 'payment.authorisation_requested' AS is_payment,
        fact_type = 'payment.charged_back' AS is_fraud,
        fact_type = 'payment.confirmed_genuine' AS is_genuine,
        fact_type = 'customer.profile_changed' AS is_profile,
        transaction_id,
        terminal_id,
        amount_minor,
        currency,
        country,
        device_id,
        event_ms,
        -- No payment is later than what is told about it: one wrong date must not outweigh all that is true.
        LEAST(COALESCE(payment_ms, event_ms), event_ms) AS payment_ms,
        LN(CAST(GREATEST(COALESCE(amount_minor, 1), 1) AS DOUBLE)) AS log_amount
    FROM facts
    WHERE fact_type IN (
        'payment.authorisation_requested',
        'payment.charged_back',
        'payment.confirmed_genuine',
        'customer.profile_changed'
    )
),

weighed AS (
    SELECT
        *,
        EXP(GREATEST(-3E2, LEAST(3E2, CAST(payment_ms - 1640995200000 AS DOUBLE) / 1.2096E9))) AS weight,
        CASE
            WHEN is_payment
            THEN EXP(GREATEST(-3E2, LEAST(3E2, CAST(event_ms - 1640995200000 AS DOUBLE) / 5.184E9)))
            ELSE 0E0
        END AS slow_weight
    FROM payment_facts
)

SELECT
    subject,
    fact_id,
    correlation_id,
    traceparent,
    hops,
    arrival,
    is_payment,
    is_fraud,
    is_genuine,
    is_profile,
    transaction_id,
    terminal_id,
    amount_minor,
    currency,
    country,
    device_id,
    event_ms,
    payment_ms,
    log_amount,
    weight,
    slow_weight,
    COUNT(CASE WHEN is_payment THEN 1 END) OVER log_order AS payments_seen,
    MIN(CASE WHEN is_payment THEN event_ms END) OVER log_order AS first_payment_ms,
    SUM(slow_weight) OVER log_order AS raw_weight,
    SUM(slow_weight * log_amount) OVER log_order AS raw_logs,
    LAG(event_ms, 1) OVER log_order AS event_ms_1,
    LAG(event_ms, 2) OVER log_order AS event_ms_2,
    LAG(event_ms, 4) OVER log_order AS event_ms_4,
    LAG(event_ms, 8) OVER log_order AS event_ms_8,
    LAG(CASE WHEN is_payment THEN device_id END, 1) OVER log_order AS previous_device_id,
    LAST_VALUE(CASE WHEN is_profile THEN country END) OVER log_order AS home_country,
    LAST_VALUE(CASE WHEN is_profile THEN device_id END) OVER log_order AS home_device_id
FROM weighed
WINDOW log_order AS (PARTITION BY subject ORDER BY arrival);
