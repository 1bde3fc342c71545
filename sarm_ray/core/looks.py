"""What a follower remembers of the things it watches, from one look to the next, and what follows from it.

Something is looked into when two looks in a row have found it the same, once: what came of it holds until it changes. A
reason why it has to wait is said once, and again when it is another one.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

CHANGING = "its files are still changing"


@dataclass(frozen=True)
class Watched:
    """What is remembered of one thing.

    Args:
        stamp: changes when it does; of the last look.
        settled: it was looked into since it became so, and nothing is to be done until it changes.
        said: the last reason why it waits, "" where nothing is to be said.
    """

    stamp: str
    settled: bool = False
    said: str = ""


@dataclass(frozen=True)
class Look:
    """What a look makes of the memory.

    Args:
        memory: of what is there now; what has gone is forgotten.
        steady: the names that are to be looked into, in order.
        changing: those of which it is to be said that they still change: nothing was said of them yet.
    """

    memory: dict[str, Watched]
    steady: tuple[str, ...]
    changing: tuple[str, ...]


def take_look(memory: Mapping[str, Watched], found: Mapping[str, str], patient: bool = True) -> Look:
    """Compare what is there with what was there at the look before.

    Args:
        memory: name -> what is remembered.
        found: name -> stamp, what is there now.
        patient: look into nothing that was not there before; without it, into all at once.
    """
    now: dict[str, Watched] = {}
    steady, changing = [], []
    for name, stamp in found.items():
        before = memory.get(name)
        if before is None:
            now[name] = Watched(stamp)
        elif before.stamp == stamp:
            now[name] = before
        else:
            now[name] = replace(before, stamp=stamp, settled=False, said=before.said or CHANGING)
            if not before.said:
                changing.append(name)
        same = before is not None and before.stamp == stamp
        if (same or not patient) and not now[name].settled:
            steady.append(name)
    return Look(now, tuple(sorted(steady)), tuple(sorted(changing)))


def note(watched: Watched, reason: str, settled: bool = True) -> tuple[Watched, bool]:
    """What came of looking into something.

    Args:
        watched: what was remembered of it.
        reason: why it waits; "" where all is done.
        settled: nothing is to be done until it changes; else it is looked into again.

    Returns:
        What is remembered now, and whether the reason is to be said.
    """
    return replace(watched, settled=settled, said=reason), bool(reason) and reason != watched.said


def num_waiting(memory: Iterable[Watched]) -> int:
    """How many have a reason to wait."""
    return sum(bool(each.said) for each in memory)
