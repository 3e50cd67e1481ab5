"""The line before a queue: which waiting step is claimed next, and after it, and so on.

Among steps of one priority the queue's slots are shared fairly between projects: the next slot goes to the
project with the fewest running steps on this queue, of several to the one that was last given a slot the
longest ago, and within a project to steps that were broken off (a worker lost or stopped, a crash, too
little memory), then to later steps of started jobs, then to older jobs. So what had a slot for hours does
not lose it to a job that waited, and a project's only step waits for at most one claim of each other
project, however many these have queued. The line behind the first is that of one slot, with each project
taking its turns; what joins it later may go before.

Both who claims and who tells a job's place in the line read it here.
"""

# A step is queued in a job that is being cancelled where its answers are yet to be written.
# IS TRUE hides the status of jobs from the planner. By statistics of a minute ago no job may be unfinished,
# and it would read the index of these from end to end for each step, in place of the one job by its id.
ELIGIBLE = """
    steps.status = 'queued' AND (jobs.status IN ('queued', 'running', 'cancelling')) IS TRUE
    AND (steps.not_before IS NULL OR steps.not_before <= clock_timestamp())
"""

# The job of a step that nobody asked to wait runs on; a pause and a retry put it back to queued.
BROKEN_OFF = "steps.attempt > 0 AND jobs.status = 'running'"

# A project's first turn comes with its running steps, the second with one more, and so on. Of those who would
# then run as many, first who has to take fewer turns for it: the others' last turn is yet to come.
# `depth` says how far the line is formed. Steps are numbered as jobs are made; jobs' ids take longer to sort.
LINE = f"""
    WITH waiting AS (
        SELECT steps.id AS step_id, steps.name AS step, steps.position, steps.job_id,
               jobs.kind, jobs.priority, jobs.project_id,
               row_number() OVER (
                   PARTITION BY jobs.priority, jobs.project_id
                   ORDER BY ({BROKEN_OFF}) DESC, steps.position DESC, steps.id
               ) AS turn
        FROM steps JOIN jobs ON jobs.id = steps.job_id
        WHERE steps.queue = :queue AND {ELIGIBLE}
    ), heads AS (
        SELECT * FROM waiting WHERE turn <= :depth
    ), running AS (
        SELECT jobs.project_id, count(*) AS number
        FROM steps JOIN jobs ON jobs.id = steps.job_id
        WHERE steps.queue = :queue AND steps.status = 'running' GROUP BY jobs.project_id
    ), projects AS MATERIALIZED (
        SELECT heads.project_id, coalesce(running.number, 0) AS running,
               (SELECT max(attempts.started_at) FROM attempts
                WHERE attempts.queue = :queue AND attempts.project_id = heads.project_id) AS served_at
        FROM (SELECT DISTINCT project_id FROM heads) AS heads LEFT JOIN running USING (project_id)
    ), line AS (
        SELECT heads.*, row_number() OVER (
            ORDER BY priority DESC, running + turn, turn, served_at NULLS FIRST, position DESC, step_id
        ) AS place
        FROM heads JOIN projects USING (project_id)
    )
"""  # noqa: S608 - put together from constants
