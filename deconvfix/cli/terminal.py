"""What reaches the terminal: the one way for every word, so that no stranger's word is obeyed there."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from deconvfix.errors import printable

__all__ = ["console_of", "only_printable"]


class _Printable:
    """A stream that passes text on in a form that no terminal obeys.

    It has no `buffer`: bytes would go past it.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        self.stream.write(printable(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        if name == "buffer":
            raise AttributeError(name)
        # Whoever asks for the file number or the encoding wants those of the stream.
        return getattr(self.stream, name)


class _Console(Console):
    """A console whose colours are its own: the codes in what it is given are shown, not sent."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            # Control segments are those of the console itself: they move the cursor of a progress bar.
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


@contextlib.contextmanager
def only_printable() -> Iterator[None]:
    """Everything that is written to stdout and stderr in the context is made printable first.

    That is what Python's warnings, click, torch and the code of a model write. Consoles of `console_of`
    write past it, because their colours are codes, too.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal may have fewer characters than the names of a model; stderr does the same by itself.
        sys.stdout.reconfigure(errors="backslashreplace")
    with (
        contextlib.redirect_stdout(_Printable(sys.stdout)),
        contextlib.redirect_stderr(_Printable(sys.stderr)),
    ):
        yield


def console_of(stream: TextIO, **options: Any) -> Console:
    """A console for people that writes on sys.stdout or sys.stderr."""
    raw = stream.stream if isinstance(stream, _Printable) else stream
    return _Console(file=raw, highlight=False, emoji=False, **options)
