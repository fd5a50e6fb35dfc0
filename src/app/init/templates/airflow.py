"""tidegate pipeline `@NAME@` in Airflow 3: a run every 15 minutes, and re-runs of single days.

Put this file (or a link to it) into the DAGs folder. It needs the standard provider only; `tidegate` must be installed
where tasks run, and the project folder must be there. TIDEGATE, TIDEGATE_PROJECT and TIDEGATE_TARGET override the paths.

  airflow dags test @DAG@                             one run now
  airflow dags test @DAG@_day 2026-03-01              event day 2026-03-01 again
  airflow backfill create --dag-id @DAG@_day --from-date 2026-03-01 --to-date 2026-03-31
"""

from __future__ import annotations

import json
import os
from datetime import datetime, timedelta, timezone

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG, CronDataIntervalTimetable
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

TIDEGATE = os.environ.get("TIDEGATE", "@TIDEGATE@")
PROJECT = os.environ.get("TIDEGATE_PROJECT", "@PROJECT@")
PIPELINE = f"{PROJECT}/pipelines/@FILE@"

# Exit codes of tidegate: trying again cannot help a wrong command, bad data, lost offsets, a wrong file.
PERMANENT = {2: "usage", 65: "data broke a rule", 66: "offsets lost", 78: "configuration"}
NO_DATA = 99


class Tidegate(BashOperator):
    """Runs tidegate. Its result is the XCom value; nothing to read is "skipped"; what cannot get better fails at once,
    everything else (broker or storage away, another runner) is tried again. A killed task gets SIGTERM: the batch that
    was begun is finished first, and whatever happens then, the next run goes on from there."""

    def __init__(self, *, command: str, **kwargs):
        super().__init__(
            bash_command=f"exec {TIDEGATE} {command}",
            append_env=True,
            env={
                "TIDEGATE_OUTPUT": "json",
                "TIDEGATE_PROGRESS": "lines",
                "TIDEGATE_NO_DATA_EXIT_CODE": str(NO_DATA),
            },
            **kwargs,
        )

    def execute(self, context):
        ended = self.subprocess_hook.run_command(["bash", "-c", self.bash_command], env=self.get_env(context))
        if ended.exit_code == NO_DATA:
            raise AirflowSkipException("nothing to read")
        try:
            result = json.loads(ended.output)  # the last line
        except ValueError:
            result = {}
        if ended.exit_code == 0:
            return result
        why = result.get("error", {}).get("message", "see the log")
        text = f"tidegate ended with exit code {ended.exit_code}: {why}"
        if ended.exit_code in PERMANENT:
            raise AirflowFailException(f"{text} ({PERMANENT[ended.exit_code]}: not tried again)")
        raise AirflowException(text)


DEFAULTS = {
    "retries": 3,
    "retry_delay": timedelta(minutes=1),
    "retry_exponential_backoff": True,
    "max_retry_delay": timedelta(minutes=15),
}

# A bare cron string would make intervals of no width in Airflow 3: CronDataIntervalTimetable names the time covered.
with DAG(
    "@DAG@",
    schedule=CronDataIntervalTimetable("*/15 * * * *", timezone="UTC"),
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULTS,
    tags=["tidegate"],
):
    Tidegate(task_id="run", command=f"run {PIPELINE} --trigger available_now")

# A day again: after a change of the SQL, or when something was wrong. Twice gives the same tables, and the run above goes on
# beside it. `airflow backfill create` makes the runs; the schedule only says that an interval is a day.
with DAG(
    "@DAG@_day",
    schedule=CronDataIntervalTimetable("0 0 * * *", timezone="UTC"),
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    max_active_runs=1,
    is_paused_upon_creation=True,
    default_args=DEFAULTS,
    tags=["tidegate"],
):
    Tidegate(
        task_id="backfill",
        # The day that the run stands for, however it was made: by the schedule, a backfill, or by hand for a date.
        command=f"backfill {PIPELINE} --date " + "{{ (logical_date or data_interval_start) | ds }}",
    )
