"""Jobs of a Ray cluster, through its dashboard: every question has a time-out, every refusal names its cure."""

import asyncio
import logging
import os
import time
from collections.abc import Callable
from typing import Any

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from ..errors import ClusterError
from . import ray_token

ANSWER_S = 30.0
"""Longest wait for an answer, seconds, where no configuration says another."""
_DEFAULT = "http://127.0.0.1:8265"  # Ray's own
_ADDRESS = "RAY_API_SERVER_ADDRESS"
_LOOK_S = 30.0  # so often a job that prints nothing is asked whether it is still there
_POLL_S = 0.5

for _name in ("dashboard_sdk", "job.sdk"):  # they tell of each upload and each connection
    logging.getLogger(f"ray.dashboard.modules.{_name}").setLevel(logging.WARNING)


class Jobs(JobSubmissionClient):
    """Ray's client of one cluster. ClusterError where the cluster does not answer, or refuses."""

    def __init__(self, url: str, timeout_s: float, headers: dict[str, str]) -> None:
        self.url, self.timeout_s = url, timeout_s
        os.environ[_ADDRESS] = url  # Ray prefers this, and RAY_ADDRESS, to what it is given
        try:
            super().__init__(url, headers=headers)
        except (RuntimeError, ValueError, KeyError, requests.RequestException) as error:
            raise _no_answer(url, f"what answers is no dashboard of Ray: {error}") from None

    def _do_request(self, method: str, endpoint: str, **options: Any) -> requests.Response:
        try:
            answer: requests.Response = super()._do_request(method, endpoint, timeout=self.timeout_s, **options)
        except AuthenticationError:
            raise ClusterError(
                f"{self.url}: the cluster refuses this token (HTTP 401 or 403); give its own: {ray_token.CURE}"
            ) from None
        except requests.RequestException as error:
            raise _no_answer(self.url, _reason(error, self.timeout_s)) from None
        return answer

    def _raise_error(self, answer: requests.Response) -> None:
        if answer.status_code == 404:
            raise ClusterError(f"{self.url}: {answer.text.strip()}; 'python -m pipeline list' names the jobs there are")
        raise ClusterError(f"{self.url}: HTTP {answer.status_code}: {_last_line(answer.text)}")

    def nodes(self) -> list[str]:
        """IP addresses of the nodes that are alive; a dashboard that has just started is given time to see them."""
        deadline = time.monotonic() + self.timeout_s
        while time.monotonic() < deadline:
            answer = self._do_request("GET", "/nodes?view=summary")
            if answer.status_code != 200:
                self._raise_error(answer)
            nodes = [node["raylet"] for node in answer.json()["data"]["summary"]]
            if alive := [node["nodeManagerAddress"] for node in nodes if node["state"] == "ALIVE"]:
                return alive
            time.sleep(_POLL_S)
        raise _no_answer(self.url, f"no node for {self.timeout_s:g} s")

    def submitted(self) -> dict[str, JobDetails]:
        """Each job by its name, the newest first."""
        jobs = {job.submission_id: job for job in self.list_jobs() if job.submission_id}
        return dict(sorted(jobs.items(), key=lambda entry: -(entry[1].start_time or 0)))

    def follow(self, job_id: str, show: Callable[[str], None]) -> JobDetails:
        """Hands the job's log to `show`, from its beginning, as it is written. -> the job, which has ended."""
        self.get_job_status(job_id)  # which refuses what is no job
        asyncio.run(self._follow(job_id, show))
        return self.ended(job_id)

    async def _follow(self, job_id: str, show: Callable[[str], None]) -> None:
        lines = self.tail_job_logs(job_id)
        try:
            while True:
                coming = asyncio.ensure_future(anext(lines, None))
                while not (await asyncio.wait({coming}, timeout=_LOOK_S))[0]:
                    self.get_job_status(job_id)  # or a cluster that has gone without a word would be waited for
                text = coming.result()
                if text is None:
                    return
                show(text)
        except (RuntimeError, OSError, aiohttp.ClientError) as error:
            self.get_job_status(job_id)
            raise _no_answer(self.url, f"the log of {job_id} broke off: {error}") from None

    def ended(self, job_id: str) -> JobDetails:
        """The job once it has ended. ClusterError where it has not within `timeout_s`."""
        deadline = time.monotonic() + self.timeout_s
        while not (job := self.get_job_info(job_id)).status.is_terminal():
            if time.monotonic() > deadline:
                raise ClusterError(f"{self.url}: {job_id} is {job.status} still after {self.timeout_s:g} s")
            time.sleep(_POLL_S)
        return job


def connect(address: str | None, timeout_s: float = ANSWER_S) -> Jobs:
    """The cluster whose dashboard is at this address; None: at RAY_API_SERVER_ADDRESS, else on this machine.

    A token is sent if, and only if, the cluster asks for one, whatever RAY_AUTH_MODE says.
    """
    url = (address or os.environ.get(_ADDRESS) or _DEFAULT).rstrip("/")
    url = url if "://" in url else f"http://{url}"
    if not url.startswith(("http://", "https://")):
        raise ClusterError(
            f"--address {url}: expected http://HOST:PORT of the cluster's dashboard, port 8265 unless 'ray start "
            "--dashboard-port' said otherwise"
        )
    try:
        asked = requests.get(f"{url}/api/version", timeout=timeout_s).status_code
    except requests.RequestException as error:
        raise _no_answer(url, _reason(error, timeout_s)) from None
    return Jobs(url, timeout_s, _token(url) if asked in (401, 403) else {})


def exit_code(job: JobDetails) -> int:
    """0 for a job that has succeeded; its own where it has failed by itself; 1 where something else ended it."""
    if job.status == JobStatus.SUCCEEDED:
        return 0
    return max(job.driver_exit_code or 0, 0) or 1


def _token(url: str) -> dict[str, str]:
    if not ray_token.is_known():
        raise ClusterError(f"{url}: the cluster asks for a token (HTTP 401), and none is known here; {ray_token.CURE}")
    return ray_token.http_headers()


def _reason(error: requests.RequestException, timeout_s: float) -> str:
    if isinstance(error, requests.Timeout):
        return f"silent for {timeout_s:g} s"
    return _last_line(str(error)).rpartition(": ")[2].strip(" \"'()") or type(error).__name__


def _last_line(text: str) -> str:
    """Of a traceback, which Ray closes by dots on lines of their own."""
    return next((line for line in reversed(text.splitlines()) if line.strip(" .")), "")


def _no_answer(url: str, reason: str) -> ClusterError:
    return ClusterError(
        f"{url}: no Ray cluster answers there ({reason}); give the address of its dashboard by --address or "
        f"{_ADDRESS}, or start it with 'ray start --head'"
    )
