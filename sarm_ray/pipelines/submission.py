"""A command as a Ray job, its log on this terminal, and the exit code that it had.

`ray job submit` exits with 1 whatever its command exited with, and ours mean different things by 1, 2 and 130. The job
server keeps the code itself; so this is `ray job submit` through Ray's SDK, with the code asked for at the end.
"""

import asyncio
import contextlib
import logging
import os
import signal
import time
from typing import Any

import aiohttp
import click
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient
from ray.util.state import list_nodes

from sarm_ray.console import say
from sarm_ray.errors import ConfigError

INTERRUPTED = 130
LOST = 75  # EX_TEMPFAIL: the job ended without a code of its own, as when the head node dies; a rerun goes on

POLL_S = 0.5
RECONNECT_S = 3.0
SILENT_S = 120.0  # then the connection is made anew: one that was cut without a word looks just like a quiet job
UNREACHABLE_S = 300.0  # a head that is gone for longer is not awaited
NODES_S = 600.0
AGENT_S = 60.0


def exit_code(client: JobSubmissionClient, job: str) -> int | None:
    """What the command of a job exited with; None while it runs.

    A signal that killed it counts as in a shell. A job that was stopped counts as interrupted.
    """
    info = client.get_job_info(job)
    if not info.status.is_terminal():
        return None
    if info.status == JobStatus.STOPPED:
        return INTERRUPTED
    if info.driver_exit_code is None:
        if info.status == JobStatus.SUCCEEDED:
            return 0
        say(f"{job} was lost: {info.message}")
        return LOST
    return info.driver_exit_code if info.driver_exit_code >= 0 else 128 - info.driver_exit_code


class Log:
    """A job's log on this terminal, each character once, however often the connection breaks."""

    def __init__(self, client: JobSubmissionClient, job: str) -> None:
        self.client = client
        self.job = job
        self.shown = 0

    def show(self) -> None:
        """Until the job ends, or nothing has come for a while.

        Raises:
            OSError, RuntimeError: the connection broke.
        """
        try:
            asyncio.run(self._show())
        except aiohttp.ClientError as error:
            raise ConnectionError(str(error)) from error

    async def _show(self) -> None:
        come = 0  # the server tells all of it every time
        texts = self.client.tail_job_logs(self.job)
        with contextlib.suppress(StopAsyncIteration):
            while True:
                text = await asyncio.wait_for(anext(texts), SILENT_S)
                click.echo(text[max(self.shown - come, 0) :], nl=False)
                come += len(text)
                self.shown = max(self.shown, come)


def wait(log: Log) -> int:
    """Show a job's log until it ends, and return its command's exit code; LOST after five minutes without a head."""
    lost_since = None
    while True:
        with contextlib.suppress(OSError, RuntimeError):
            log.show()
        try:
            code = exit_code(log.client, log.job)
            if code is not None:
                return code
            lost_since = None
            time.sleep(POLL_S)  # the command has ended, and the job server has not noticed yet
        except (OSError, RuntimeError) as error:
            if "status code 404" in str(error):  # a new head, which knows nothing of what the old one ran
                say(f"{log.job} was lost with its head; the same line goes on where it was")
                return LOST
            lost_since = lost_since or time.monotonic()
            if time.monotonic() - lost_since > UNREACHABLE_S:
                say(f"the cluster has been out of reach for {UNREACHABLE_S:.0f} s ({error})")
                return LOST
            time.sleep(RECONNECT_S)


def wait_or_leave(client: JobSubmissionClient, job: str, stop: bool) -> int:
    """Like `wait`. SIGINT and SIGTERM leave the job running and say so; or, where it is this process's own, stop it."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    log = Log(client, job)
    try:
        return wait(log)
    except KeyboardInterrupt:
        if not stop:
            say(f"{job} goes on; ray job logs --follow {job} shows it, ray job stop {job} stops it")
            return INTERRUPTED
    say(f"stopping {job}: work in flight is being finished; once more to leave at once")
    try:
        client.stop_job(job)
        return wait(log)
    except KeyboardInterrupt:
        return INTERRUPTED


def wait_for_nodes(address: str, num_nodes: int) -> None:
    """Until a cluster has that many nodes.

    Raises:
        ConfigError: ten minutes later it still has not.
    """
    until = time.monotonic() + NODES_S
    living: dict[str, Any] = {"filters": [("state", "=", "ALIVE")], "raise_on_missing_output": False}
    while (
        alive := len(list_nodes(address=address, **living))
    ) < num_nodes:  # without it, one dead node is an exception
        if time.monotonic() > until:
            raise ConfigError(f"{alive} of {num_nodes} nodes came within {NODES_S:.0f} s")
        time.sleep(POLL_S)


def connect(address: str | None) -> JobSubmissionClient:
    """A client of the job server.

    Raises:
        ConfigError: nobody answers there, or the token is wrong.
    """
    if address:  # Ray lets these variables win over what it is told
        os.environ.pop("RAY_ADDRESS", None)
        os.environ["RAY_API_SERVER_ADDRESS"] = address
    try:
        return JobSubmissionClient(address)
    except (OSError, RuntimeError, ValueError, AuthenticationError) as error:
        where = address or "RAY_ADDRESS, which is to be http://HEAD:8265"
        raise ConfigError(f"no Ray job server answers at {where} ({str(error).splitlines()[0]})") from error


def submit(client: JobSubmissionClient, **job: Any) -> None:
    """Submit a job, as soon as the cluster takes any: a head that answers already may have no agent to start one yet.

    Raises:
        ConfigError: it took none for a minute, or never will take this one.
    """
    until = time.monotonic() + AGENT_S
    while True:
        try:
            client.submit_job(**job)
            return
        except (OSError, RuntimeError, ValueError) as error:
            if "No available agent" not in str(error) or time.monotonic() > until:
                raise ConfigError(f"the cluster refuses the job ({str(error).strip().splitlines()[-1]})") from error
            time.sleep(POLL_S)


def run_job(
    command: str,
    *,
    address: str | None,
    name: str,
    metadata: dict[str, str],
    runtime_env: dict[str, Any],
    num_nodes: int | None = None,
    stop: bool = False,
) -> int:
    """Submit a shell command, show its log, and return its exit code.

    Args:
        command: of the job.
        address: of the job server; None is RAY_ADDRESS.
        name: submission id.
        metadata: what the dashboard shows beside it.
        runtime_env: of all its processes.
        num_nodes: that the cluster must have before.
        stop: SIGINT and SIGTERM stop the job instead of leaving it.

    Raises:
        ConfigError: nobody answers, the nodes do not come, or the job is refused.
    """
    for logger in list(logging.root.manager.loggerDict):
        if logger.startswith("ray."):  # the SDK's have levels of their own
            logging.getLogger(logger).setLevel(logging.ERROR)
    client = connect(address)
    if num_nodes:
        wait_for_nodes(client.get_address(), num_nodes)
    submit(client, entrypoint=command, submission_id=name, metadata=metadata, runtime_env=runtime_env)
    say(f"job       {name} ({', '.join(f'{key} {value}' for key, value in metadata.items())})")
    return wait_or_leave(client, name, stop)
