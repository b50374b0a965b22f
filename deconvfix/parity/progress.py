"""How far a comparison is, for whoever waits for it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

__all__ = ["Stage", "heard", "step_by_step", "tell_time"]

Item = TypeVar("Item")


@dataclass(frozen=True)
class Stage:
    """A part of the work.

    Attributes:
        what: In words.
        done: Steps that are done, at least one.
        total: All steps.
        seconds: Since it began.
        unit: What is counted; empty: steps.
    """

    what: str
    done: int
    total: int
    seconds: float
    unit: str = ""

    @property
    def words(self) -> str:
        """The line that is shown; the time that is left is that of as many steps as were done, alike."""
        left = self.seconds / self.done * (self.total - self.done)
        percent = 100 * self.done // self.total
        total = f"{self.total} {self.unit}".rstrip()
        return f"{self.what}, {self.done} of {total} ({percent} %), {left:.0f} s left"


Listener = Callable[[Stage], None]
_LISTENER: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextlib.contextmanager
def heard(listener: Listener) -> Iterator[None]:
    """In the context, the listener hears of every step."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)


def tell_time(what: str, seconds: float, budget: float) -> None:
    """Tells of work that has a time: so many seconds of it are over."""
    listener = _LISTENER.get()
    if listener is not None and seconds >= 1:
        done, total = int(seconds), max(round(budget), int(seconds))
        listener(Stage(what, done, total, done, "s"))


def step_by_step(what: str, items: Sequence[Item]) -> Iterator[Item]:
    """The items, one after the other; when the next one is asked for, the one before is done."""
    listener, started = _LISTENER.get(), time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        if listener is not None:
            listener(Stage(what, done, len(items), time.monotonic() - started))
