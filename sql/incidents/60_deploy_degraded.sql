-- A node is worse after a deploy than it used to be before.
-- Grain: one row a deploy whose node has a series far off in two of the three samples after it; of deploys closer
-- together than three samples only the last is looked at. Lane: log order. Event time: event_ms, of the third sample.
-- Consumer: `propose`, deploy verification. Before and after are the series' own past and its last three samples.
CREATE VIEW degraded_deploys AS
SELECT
    *,
    last_deploy(deploys, deployed_node, event_ms) AS latest_deploy
FROM incident_standing
WHERE degraded IS NOT NULL;

CREATE VIEW deploy_degraded AS
SELECT
    subject,
    cause_id,
    event_ms,
    correlation_id,
    traceparent,
    hops,
    COALESCE(incident_id, cause_id) AS incident_id,
    deployed_node AS node,
    SPLIT_INDEX(degraded, CHR(9), 2) AS metric,
    SPLIT_INDEX(degraded, CHR(9), 3) AS statistic,
    TRY_CAST(SPLIT_INDEX(degraded, CHR(9), 7) AS DOUBLE) AS `value`,
    TRY_CAST(SPLIT_INDEX(degraded, CHR(9), 8) AS DOUBLE) AS usual,
    TRY_CAST(SPLIT_INDEX(degraded, CHR(9), 4) AS DOUBLE) AS deviation,
    deployed_node AS suspect,
    SPLIT_INDEX(degraded, CHR(9), 2) AS suspect_signs,
    COALESCE(SPLIT_INDEX(latest_deploy, CHR(9), 2), '') AS deploy_id,
    NULLIF(SPLIT_INDEX(latest_deploy, CHR(9), 4), '') AS deployed_by,
    CAST(event_ms - TRY_CAST(SPLIT_INDEX(latest_deploy, CHR(9), 0) AS BIGINT) AS DOUBLE) / 6E4 AS minutes_since_deploy,
    is_frozen,
    remedies_tried,
    last_remedy,
    alert_text,
    ARRAY[deployed_node] AS suspects,
    ARRAY[SPLIT_INDEX(degraded, CHR(9), 9), deployed_by_fact] AS evidence
FROM degraded_deploys;
