"""How the running instance is: processes, jobs, how loaded they are, lag, last checkpoint."""

from __future__ import annotations

import time
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from contracts.errors import FlyballError
from ops import flink_jobs, instance, kafka
from ops.home import Home


def running_domains(home: Home) -> list[str]:
    """Domains with jobs on the running cluster."""
    try:
        found = {job.name.split(".")[0] for job in flink_jobs.states(home) if job.state == "RUNNING"}
    except httpx.HTTPError:
        return []
    return sorted(found)


def gather(home: Home) -> dict[str, Any]:
    """Everything `status` prints. `state` is ready, starting, failed, stopped or absent."""
    state = home.read_state()
    found: dict[str, Any] = {
        "state": state.get("state", "absent") if instance.is_running(home) else "absent",
        "error": state.get("error"),
        "home": str(home.path),
        "processes": [],
        "jobs": [],
        "lag": {},
    }
    if found["state"] == "absent":
        if state.get("state") == "failed":
            found["state"] = "failed"
        return found
    found |= {"bootstrap_servers": state.get("bootstrap_servers"), "rest_url": state.get("rest_url")}
    memory = instance.memory_mib(home)
    processes: Any = state.get("processes") or {}
    found["processes"] = [
        {"name": name, **entry, "memory_mib": round(memory.get(name, 0))}
        for name, entry in processes.items()
    ]
    try:
        for job in flink_jobs.states(home):
            if job.state == "FINISHED":  # a SQL query; our own jobs never end
                continue
            age_s = None
            if job.last_checkpoint_ms is not None:
                age_s = round(time.time() - job.last_checkpoint_ms / 1000, 1)
            row: dict[str, Any] = {
                "name": job.name,
                "state": job.state,
                "job_id": job.job_id,
                "restarts": flink_jobs.restarts(home, job.job_id),
                "checkpoints_completed": job.checkpoints_completed,
                "last_checkpoint_age_s": age_s,
                "last_checkpoint": job.last_checkpoint_path,
            }
            if job.state == "RUNNING" and (pressure := flink_jobs.pressure(home, job.job_id)) is not None:
                row |= {"busy": pressure.busy, "back_pressured": pressure.back_pressured}
            if job.state in ("FAILED", "RESTARTING", "FAILING"):
                row["cause"] = flink_jobs.root_cause(home, job.job_id)
            found["jobs"].append(row)
        for domain in running_domains(home):
            lags = kafka.LagReader(str(state["bootstrap_servers"]), domain, flink_jobs.jobs_of(domain))
            found["lag"][domain] = lags.lags()
            lags.close()
    except (httpx.HTTPError, FlyballError) as error:
        found["error"] = f"{type(error).__name__}: {error}"
    return found


def show(found: dict[str, Any], console: Console) -> None:
    console.print(f"instance in {found['home']}: [bold]{found['state']}[/bold]")
    if found["error"]:
        console.print(f"[red]{found['error']}[/red]")
    if not found["processes"]:
        return
    console.print(f"Kafka {found['bootstrap_servers']}   Flink {found['rest_url']}")
    for title, rows, columns in (
        ("processes", found["processes"], ("name", "pid", "is_ready", "restarts", "memory_mib")),
        ("jobs", found["jobs"], ("name", "state", "busy", "back_pressured", "restarts", "checkpoints_completed",
                                 "last_checkpoint_age_s", "cause")),
    ):  # fmt: skip
        table = Table(title=title, box=None, title_justify="left")
        for column in columns:
            table.add_column(column.replace("_", " "))
        for row in rows:
            table.add_row(*(str(row.get(column, "")) for column in columns))
        console.print(table)
    for domain, lags in found["lag"].items():
        console.print(f"lag {domain}: " + ", ".join(f"{k} {v}" for k, v in lags.items()))
