-- Where a system stands in its incident: since when, what shows, who is suspected, which remedies came back.
-- Grain: one row a complete sample, deploy, alert, freeze or outcome. Lane: log order, key: system.
-- Event time: event_ms, carried. State: last values, counts and maxima a system, for ever. Consumer: the situations.
--
-- is_begin     an alarm more than 3 samples after the last one, or the first: an incident begins. Where no sample came
--              since (a system that only sends alerts), one more than half an hour later
-- is_new_head  an alarm of an open incident whose likeliest cause is another than at the alarm before
-- is_tried     a remedy came back and is this incident's. One that was done (event time) before the incident began, and
--              only told of later, is not: its own incident, or a mere deploy, asked for it
-- shown_node   where the incident was last measured, or the node of the alert that began it; another alert is only words
-- is_healed    a sample shows no symptom, and the node where it showed as the remedy came back told something of itself.
--              A node that never came up again has no symptom, and what it called has nothing to do and looks healthy
-- is_verified  the second sample after a remedy is healed; is_failed: it is not, or the remedy itself failed. Silence is
--              a failure too: the next remedy or a person finds out more than waiting would
-- What an alarm said (shown, suspects, evidence) stands until the next alarm.
CREATE VIEW alarm_counts AS
WITH last_values AS (
    SELECT
        *,
        LAST_VALUE(freeze_until_ms) OVER log_order AS frozen_until_ms,
        LAST_VALUE(CASE WHEN is_alarm THEN COALESCE(shown, '') END) OVER log_order AS last_shown,
        LAST_VALUE(symptom_node) OVER log_order AS last_symptom_node,
        LAST_VALUE(CASE WHEN is_alarm THEN suspects END) OVER log_order AS last_suspects,
        LAST_VALUE(CASE WHEN is_alarm THEN measured_evidence END) OVER log_order AS last_evidence,
        LAST_VALUE(CASE WHEN is_alarm THEN COALESCE(suspect_signs, '') END) OVER log_order AS last_signs,
        MAX(CASE WHEN is_alarm THEN sample_no END) OVER log_order AS alarm_no,
        MAX(CASE WHEN is_alarm THEN event_ms END) OVER log_order AS alarm_ms
    FROM judged_facts
    WINDOW log_order AS (PARTITION BY subject ORDER BY arrival)
)

SELECT
    *,
    LAG(alarm_no, 1) OVER log_order AS previous_alarm_no,
    LAG(alarm_ms, 1) OVER log_order AS previous_alarm_ms,
    LAG(last_suspects, 1) OVER log_order AS previous_suspects
FROM last_values
WINDOW log_order AS (PARTITION BY subject ORDER BY arrival);

CREATE VIEW incident_begins AS
WITH gaps AS (
    SELECT
        *,
        previous_alarm_no IS NULL
        OR sample_no - previous_alarm_no > 3
        OR (sample_no = previous_alarm_no AND event_ms - previous_alarm_ms > 1800000) AS is_over
    FROM alarm_counts
)

SELECT
    *,
    is_alarm AND is_over AS is_begin,
    is_alarm
    AND NOT is_over
    AND SPLIT_INDEX(suspects, CHR(9), 0) <> SPLIT_INDEX(previous_suspects, CHR(9), 0) AS is_same_with_new_head
FROM gaps;

CREATE VIEW incidents AS
SELECT
    *,
    LAST_VALUE(CASE WHEN is_begin THEN fact_id END) OVER log_order AS incident_id,
    LAST_VALUE(CASE WHEN is_begin THEN event_ms END) OVER log_order AS begun_ms,
    LAST_VALUE(CASE WHEN is_begin OR fact_type = 'incident.alert_raised' THEN COALESCE(text, '') END) OVER log_order
        AS alert_text,
    LAST_VALUE(CASE WHEN is_begin OR shown IS NOT NULL THEN symptom_node END) OVER log_order AS shown_node,
    LAST_VALUE(
        CASE WHEN fact_type = 'incident.alert_raised' THEN fact_id WHEN is_begin THEN '' END
    ) OVER log_order AS alert_fact_id
FROM incident_begins
WINDOW log_order AS (PARTITION BY subject ORDER BY arrival);

CREATE VIEW incident_remedies AS
WITH tried AS (
    SELECT
        *,
        COALESCE(is_remedy AND event_ms >= begun_ms, FALSE) AS is_tried
    FROM incidents
)

SELECT
    *,
    COUNT(CASE WHEN is_tried THEN 1 END) OVER log_order AS remedies,
    LAST_VALUE(CASE WHEN is_tried THEN `action` END) OVER log_order AS last_remedy,
    LAST_VALUE(CASE WHEN is_tried THEN fact_id END) OVER log_order AS remedy_fact_id,
    LAST_VALUE(CASE WHEN is_tried THEN correlation_id END) OVER log_order AS remedy_correlation_id,
    LAST_VALUE(CASE WHEN is_tried THEN COALESCE(traceparent, '') END) OVER log_order AS remedy_traceparent,
    LAST_VALUE(CASE WHEN is_tried THEN hops END) OVER log_order AS remedy_hops,
    LAST_VALUE(CASE WHEN is_tried THEN shown_node END) OVER log_order AS remedied_node,
    MAX(CASE WHEN is_tried THEN sample_no END) OVER log_order AS remedy_no
FROM tried
WINDOW log_order AS (PARTITION BY subject ORDER BY arrival);

CREATE VIEW incident_deploys AS
SELECT
    *,
    is_sample AND sample_no - remedy_no = 2 AND sample_no - previous_alarm_no <= 5 AS is_checked,
    shown IS NULL AND COALESCE(ARRAY_CONTAINS(SPLIT(told_nodes, CHR(9)), remedied_node), FALSE) AS is_healed,
    LAST_VALUE(CASE WHEN is_begin THEN remedies END) OVER log_order AS remedies_before,
    SPLIT_INDEX(last_suspects, CHR(9), 0) AS suspect,
    last_deploy(deploys, SPLIT_INDEX(last_suspects, CHR(9), 0), begun_ms) AS deploy
FROM incident_remedies
WINDOW log_order AS (PARTITION BY subject ORDER BY arrival);

CREATE VIEW incident_standing AS
SELECT
    subject,
    fact_id AS cause_id,
    event_ms,
    correlation_id,
    traceparent,
    hops,
    remedy_fact_id,
    remedy_correlation_id,
    NULLIF(remedy_traceparent, '') AS remedy_traceparent,
    remedy_hops,
    is_begin OR COALESCE(is_same_with_new_head, FALSE) AS is_new_head,
    COALESCE(is_checked AND is_healed, FALSE) AS is_verified,
    COALESCE(is_checked AND NOT is_healed, FALSE)
    OR (is_tried AND status = 'failed') AS is_failed,
    degraded,
    deployed_node,
    deployed_by_fact,
    deploys,
    incident_id,
    last_symptom_node AS node,
    COALESCE(SPLIT_INDEX(last_shown, CHR(9), 2), '') AS metric,
    COALESCE(SPLIT_INDEX(last_shown, CHR(9), 3), '') AS statistic,
    TRY_CAST(SPLIT_INDEX(last_shown, CHR(9), 7) AS DOUBLE) AS `value`,
    TRY_CAST(SPLIT_INDEX(last_shown, CHR(9), 8) AS DOUBLE) AS usual,
    TRY_CAST(SPLIT_INDEX(last_shown, CHR(9), 4) AS DOUBLE) AS deviation,
    suspect,
    COALESCE(last_signs, '') AS suspect_signs,
    COALESCE(SPLIT_INDEX(deploy, CHR(9), 2), '') AS deploy_id,
    NULLIF(SPLIT_INDEX(deploy, CHR(9), 4), '') AS deployed_by,
    CAST(event_ms - TRY_CAST(SPLIT_INDEX(deploy, CHR(9), 0) AS BIGINT) AS DOUBLE) / 6E4 AS minutes_since_deploy,
    COALESCE(event_ms < frozen_until_ms, FALSE) AS is_frozen,
    remedies - COALESCE(remedies_before, remedies) AS remedies_tried,
    CASE WHEN remedies > remedies_before THEN last_remedy ELSE '' END AS last_remedy,
    COALESCE(alert_text, '') AS alert_text,
    SPLIT(last_suspects, CHR(9)) AS suspects,
    ARRAY_REMOVE(
        SPLIT(
            CONCAT_WS(
                CHR(9), last_evidence, alert_fact_id, SPLIT_INDEX(deploy, CHR(9), 3),
                CASE WHEN remedies > remedies_before THEN remedy_fact_id END
            ),
            CHR(9)
        ),
        ''
    ) AS evidence
FROM incident_deploys;
