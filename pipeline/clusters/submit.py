"""`submit`: this tree and a run file go to a Ray cluster as a job, once for the same work.

The job's name is a digest of what it is to do and of the code that does it. While a job of that name is at work, the
same command finds it; one that has failed, was stopped, or went with its cluster is submitted again under the next
number, and goes on where it stopped, as every command does that is given again.
"""

import shlex
import socket
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ray.job_submission import JobDetails, JobStatus

from ..data.sources import can_grow
from ..errors import ClusterError, ConfigError
from ..files import digest
from ..redaction import redacted
from ..runfile.config import Config
from ..runfile.configfile import dump
from ..runfile.keyroles import identity
from ..terminal import Terminal
from .jobs import Jobs, connect, exit_code
from .shared_paths import check_paths, tracking_uri
from .shipment import CodeTree

RUN_FILE = "run.yaml"
INTERRUPTED = 130


@dataclass(frozen=True)
class Work:
    """One command and what it works on."""

    command: str
    """`run`, `nightly`, `sweep` or a stage."""
    configs: Sequence[Config]
    """One; of a sweep that of each combination."""
    text: str = ""
    """The run file of a sweep, as it was written."""
    overrides: Sequence[str] = ()
    """Those of a sweep, which make its combinations."""

    @property
    def config(self) -> Config:
        """Of a sweep the first."""
        return self.configs[0]

    def name(self, code: str) -> str:
        """Name of its jobs but for the number of the attempt. code: digest of the tree."""
        where = [self.config.name, self.config.output, tracking_uri(self.config)]
        key = digest([self.command, [identity(config) for config in self.configs], where, code])
        return f"{self.config.name}-{self.command}-{key[:8]}"

    def settings(self) -> str:
        """Digest of all keys, those included that decide no result."""
        return digest([config.model_dump(mode="json") for config in self.configs])

    def run_file(self) -> str:
        """What the job reads: all keys as they are here; inside a job the cluster is `auto`."""
        if self.command == "sweep":
            return self.text
        cluster = self.config.cluster.model_copy(update={"address": "auto"})
        tracking = self.config.tracking.model_copy(update={"uri": tracking_uri(self.config)})
        return dump(self.config.model_copy(update={"cluster": cluster, "tracking": tracking}))

    def arguments(self) -> list[str]:
        """Of the job's command, after the run file. ConfigError where they show a secret, which the dashboard shows."""
        if self.command != "sweep":
            return []
        uri = tracking_uri(self.config)
        arguments = [*self.overrides, "cluster.address=auto", *([f"tracking.uri={uri}"] if uri else [])]
        for argument in arguments:
            if redacted(argument) != argument:
                raise ConfigError(
                    f"{redacted(argument)}: the cluster's dashboard would show the secret in it; write it in the file"
                )
        return arguments

    @property
    def once(self) -> bool:
        """Whether nothing can be left to do once it has succeeded."""
        return self.command != "nightly" and not any(can_grow(config.data.source) for config in self.configs)


def run_submit(work: Work, address: str | None, follow: bool, terminal: Terminal) -> int:
    """Submits the work, unless a job is at it. -> 0, or with `follow` the exit code of the job.

    ConfigError where the tree is too large or the cluster's nodes would not find a file; ClusterError where the
    cluster does not answer within cluster.timeout_s.
    """
    tree, arguments = CodeTree(), work.arguments()
    terminal.line(f"the code is {tree}")
    tree.check()
    jobs = connect(address, work.config.cluster.timeout_s)
    nodes = jobs.nodes()
    here = len(nodes) == 1 and _is_this_machine(nodes[0])
    for config in work.configs:
        check_paths(config, len(nodes), here)
    name = work.name(tree.digest)
    number, last = _last_attempt(jobs, name)
    found = last is not None and not _is_over(last, work)
    job_id = _named(name, number if found else number + 1)
    if not found:
        found = not _send(jobs, job_id, tree, work, arguments, Path.cwd() if here else None)
    terminal.facts({"job": job_id, "cluster": f"{jobs.url}, {len(nodes)} node{'s' * (len(nodes) > 1)}"})
    if found:
        _show_found(jobs.get_job_info(job_id), work, terminal)
    if follow:
        return follow_job(jobs, job_id, terminal)
    terminal.facts({"follow it": f"python -m pipeline logs {job_id} --follow --address {jobs.url}"})
    return 0


def follow_job(jobs: Jobs, job_id: str, terminal: Terminal) -> int:
    """Shows the job's log until it ends. -> its exit code; 130 on Ctrl-C, which leaves it running."""
    try:
        job = jobs.follow(job_id, terminal.text)
    except KeyboardInterrupt:
        terminal.facts(
            {
                "still running": job_id,
                "follow it": f"python -m pipeline logs {job_id} --follow --address {jobs.url}",
                "stop it": f"python -m pipeline cancel {job_id} --address {jobs.url}",
            }
        )
        return INTERRUPTED
    terminal.facts({str(job.status).lower(): f"{job_id}, exit code {exit_code(job)}"})
    return exit_code(job)


def _named(name: str, attempt: int) -> str:
    return name if attempt == 1 else f"{name}-{attempt}"


def _last_attempt(jobs: Jobs, name: str) -> tuple[int, JobDetails | None]:
    """The number and the job of the last attempt; 0 and None where there is none."""
    number, last, known = 0, None, jobs.submitted()
    while (job := known.get(_named(name, number + 1))) is not None:
        number, last = number + 1, job
    return number, last


def _is_over(job: JobDetails, work: Work) -> bool:
    """Whether the work has to be given to another job."""
    return bool(job.status.is_terminal() and not (job.status == JobStatus.SUCCEEDED and work.once))


def _send(jobs: Jobs, job_id: str, tree: CodeTree, work: Work, arguments: Sequence[str], start: Path | None) -> bool:
    """-> whether this made the job; False where another process was quicker.

    start: the folder that relative paths are meant from; None: there are none.
    """
    command = ["python", "-P", "-m", "pipeline", work.command]  # -P: the code that was sent, whatever lies in `start`
    enter = f"cd {shlex.quote(str(start))} && " if start else ""
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder, "job.zip")
        tree.pack(archive, {RUN_FILE: work.run_file()})
        try:
            jobs.submit_job(
                entrypoint=f'FILE="$PWD/{RUN_FILE}"; {enter}exec {shlex.join(command)} "$FILE" {shlex.join(arguments)}',
                submission_id=job_id,
                runtime_env={"working_dir": str(archive)},
                metadata={"command": work.command, "settings": work.settings()},
            )
        except ClusterError as error:
            if "already exists" in str(error):
                return False
            raise
    return True


def _show_found(job: JobDetails, work: Work, terminal: Terminal) -> None:
    terminal.line(f"it is there already: {str(job.status).lower()}")
    if (job.metadata or {}).get("settings") != work.settings():
        terminal.line("with other keys than these, which decide no result; to change them, cancel it and submit again")


def _is_this_machine(address: str) -> bool:
    """Whether an IP address is one of this machine's, to which alone a socket can be bound."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True
