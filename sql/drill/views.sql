-- Views for people, in the SQL client only (./flyball sql); the jobs do not use them.

-- How often each action was allowed, denied or held, and why.
-- Grain: one row an action, agent, verdict and reason.
CREATE VIEW decisions_by_reason AS
SELECT
    `action`,
    agent,
    verdict,
    reason,
    COUNT(*) AS decisions,
    COUNT(DISTINCT subject) AS subjects
FROM flyball_decision
GROUP BY `action`, agent, verdict, reason;
