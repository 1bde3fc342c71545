"""All sessions as viewers of the live page see them, put together from what replicas push.

    replica -> push(replica, updates, now)          twice a second: what is new of each of its sessions
    viewer  -> changes(version it has, now)         what it lacks: the `board` message of the protocol

A viewer that applies every answer in turn has the same state as one that asks for everything (tests/core/test_board.py).
Nothing grows without bound: sessions, points of each, one picture of each, names of those that left.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, TypedDict

from sarm_ray.core.board_curve import Curve, Point
from sarm_ray.core.live_marks import KEEP_S, RISE_S, Known, mark, motion

MAX_SESSIONS = 1000
ENDED_S = 600.0  # how long a rollout that is over stays
PUSHED_S = 10.0  # a replica that is silent for longer has lost its sessions
MAX_RECENT = 1024  # scored frames that a mark looks at
MAX_THUMBNAIL_BYTES = 200_000
THUMBNAILS_PER_S = 100  # of all sessions together: what a viewer's line and eyes can take


class Update(TypedDict, total=False):
    """What a replica says of one of its sessions. `id` must be there; what else is left out is unknown (None).

    Args:
        id, task: texts of the client; task is shown only.
        connected: it has a socket on this replica.
        ended, outcome: the rollout is over, and `success`, `partial`, `failure` or None.
        heads, stages: names of the model's heads, and of the first head's stages.
        opened_s: unix seconds at which its newest socket came to this replica; decides between two replicas.
        started_s: unix seconds at which the session began.
        time_s: of the newest frame, seconds since the session's first.
        progress, stage, confidence, probabilities: newest score of the first head; None where there is none.
        points: scored frames since the last push, ascending; all there are after a reconnect. Those that a viewer has
            already do no harm: points replace all that is not older than their first.
        latency_ms: of the newest reply.
        thumbnail: JPEG; None where it has not changed.
    """

    id: str
    task: str
    connected: bool
    ended: bool
    outcome: str | None
    heads: Sequence[str]
    stages: Sequence[str]
    fps: float
    opened_s: float
    started_s: float
    time_s: float
    progress: float | None
    stage: int | None
    confidence: float | None
    probabilities: Sequence[float] | None
    points: Sequence[Point]
    score_hz: float
    num_received: int
    num_scored: int
    num_dropped: int
    latency_ms: float | None
    thumbnail: bytes | None


FACTS = tuple(
    key for key in Update.__annotations__ if key not in ("id", "points", "thumbnail", "opened_s", "connected")
)


@dataclass
class _Card:
    """One session.

    Args:
        opened_s, wired, pushed_s: of the replica that has it: since when, whether with a socket, and when it spoke last.
        frame_s: when a new frame was seen last; unix seconds, like all `_s` here.
        mark, mark_s: what it says, and since when it is so.
        recent: of the last KEEP_S.
        version, thumbnail_version: of the board, at the last change of anything, and of the picture.
        thumbnail: base64; "" where none came yet.
    """

    id: str
    replica: str
    facts: dict[str, Any]
    frame_s: float
    version: int
    thumbnail_version: int
    opened_s: float = 0.0
    wired: bool = False
    pushed_s: float = 0.0
    connected: bool = False
    ended_s: float | None = None
    curve: Curve = field(default_factory=Curve)
    recent: list[Known] = field(default_factory=list)
    motion: str = "running"
    mark: str = "running"
    mark_s: float = 0.0
    thumbnail: str = ""
    thumbnail_s: float = float("-inf")


class Board:
    """See the module.

    Args:
        max_sessions: more push out those that ended first, then those that were silent longest.
        first_version: versions count on from here. A board that takes another one's place must begin above all of its
            versions, or viewers would go on with the wrong state; milliseconds of the clock do.
    """

    def __init__(self, max_sessions: int = MAX_SESSIONS, first_version: int = 0):
        self._max_sessions, self._version, self._floor = max_sessions, first_version + 1, first_version + 1
        self._cards: dict[str, _Card] = {}
        self._removed: dict[str, int] = {}  # session -> version at which it left, oldest first

    def push(self, replica: str, updates: Sequence[Update], now_s: float) -> None:
        """Take in what is new of a replica's sessions.

        Args:
            replica: its name, always the same.
            updates: one per session at most; sessions without news may be left out, but not for PUSHED_S.
            now_s: unix seconds.
        """
        self._version += 1
        for update in updates:
            card = self._cards.get(update["id"])
            if card is None:
                card = self._cards[update["id"]] = self._new_card(update["id"], replica, now_s)
                self._removed.pop(card.id, None)
            if _has_it(card, replica, update, now_s):
                self._take(card, replica, update, now_s)
                self._mark(card, now_s)
        self._make_room()

    def changes(self, since_version: int, now_s: float) -> dict[str, Any]:
        """What a viewer lacks.

        Args:
            since_version: `version` of the last answer it applied; 0 where there is none.
            now_s: unix seconds.

        Returns:
            The `board` message, with `version` to ask with next time. Of each session in it, everything but the points
            before `since`, and the picture where `thumbnail` is None (unchanged; "" is that there is none).
        """
        self._version += 1
        self._pass_time(now_s)
        full = not self._floor <= since_version <= self._version
        since = -1 if full else since_version
        gone = [] if full else [name for name, version in self._removed.items() if version > since]
        cards = [card for card in self._cards.values() if card.version > since]
        return {
            "type": "board",
            "version": self._version,
            "now_s": round(now_s, 3),
            "full": full,
            "gone": gone,
            "sessions": [_message(card, since) for card in cards],
        }

    def _new_card(self, name: str, replica: str, now_s: float) -> _Card:
        return _Card(
            name, replica, {}, frame_s=now_s, version=self._version, thumbnail_version=self._version, mark_s=now_s
        )

    def _take(self, card: _Card, replica: str, update: Update, now_s: float) -> None:
        old, points = card.facts, update.get("points") or ()
        facts = {key: _finite(update.get(key)) for key in FACTS} | {"ended": bool(update.get("ended"))}
        newest, before = float(update.get("time_s") or 0.0), float(old.get("time_s") or 0.0)
        anew = newest < before or bool(old.get("ended") and not facts["ended"])
        if anew:
            card.curve.clear()
            card.recent.clear()
        elif replica != card.replica and old.get("started_s") is not None:
            facts["started_s"] = old["started_s"]  # the rollout began where it was before
        if newest != before or facts["num_received"] != old.get("num_received"):
            card.frame_s = now_s
        changed = anew or bool(points) or facts != old or replica != card.replica
        card.replica, card.facts, card.pushed_s = replica, facts, now_s
        card.opened_s, card.wired = _opened_s(update), bool(update.get("connected"))
        card.ended_s = (card.ended_s or now_s) if facts["ended"] else None
        card.curve.splice(points, self._version)
        _look_back(card, points)
        changed |= self._take_thumbnail(card, update, now_s)
        if changed:
            card.version = self._version

    def _take_thumbnail(self, card: _Card, update: Update, now_s: float) -> bool:
        """Not every one where there are many; but always the last."""
        thumbnail = update.get("thumbnail")
        if not thumbnail or len(thumbnail) > MAX_THUMBNAIL_BYTES:
            return False
        if now_s - card.thumbnail_s < len(self._cards) / THUMBNAILS_PER_S - 0.25 and not card.facts["ended"]:
            return False
        card.thumbnail, card.thumbnail_s = base64.b64encode(thumbnail).decode(), now_s
        card.thumbnail_version = self._version
        return True

    def _pass_time(self, now_s: float) -> None:
        """Marks that come and sessions that go without anybody saying so."""
        for card in list(self._cards.values()):
            if now_s - (card.pushed_s if card.ended_s is None else card.ended_s) > ENDED_S:
                self._remove(card)
            else:
                self._mark(card, now_s)

    def _mark(self, card: _Card, now_s: float) -> None:
        now = mark(card.motion, now_s - card.frame_s, card.ended_s is not None)
        if now != card.mark:
            begun_s = {"stalled": now_s - RISE_S, "silent": card.frame_s}.get(now, now_s)
            card.mark, card.mark_s, card.version = now, begun_s, self._version
        if _is_connected(card, now_s) != card.connected:
            card.connected, card.version = not card.connected, self._version

    def _make_room(self) -> None:
        excess = len(self._cards) - self._max_sessions
        if excess > 0:
            order = sorted(
                self._cards.values(),
                key=lambda card: (card.ended_s is None, card.frame_s if card.ended_s is None else card.ended_s),
            )
            for card in order[:excess]:
                self._remove(card)

    def _remove(self, card: _Card) -> None:
        del self._cards[card.id]
        self._removed.pop(card.id, None)
        self._removed[card.id] = self._version
        while len(self._removed) > 4 * self._max_sessions:  # who has not asked since gets everything
            self._floor = self._removed.pop(next(iter(self._removed)))


def _finite(value: Any) -> Any:
    """JSON has no NaN, and one of them would take the page from every viewer."""
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def _opened_s(update: Update) -> float:
    return update.get("opened_s") or update.get("started_s") or 0.0


def _is_connected(card: _Card, now_s: float) -> bool:
    return card.wired and now_s - card.pushed_s <= PUSHED_S


def _has_it(card: _Card, replica: str, update: Update, now_s: float) -> bool:
    """Whether the session is this replica's: one that it left goes on speaking of it for a while."""
    if replica == card.replica:
        return True
    if bool(update.get("connected")) != _is_connected(card, now_s):
        return bool(update.get("connected"))
    return _opened_s(update) > card.opened_s


def _look_back(card: _Card, points: Sequence[Point]) -> None:
    known = [(time_s, progress) for time_s, progress, _ in points if progress is not None and isfinite(progress)]
    if points and card.recent and points[0][0] <= card.recent[-1][0]:
        card.recent = [each for each in card.recent if each[0] < points[0][0]]
    card.recent += known
    if card.recent:
        newest = card.recent[-1][0]
        card.recent = [each for each in card.recent[-MAX_RECENT:] if each[0] >= newest - KEEP_S]
    card.motion = motion(card.recent)


def _message(card: _Card, since_version: int) -> dict[str, Any]:
    place, points = card.curve.since(since_version)
    return {
        "id": card.id,
        "replica": card.replica,
        "connected": card.connected,
        **card.facts,
        "updated_s": round(card.frame_s, 3),
        "mark": card.mark,
        "mark_s": round(card.mark_s, 3),
        "since": place,
        "points": points,
        "thumbnail": card.thumbnail if card.thumbnail_version > since_version else None,
    }
