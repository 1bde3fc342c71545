"""What can go wrong through no fault of ours, in words for the user.

    SarmRayError            shown as one line; the command exits with 2
    |- ConfigError          a flag or a key of the config file
    |- DatasetError         the dataset as a whole (a single bad chunk is data, not an exception of the run)
    |- CheckpointError      a reward model
    |- EncoderError         an image encoder
    |- AnnotatorError       a VLM that cannot be used at all; it stops a run
    |  '- NoAnswerError     what it did not answer about one episode; a pipeline records it and goes on
    |- OutputExistsError    we do not overwrite unasked, nor write where another run does
    |- RunInterruptedError  asked to stop; what is finished is kept (exit code 130)
    |- StoreError           a remote store that does not let us in; it stops a run, which goes on when started again
    |  '- StoreInterruptedError   an exchange with it that broke off; counts against the file, if there is one
    '- VideoError           one file or frame; a pipeline records it in failed.parquet and goes on

Every error names the thing, the place and the way out. All survive pickling, because Ray carries them between processes.
"""

import difflib
from collections.abc import Iterable


class SarmRayError(Exception):
    """Base of all errors that a user can act on."""


class ConfigError(SarmRayError, ValueError):
    """A flag or config key that cannot be used."""


class DatasetError(SarmRayError, ValueError):
    """A dataset that cannot be used as it is."""


class CheckpointError(SarmRayError, ValueError):
    """A reward-model checkpoint that cannot be used as it is."""


class EncoderError(SarmRayError, ValueError):
    """An encoder that cannot be loaded or does not fit the checkpoint."""


class AnnotatorError(SarmRayError):
    """A VLM that cannot be loaded or reached, or does not let us in."""


class NoAnswerError(AnnotatorError):
    """A VLM that refused one question, or did not answer it in time, after all retries."""


class OutputExistsError(SarmRayError):
    """An output is already there and --overwrite was not given, or another run is writing it."""


class RunInterruptedError(SarmRayError):
    """The user or the cluster asked the run to stop, and it did, between chunks."""


class TrainingError(SarmRayError):
    """Training that cannot go on: a loss that is no number, workers that are not there or keep dying."""


class StoreError(SarmRayError):
    """A store that cannot be reached, that refuses us, or a disk that is full."""


class StoreInterruptedError(StoreError, ConnectionError):
    """A file of a remote store that came incompletely, after all retries."""


class VideoError(SarmRayError):
    """A frame that cannot be read.

    Args:
        path: the video or data file.
        frame: the frame inside the episode, or None where the whole file is unreadable.
        cause: what the decoder said.
    """

    def __init__(self, path: str, frame: int | None, cause: str):
        super().__init__(path, frame, cause)
        self.path, self.frame, self.cause = path, frame, cause

    def __str__(self) -> str:
        where = self.path if self.frame is None else f"{self.path}: frame {self.frame}"
        return f"{where}: {self.cause}"


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing where no known name is near."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def by_nearness(name: str, known: Iterable[str]) -> list[str]:
    """Known names, the most similar one first."""
    return sorted(known, key=lambda each: -difflib.SequenceMatcher(None, name, each).ratio())


def name_list(names: Iterable[str], limit: int = 12) -> str:
    """Comma-separated names, the rest counted."""
    names = list(names)
    shown = ", ".join(names[:limit])
    return f"{shown} and {len(names) - limit} more" if len(names) > limit else shown or "none"
