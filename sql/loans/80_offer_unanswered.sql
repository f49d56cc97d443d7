-- An offer went out and nothing came back for ten days: absence, seen when event time has passed.
-- Grain: one row a completed O_SENT without answer. Lane: event time (interval join; the row without a partner).
-- Event time: event_ms is the end of the ten days, cause_id the O_SENT. A row waits until the watermark, which lags
-- by the domain's watermark_delay_s, has passed it; a later answer is heard as usual and takes nothing back.
-- An answer is what the customer sent, took or refused, and any end of the case or of the offer.
-- State: ten days of offers and answers. Consumer: `propose`, reminder-rule.
CREATE VIEW offers_sent AS
SELECT
    subject,
    fact_id,
    event_ms,
    correlation_id,
    traceparent,
    hops,
    row_time
FROM loan_activity_recorded
WHERE UPPER(activity) = 'O_SENT' AND UPPER(COALESCE(lifecycle, 'COMPLETE')) = 'COMPLETE';

CREATE VIEW offer_answers AS
SELECT
    subject,
    fact_id,
    event_ms,
    row_time
FROM loan_activity_recorded
WHERE
    UPPER(activity) IN (
        'O_SENT_BACK', 'O_ACCEPTED', 'O_DECLINED', 'O_CANCELLED',
        'A_APPROVED', 'A_REGISTERED', 'A_ACTIVATED', 'A_DECLINED', 'A_CANCELLED'
    )
    AND UPPER(COALESCE(lifecycle, 'COMPLETE')) = 'COMPLETE';

CREATE VIEW offer_unanswered AS
SELECT
    o.subject,
    o.fact_id AS cause_id,
    o.event_ms + 864000000 AS event_ms,
    o.correlation_id,
    o.traceparent,
    o.hops,
    CAST(10 AS BIGINT) AS waited_days
FROM offers_sent AS o
LEFT JOIN offer_answers AS a
    ON o.subject = a.subject
    AND a.row_time BETWEEN o.row_time AND o.row_time + INTERVAL '10' DAY
WHERE a.fact_id IS NULL;
