-- Views for people, in the SQL client only (./flyball sql); the jobs do not use them.

-- How often each agent's actions were allowed, denied or held, and why.
-- Grain: one row an action, agent, verdict and reason.
CREATE VIEW decisions_by_reason AS
SELECT
    `action`,
    agent,
    verdict,
    reason,
    COUNT(*) AS decisions,
    COUNT(DISTINCT subject) AS tanks
FROM flyball_decision
GROUP BY `action`, agent, verdict, reason;

-- Grain: one row a tank.
CREATE VIEW tank_levels AS
SELECT
    subject AS tank,
    COUNT(*) AS readings,
    MIN(level_percent) AS min_percent,
    AVG(level_percent) AS mean_percent
FROM newdomain_level_measured
WHERE subject IS NOT NULL AND level_percent IS NOT NULL
GROUP BY subject;
