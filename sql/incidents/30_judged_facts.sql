-- What is wrong at a fact, where it shows, and who may have caused it.
-- Grain: one row a complete sample, deploy, alert, freeze or outcome. Lane: log order, key: system.
-- Event time: event_ms, carried. State: texts of the last 256 deploys and judged facts a system.
-- Consumer: incident_standing. The functions are in udfs/samples.py and udfs/root_cause.py; lists are texts by tab.
--
-- is_alarm      a symptom in a complete sample, or an alert
-- shown         the measurement that is the symptom (its columns by tab, as in latest_rows); null at an alert
-- told_nodes    who told more than traffic in the complete sample
-- symptom_node  where it shows: the symptom's node or the alert's
-- degraded      at the third sample after a deploy: a measurement of its node that was far off in most of them
CREATE VIEW symptoms AS
SELECT
    *,
    CASE WHEN is_sample THEN symptom_in(latest_rows, calls, until_ms) END AS shown,
    CASE WHEN is_sample THEN nodes_in(latest_rows, until_ms) END AS told_nodes
FROM samples;

CREATE VIEW alarms AS
SELECT
    *,
    shown IS NOT NULL OR fact_type = 'incident.alert_raised' AS is_alarm,
    fact_type = 'flyball.outcome'
    AND `action` IN ('restart_service', 'roll_back', 'scale_out', 'shift_traffic', 'open_circuit') AS is_remedy,
    CASE
        WHEN shown IS NOT NULL THEN SPLIT_INDEX(shown, CHR(9), 1)
        WHEN fact_type = 'incident.alert_raised' THEN node
    END AS symptom_node
FROM symptoms;

CREATE VIEW suspected AS
SELECT
    *,
    CASE
        WHEN is_alarm THEN suspects_in(latest_rows, calls, until_ms, CASE WHEN is_sample THEN 1 ELSE 2 END, symptom_node)
    END AS suspects
FROM alarms;

CREATE VIEW evidenced AS
SELECT
    *,
    CASE
        WHEN is_alarm THEN evidence_in(latest_rows, until_ms, CASE WHEN is_sample THEN 1 ELSE 2 END, suspects)
    END AS measured_evidence,
    CASE
        WHEN is_alarm THEN signs_in(latest_rows, until_ms, CASE WHEN is_sample THEN 1 ELSE 2 END, suspects)
    END AS suspect_signs
FROM suspected;

CREATE VIEW judged_facts AS
WITH counted AS (
    SELECT
        *,
        COUNT(CASE WHEN is_sample THEN 1 END) OVER log_order AS sample_no,
        LAST_VALUE(CASE WHEN fact_type = 'incident.deployed' THEN node END) OVER log_order AS deployed_node,
        LAST_VALUE(CASE WHEN fact_type = 'incident.deployed' THEN fact_id END) OVER log_order AS deployed_by_fact
    FROM evidenced
    WINDOW log_order AS (PARTITION BY subject ORDER BY arrival)
),

since AS (
    SELECT
        *,
        MAX(CASE WHEN fact_type = 'incident.deployed' THEN sample_no END) OVER log_order AS deployed_no
    FROM counted
    WINDOW log_order AS (PARTITION BY subject ORDER BY arrival)
),

gathered AS (
    SELECT
        *,
        ARRAY_AGG(
            CASE
                WHEN fact_type = 'incident.deployed'
                THEN CONCAT_WS(CHR(9), CAST(event_ms AS STRING), node, deploy_id, fact_id, COALESCE(deployed_by, ''))
            END
        ) OVER (PARTITION BY subject ORDER BY arrival ROWS BETWEEN 255 PRECEDING AND CURRENT ROW) AS deploys
    FROM since
)

SELECT
    subject,
    fact_id,
    correlation_id,
    traceparent,
    hops,
    arrival,
    event_ms,
    fact_type,
    text,
    freeze_until_ms,
    `action`,
    status,
    is_sample,
    is_alarm,
    is_remedy,
    shown,
    told_nodes,
    symptom_node,
    suspects,
    measured_evidence,
    suspect_signs,
    sample_no,
    deploys,
    deployed_node,
    deployed_by_fact,
    CASE
        WHEN is_sample AND sample_no - deployed_no = 3
        THEN worst_of(latest_rows, deployed_node, until_ms, CAST(3 AS BIGINT))
    END AS degraded
FROM gathered;
