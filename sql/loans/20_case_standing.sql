-- What changed in a case with each of its facts: another person, another amount, an application now complete.
-- Grain: one row a fact of the log or outcome. Lane: log order, key: case. Event time: event_ms.
-- State: the row before and two running counts a case, for ever. Consumer: case_assessed, bouncing.
--
-- is_now_received  the case's first row by which it was handed in and its amount is known, in whichever order
-- is_turn          somebody works on the case, and the last one who did was another, or nobody
CREATE VIEW case_changes AS
WITH before AS (
    SELECT
        *,
        LAG(receipts, 1) OVER log_order AS previous_receipts,
        LAG(amount, 1) OVER log_order AS previous_amount,
        LAG(handled_by, 1) OVER log_order AS previous_handled_by
    FROM case_history
    WINDOW log_order AS (PARTITION BY subject ORDER BY arrival)
)

SELECT
    *,
    receipts > 0
    AND amount IS NOT NULL
    AND (COALESCE(previous_receipts, CAST(0 AS BIGINT)) = 0 OR previous_amount IS NULL) AS is_now_received,
    worked_by IS NOT NULL AND (previous_handled_by IS NULL OR worked_by <> previous_handled_by) AS is_turn
FROM before;

CREATE VIEW case_standing AS
SELECT
    *,
    COUNT(CASE WHEN is_turn AND previous_handled_by IS NOT NULL THEN 1 END) OVER log_order AS hand_overs,
    COUNT(CASE WHEN amount <> previous_amount THEN 1 END) OVER log_order AS amount_changes
FROM case_changes
WINDOW log_order AS (PARTITION BY subject ORDER BY arrival);
