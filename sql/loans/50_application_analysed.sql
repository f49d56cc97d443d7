-- Our own analysis came back: odd cases go to the fraud desk first, all others are ready for a decision.
-- Grain: one row a succeeded `analyse_application` outcome of an odd case.
-- Lane: log order (amount_deviation: see case_assessed). Event time: event_ms. Consumer: `propose`, fraud-check-rule.
CREATE VIEW fraud_suspected AS
SELECT
    subject,
    cause_id,
    event_ms,
    correlation_id,
    traceparent,
    hops,
    amount,
    rating,
    first_handled_by,
    handled_by,
    handled_by_all,
    touches,
    hand_overs,
    hours_so_far,
    submissions,
    amount_changes,
    amount_deviation,
    is_suspicious,
    is_cancelled,
    CASE
        WHEN COALESCE(amount_deviation > 2.3E0, FALSE) THEN 'amount_far_over_usual'
        ELSE 'resubmitted'
    END AS suspicion
FROM case_assessed
WHERE done_action = 'analyse_application' AND is_suspicious;

-- Ready for a decision: the analysis is in, and the fraud check where the case looked odd.
-- Grain: one row a succeeded `analyse_application` outcome of a case that does not look odd, and one a succeeded
-- `check_fraud` outcome. Lane: log order (amount_deviation: see case_assessed). Event time: event_ms.
-- Consumer: `propose`, the underwriting rules.
-- offer_amount: seven tenths of the request in hundreds, at least a hundred. decline_reason is empty where the
-- analysis gives none: no rating, or one that is no reason to decline.
CREATE VIEW application_analysed AS
SELECT
    subject,
    cause_id,
    event_ms,
    correlation_id,
    traceparent,
    hops,
    amount,
    rating,
    first_handled_by,
    handled_by,
    handled_by_all,
    touches,
    hand_overs,
    hours_so_far,
    submissions,
    amount_changes,
    amount_deviation,
    is_suspicious,
    is_cancelled,
    GREATEST(FLOOR(amount * 0.007E0) * 1E2, 1E2) AS offer_amount,
    CASE
        WHEN is_fraud_confirmed THEN 'fraud'
        WHEN rating = 'D' THEN 'affordability'
        ELSE ''
    END AS decline_reason,
    is_fraud_confirmed
FROM case_assessed
WHERE done_action = 'check_fraud' OR done_action = 'analyse_application' AND NOT is_suspicious;
