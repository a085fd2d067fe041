"""The commands `submit`, `status`, `logs`, `cancel` and `list`: jobs on a Ray cluster."""

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from .figures import duration
from .runfile.config import Config
from .runfile.configfile import load
from .terminal import Terminal

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

    from .clusters.submit import Work

_LAST_LINES = 10


def add_job_commands(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", submittable: Sequence[str]
) -> None:
    """submittable: the commands that a job can be."""
    submit = commands.add_parser("submit", help="run on a Ray cluster as a job, once for the same work")
    submit.add_argument("file", type=Path, metavar="FILE", help="run file")
    submit.add_argument("overrides", nargs="*", metavar="key=value", help="instead of what the file says")
    submit.add_argument(
        "--command", dest="work", choices=submittable, default="run", metavar="NAME", help="what to run; default: run"
    )
    status = commands.add_parser("status", help="what has become of a job; of one that failed, its last lines")
    logs = commands.add_parser("logs", help="what a job has printed")
    cancel = commands.add_parser("cancel", help="stop a job; submitted again, it goes on from its last checkpoint")
    jobs = commands.add_parser("list", help="the jobs of a cluster")
    for command in (status, logs, cancel):
        command.add_argument("job", metavar="JOB", help="name of the job, as submit and list say it")
    for command in (submit, logs):
        command.add_argument(
            "--follow", action="store_true", help="print its log as it is written; the exit code is the job's"
        )
    executed = {submit: _submit, status: _status, logs: _logs, cancel: _cancel, jobs: _list}
    for command, execute in executed.items():
        command.add_argument(
            "--address", metavar="URL", help="of the cluster's dashboard; default: RAY_API_SERVER_ADDRESS, or this host"
        )
        command.set_defaults(execute=execute)


def _submit(options: argparse.Namespace) -> int:
    work = _work_of(options)
    from .clusters.submit import run_submit

    return run_submit(work, options.address, options.follow, Terminal())


def _list(options: argparse.Namespace) -> None:
    from .clusters.jobs import connect

    rows = [_row(job) for job in connect(options.address).submitted().values()]
    Terminal().table([("job", "status", "started", "took"), *rows], "<<<>")


def _logs(options: argparse.Namespace) -> int:
    from .clusters.jobs import connect
    from .clusters.submit import follow_job

    jobs, terminal = connect(options.address), Terminal()
    if options.follow:
        return follow_job(jobs, options.job, terminal)
    terminal.text(jobs.get_job_logs(options.job))
    return 0


def _cancel(options: argparse.Namespace) -> None:
    from .clusters.jobs import connect

    jobs, terminal = connect(options.address), Terminal()
    stopped = jobs.stop_job(options.job)
    job = jobs.ended(options.job)
    terminal.line("stopped; submitted again, it goes on from its last checkpoint" if stopped else "it had ended")
    terminal.facts(_facts(job))


def _status(options: argparse.Namespace) -> None:
    from .clusters.jobs import connect

    jobs, terminal = connect(options.address), Terminal()
    job = jobs.get_job_info(options.job)
    terminal.facts(_facts(job))
    if job.status == "FAILED":
        last = jobs.get_job_logs(options.job).splitlines()[-_LAST_LINES:]
        terminal.facts({f"last {len(last)} lines": ""})
        terminal.text("".join(f"  {line}\n" for line in last))


def _work_of(options: argparse.Namespace) -> "Work":
    if options.work == "sweep":
        from .sweeps.combinations import combine

        configs = [combination.config for combination in combine(options.file, options.overrides)]
    else:
        configs = [load(options.file, options.overrides, Config)]
    from .clusters.submit import Work

    if options.work == "sweep":
        return Work(options.work, configs, options.file.read_text(encoding="utf-8-sig"), options.overrides)
    return Work(options.work, configs)


def _row(job: "JobDetails") -> tuple[str, str, str, str]:
    began, ended = job.start_time, job.end_time
    took = duration((ended - began) / 1000) if began and ended else ""
    return job.submission_id or "", str(job.status), _when(began), took


def _facts(job: "JobDetails") -> dict[str, str]:
    from .clusters.jobs import exit_code

    _, status, began, took = _row(job)
    facts = {"job": job.submission_id or "", "status": status, "started": began, "took": took}
    if job.status.is_terminal():
        facts["exit code"] = str(exit_code(job))
    if job.status == "FAILED" and job.driver_exit_code is None:  # by what Ray did, not by the program
        facts["reason"] = (job.message or "").strip()
    return {name: fact for name, fact in facts.items() if fact}


def _when(milliseconds: int | None) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC") if milliseconds else ""
