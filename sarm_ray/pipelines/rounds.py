"""Work through chunks in rounds: what a dead process took with it is tried again, by itself, a bounded number of times.

Ray would retry a task whose process died for ever, and a frame that kills its decoder would hang the job. So nothing is
retried inside a pipeline: the pipeline goes on without the chunk, and the driver sees which chunks never reported. They make
the next round, each as a job of its own, so that a chunk that kills costs no other one. What is left after MAX_ATTEMPTS
rounds is given up. An exception of our own code is no dead process: it ends the run.

A lost machine is no fault of the chunks that it held: a round in which a node went away counts as no attempt. Long work goes
in waves, because Ray Data keeps some 4 kB for every chunk of a pipeline until it ends: the driver's memory is that of one.
"""

import contextlib
import gc
import logging
import re
import sys
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

import numpy as np
import ray
from ray.data import DataContext, Dataset
from ray.data.exceptions import UserCodeException

from sarm_ray import errors as our_errors
from sarm_ray.console import tell
from sarm_ray.errors import SarmRayError, name_list
from sarm_ray.pipelines.nodes import lost_nodes, node_ids
from sarm_ray.pipelines.stopping import Stop

MAX_ATTEMPTS = 3

# Rounds in a row that lost a node and finished nothing: then the machines last for less than a chunk, or a frame brings them
# down.
MAX_BARREN_ROUNDS = 10

WAVE_CHUNKS = 50_000  # 200 MB of the driver; at 10,000 frames/s the pools start anew every 20 minutes

_EXECUTOR_LOG = "ray.data._internal.execution.streaming_executor_state"
_EXCEPTIONS_LOG = "ray.data.exceptions"


def work_through(
    todo: np.ndarray,
    pipeline: Callable[[np.ndarray, bool], Dataset],
    record: Callable[[dict[str, Any], int], None],
    stop: Stop,
    quiet: bool = False,
    noun: str = "chunk",
    wave_chunks: int = WAVE_CHUNKS,
) -> np.ndarray:
    """Run a pipeline over chunks until each has reported, has been given up, or the run is asked to stop.

    Args:
        todo: (N, 2) int64, dataset and chunk, in ascending order.
        pipeline: of (todo, alone) makes the Ray dataset whose rows have `dataset` and `chunk` and whatever `record` wants;
            `alone` asks for one chunk per job.
        record: is called with each row and the number of the attempt.
        stop: where the run is asked to stop.
        quiet: say nothing of retries.
        noun: what a chunk is to the user.
        wave_chunks: at most so many in one pipeline.

    Returns:
        (M, 2) int64, chunks that were given up.

    Raises:
        SarmRayError, ray.exceptions.RayError: an error of the pipeline itself.
    """
    lost = [todo[:0]]
    for first in range(0, len(todo), wave_chunks):
        if stop.requested:
            break
        lost.append(_work_through_wave(todo[first : first + wave_chunks], pipeline, record, stop, quiet, noun))
    return np.concatenate(lost)


def _work_through_wave(
    todo: np.ndarray,
    pipeline: Callable[[np.ndarray, bool], Dataset],
    record: Callable[[dict[str, Any], int], None],
    stop: Stop,
    quiet: bool,
    noun: str,
) -> np.ndarray:
    attempt, barren = 1, 0
    while True:
        gone_before = node_ids(alive=False)
        reported, error = _run_round(todo, pipeline, record, stop, attempt, alone=attempt > 1 or barren > 0)
        barren = 0 if reported.any() else barren + 1
        todo = todo[~reported]
        if stop.requested or not len(todo):
            return todo[:0]
        left = f"{len(todo):,} {noun}{'s' if len(todo) > 1 else ''}"
        lost = lost_nodes(gone_before)
        if lost and barren < MAX_BARREN_ROUNDS:
            if not quiet:
                which = f"node{'s' if len(lost) > 1 else ''} {name_list(lost)}"
                tell([f"lost {which}, and {left} with it; done again by the nodes that are there"])
            continue
        if error is not None and not lost:
            raise error
        attempt += 1
        if attempt > MAX_ATTEMPTS:
            return todo
        if not quiet:
            tell([f"a worker process died with {left}; tried again by itself, {attempt} of {MAX_ATTEMPTS}"])


def _run_round(
    todo: np.ndarray,
    pipeline: Callable[[np.ndarray, bool], Dataset],
    record: Callable[[dict[str, Any], int], None],
    stop: Stop,
    attempt: int,
    alone: bool,
) -> tuple[np.ndarray, ray.exceptions.RayError | None]:
    """Run the pipeline once: which of the chunks have reported, (N,) bool, and what of Ray's own ended it too early."""
    reported, error = np.zeros(len(todo), dtype=bool), None
    keys = _keys(todo)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")  # see runtime.ONE_TASK_ATTEMPT
        dataset = pipeline(todo, alone)
    with stop.draining(), contextlib.closing(stream_rows(dataset)) as rows:
        try:
            for row in rows:
                reported[np.searchsorted(keys, _keys(np.array([[row["dataset"], row["chunk"]]])))] = True
                record(row, attempt)
        except ray.exceptions.RayError as failure:
            if _is_of_code(failure):
                raise
            error = failure
    del dataset, rows
    gc.collect()  # Ray Data keeps statistics of every block, in cycles that the next pipeline need not find here
    return reported, error


def stream_rows(dataset: Dataset) -> Generator[dict[str, Any], None, None]:
    """Rows of small results as they come; rows that died with a process are left out. However it ends, the workers go.

    Raises:
        SarmRayError, ray.exceptions.RayError: an exception in our own code, in whichever process.
    """
    with _errors_of_blocks() as errors:
        try:
            # closed by hand: an exception's traceback would keep the iterator, and that its actors, as long as it lives
            with DataContext.current(dataset.context), contextlib.closing(_rows(dataset)) as rows:
                for row in rows:
                    _raise_first(errors)
                    yield row
        except ray.exceptions.RayError as error:
            _forget_frames(error)
            raise cause_of(error) from None
        _raise_first(errors)


def _rows(dataset: Dataset) -> Generator[dict[str, Any], None, None]:
    # what is there is passed on at once: iter_rows holds a block back until the next one comes
    batches: Iterable[Any] = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    for batch in batches:
        yield from batch.to_pylist()


@contextlib.contextmanager
def _errors_of_blocks() -> Iterator[list[BaseException]]:
    """What went wrong with single blocks, which Ray Data tells its log alone; it stays off the screen.

    So does what Ray Data says, traceback and all, of a lost node before the first block (silence.py).
    """
    errors: list[BaseException] = []

    def collect(record: logging.LogRecord) -> bool:
        if record.exc_info and record.exc_info[1] is not None:
            _forget_frames(record.exc_info[1])
            errors.append(record.exc_info[1])
            return False
        return True

    def is_news(_: logging.LogRecord) -> bool:
        return not isinstance(sys.exc_info()[1], ray.exceptions.NodeDiedError)

    log, exceptions = logging.getLogger(_EXECUTOR_LOG), logging.getLogger(_EXCEPTIONS_LOG)
    log.addFilter(collect)
    exceptions.addFilter(is_news)
    try:
        yield errors
    finally:
        log.removeFilter(collect)
        exceptions.removeFilter(is_news)


def _raise_first(errors: list[BaseException]) -> None:
    """Raise the first error that was raised by code, not by the death of a process or node.

    A task that failed because its input went with the node that had made it is no error of code either.
    """
    for error in errors:
        if _is_of_code(error):
            raise cause_of(error)
    errors.clear()


def _is_of_code(error: BaseException) -> bool:
    cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
    return isinstance(cause, UserCodeException) or not isinstance(cause, ray.exceptions.RayError)


def _forget_frames(error: BaseException) -> None:
    """Take the traceback off an error and all that led to it: Ray Data's own frames, which would keep its actors alive.

    What was raised in another process has that one's traceback in its words.
    """
    left: list[BaseException | None] = [error]
    seen: set[int] = set()
    while left:
        link = left.pop()
        if link is not None and id(link) not in seen:
            seen.add(id(link))
            link.__traceback__ = None
            left += [link.__cause__, link.__context__]


def cause_of(error: BaseException) -> BaseException:
    """Our own error inside one of Ray's, else that one."""
    cause: BaseException | None = error
    # a RayTaskError takes the class of what it carries, with a traceback for its message
    while isinstance(cause, ray.exceptions.RayTaskError) or (cause is not None and not isinstance(cause, SarmRayError)):
        cause = getattr(cause, "cause", None) or cause.__cause__
    if cause is None:  # between processes Ray Data's wrapper loses what it was raised from, but for the words
        said = re.search(r"^sarm_ray\.errors\.(\w+): (.*)$", str(error), re.MULTILINE)
        cause = getattr(our_errors, said[1])(said[2]) if said and said[1] != "VideoError" else None
    if cause is None:
        return error
    if cause.args and isinstance(cause.args[0], str):  # Ray Data appends how to have it tried again
        cause.args = (cause.args[0].partition("\nFailed to apply UDF transform after ")[0], *cause.args[1:])
    return cause


def _keys(chunks: np.ndarray) -> np.ndarray:
    return chunks[:, 0] * (1 << 40) + chunks[:, 1]
