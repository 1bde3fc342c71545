"""From waiting frames to scores: groups of frames of many sessions, each through decode, encode, window, score.

While one group is worked on the next frames wait, and the next group is all of them: under a light load a frame goes alone
and at once, under a heavy one the groups grow until the networks are full. A session has one group under way at a time, so
its frames stay in order.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from sarm_ray.core.live_frames import Frame
from sarm_ray.core.live_protocol import LiveLimits, Refusal
from sarm_ray.core.live_session import HeadScore, Session, Waiting
from sarm_ray.data.images import decode_image
from sarm_ray.model.scorer import HeadScores
from sarm_ray.pipelines.serving.plan import LiveModel

Encode = Callable[[np.ndarray], Awaitable[tuple[np.ndarray, float]]]
Score = Callable[[np.ndarray, np.ndarray, np.ndarray], Awaitable[tuple[dict[str, HeadScores], float]]]
GROUPS_UNDER_WAY = 2  # one is encoded while another one is scored
DECODERS = 2
log = logging.getLogger("sarm_ray.serve")


class Source(Protocol):
    """A session as the engine sees it."""

    session: Session
    text: np.ndarray
    busy: bool

    def send(self, message: dict[str, Any]) -> None: ...

    def show(self, image: np.ndarray, reply: dict[str, Any]) -> None: ...


class Engine:
    """The groups of one replica.

    Args:
        model: what is served.
        encode, score: the networks.
        most: frames in a group.
        observe: told of each group's size and timings, in seconds.
    """

    def __init__(self, model: LiveModel, encode: Encode, score: Score, most: int, observe: Callable[..., None]):
        self.model, self.encode, self.score, self.most, self.observe = model, encode, score, most, observe
        self.sources: dict[Source, None] = {}  # those with frames waiting, in order of their coming
        self.under_way = 0
        self.decoders = ThreadPoolExecutor(DECODERS, thread_name_prefix="decode")
        self.tasks: set[asyncio.Task] = set()

    def wake(self, source: Source) -> None:
        """A source has frames waiting."""
        self.sources[source] = None
        self._start_groups()

    def _start_groups(self) -> None:
        while self.under_way < GROUPS_UNDER_WAY:
            group = self._take()
            if not group:
                return
            self.under_way += 1
            task = asyncio.get_running_loop().create_task(self._run(group))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    def _take(self) -> list[tuple[Source, Waiting]]:
        """The next group: one frame of each source whose turn it is, more where there is room."""
        ready = [source for source in self.sources if not source.busy][: self.most]
        group: list[tuple[Source, Waiting]] = []
        now = time.monotonic()
        for place, source in enumerate(ready):
            share = (self.most - len(group)) // (len(ready) - place)
            group += [(source, item) for item in source.session.take(share, now)]
            source.busy = True
            del self.sources[source]
        return group

    async def _run(self, group: list[tuple[Source, Waiting]]) -> None:
        try:
            await self.work(group)
        except Exception as error:  # the sessions live on; what the networks did not answer is counted as dropped
            log.exception("a group of %d frames was lost", len(group))
            message = f"the frame could not be scored ({type(error).__name__}); it is dropped"
            for source, item in group:
                source.session.counts.num_dropped += not item.frame.replayed
                source.send(Refusal("internal", message, time_s=item.frame.time_s).as_object())
        finally:
            self.under_way -= 1
            for source, _ in group:
                source.busy = False
                if source.session.num_waiting:
                    self.sources[source] = None
            self._start_groups()

    async def work(self, group: Sequence[tuple[Source, Waiting]]) -> None:
        """Take a group through; every frame is answered."""
        if not group:
            return
        begun = time.monotonic()
        loop = asyncio.get_running_loop()
        size, limits = self.model.encoder.image_size, self.model.limits
        frames = [item.frame for _, item in group]
        decoded = await loop.run_in_executor(self.decoders, _decode_frames, frames, size, limits)
        decode_s = time.monotonic() - begun
        good = []
        for (source, item), images in zip(group, decoded, strict=True):
            if isinstance(images, Refusal):
                source.send(Refusal(images.code, images.message, time_s=item.frame.time_s).as_object())
            else:
                good.append((source, item, images))
        if not good:
            return
        features, encode_s = await self.encode(np.concatenate([images for _, _, images in good]))
        features = features.reshape(len(good), -1)  # the cameras side by side
        placed = []
        for (source, item, images), feature in zip(good, features, strict=True):
            try:
                gathered = source.session.place(item, feature, self.model.normalize(item.frame.state))
            except ValueError as error:  # of this session alone
                source.send(Refusal("time_order", str(error), time_s=item.frame.time_s).as_object())
                continue
            if gathered is not None:
                placed.append((source, item, images, gathered))
        if not placed:
            return
        scores, score_s = await self.score(
            np.stack([gathered.features for *_, gathered in placed]),
            np.stack([gathered.states for *_, gathered in placed]),
            np.stack([source.text for source, *_ in placed]),
        )
        ended = time.monotonic()
        received = [item.received_s for _, item, *_ in placed]
        waited = {"queue": begun - min(received), "total": ended - min(received)}
        self.observe(num_frames=len(placed), decode=decode_s, encode=encode_s, score=score_s, **waited)
        for row, (source, item, images, gathered) in enumerate(placed):
            seconds = {
                "queue": begun - item.received_s,
                "decode": decode_s,
                "encode": encode_s,
                "score": score_s,
                "total": ended - item.received_s,
            }
            own = {head: HeadScore(float(s.progress[row]), s.probabilities[row]) for head, s in scores.items()}
            timings_ms = {name: 1000 * value for name, value in seconds.items()}
            reply = source.session.record(item, gathered, own, timings_ms)
            source.send(reply)
            source.show(images[0], reply)


def _decode_frames(frames: Sequence[Frame], size: int, limits: LiveLimits) -> list[np.ndarray | Refusal]:
    """Each frame's images, (C, size, size, 3) uint8, or what is wrong with them."""
    decoded: list[np.ndarray | Refusal] = []
    for frame in frames:
        try:
            decoded.append(np.stack([decode_image(image, size, limits) for image in frame.images]))
        except Refusal as refusal:
            decoded.append(refusal)
    return decoded
