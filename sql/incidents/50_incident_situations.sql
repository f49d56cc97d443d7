-- An incident is open, or its likeliest cause is now another.
-- Grain: one row an alarm that begins an incident or changes the first suspect. Lane: log order.
-- Event time: event_ms. Consumer: `propose`, triage and remediation agents.
CREATE VIEW symptom_found AS
SELECT * FROM incident_standing WHERE is_new_head;

-- What came of a remedy. The outcome is the cause: what the remedy did is told in one chain.
-- Grain: one row a second sample after a remedy, and one a failed remedy. Lane: log order. Event time: event_ms.
CREATE VIEW remedies_checked AS
SELECT
    subject,
    remedy_fact_id AS cause_id,
    event_ms,
    remedy_correlation_id AS correlation_id,
    remedy_traceparent AS traceparent,
    remedy_hops AS hops,
    is_verified,
    is_failed,
    incident_id,
    node,
    metric,
    statistic,
    `value`,
    usual,
    deviation,
    suspect,
    suspect_signs,
    deploy_id,
    deployed_by,
    minutes_since_deploy,
    is_frozen,
    remedies_tried,
    last_remedy,
    alert_text,
    suspects,
    evidence
FROM incident_standing
WHERE is_verified OR is_failed;

-- After a remedy's outcome the symptom is gone, and its node tells so. Consumer: `propose`, which closes the incident.
CREATE VIEW remedy_verified AS
SELECT * FROM remedies_checked WHERE is_verified;

-- A remedy came back and the symptom is still there, or its node fell silent, or the remedy itself failed.
-- Consumer: `propose`, which takes the next remedy or a person.
CREATE VIEW remedy_failed AS
SELECT * FROM remedies_checked WHERE is_failed;
