"""What reaches the terminal: the one way for every word, so that no stranger's word is obeyed there."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn, TextIO

import click
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.segment import Segment

from deconvfix.errors import printable, sentence
from deconvfix.fit.tuning import Progress
from deconvfix.parity.progress import Stage, heard
from deconvfix.report.report import finite

__all__ = [
    "NO_MEMORY",
    "console_of",
    "fail",
    "only_printable",
    "show",
    "system_error",
    "working",
]

# Seconds of silence on a pipe.
_PATIENCE = 2.0

NO_MEMORY = sentence(
    "memory",
    "there is not enough of it for this model",
    "the model, its inputs and its outputs must fit into memory",
    "Give smaller inputs, or use a machine with more memory",
)


# The logger of what is measured layer by layer, which takes a while.
_MEASURES = "deconvfix.auto"


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
    # What is wrong with a file is said once, in one sentence, and onnx_ir warns of it each time it looks.
    logger = logging.getLogger("onnx_ir")
    with (
        _level(logger, logging.CRITICAL),
        contextlib.redirect_stdout(_Printable(sys.stdout)),
        contextlib.redirect_stderr(_Printable(sys.stderr)),
    ):
        yield


@contextlib.contextmanager
def _level(logger: logging.Logger, level: int) -> Iterator[None]:
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


def console_of(stream: TextIO, **options: Any) -> Console:
    """A console for people that writes on sys.stdout or sys.stderr."""
    raw = stream.stream if isinstance(stream, _Printable) else stream
    return _Console(file=raw, highlight=False, emoji=False, **options)


def system_error(error: OSError) -> str:
    """What the operating system refuses, as a message of four parts."""
    return sentence(
        str(error.filename or "system"),
        f"the system says: {error.strerror or error}",
        "files must be readable, and folders writable, while the command runs",
        "Check them, and the space that is left",
    )


def fail(ctx: click.Context, message: str) -> NoReturn:
    """Ends the command with one sentence on stderr."""
    console_of(sys.stderr, soft_wrap=True).print(f"Error: {message}", style="red", markup=False)
    ctx.exit(1)


@contextlib.contextmanager
def working(what: str) -> Iterator[Callable[[Progress], None]]:
    """A bar on stderr, where that is a terminal; what the model's code prints goes there too.

    Yields:
        What a distillation calls to move the bar, or to write a line.
    """
    console = console_of(sys.stderr)
    if not console.is_terminal:
        lines, begun = _now_and_then(console), [time.monotonic()]

        def tuned(progress: Progress) -> None:
            percent = int(100 * progress.fraction)
            if percent == 0:
                begun[0] = time.monotonic()  # it is the last part of the work
            else:
                lines(Stage("Tuning", percent, 100, time.monotonic() - begun[0]))

        with contextlib.redirect_stdout(sys.stderr), heard(lines), _telling(_MEASURES):
            yield tuned
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task(f"{what} ...", total=None)

        def show(progress: Progress) -> None:
            words = f"Tuning, held-out error {progress.loss:.3g} (best {progress.best:.3g})"
            bar.update(task, total=1.0, completed=progress.fraction, description=words)

        def tell(stage: Stage) -> None:
            bar.update(task, total=stage.total, completed=stage.done, description=stage.words)

        with contextlib.redirect_stdout(sys.stderr), heard(tell), _telling(_MEASURES):
            yield show


def _now_and_then(console: Console) -> Callable[[Stage], None]:
    """Writes a line when two seconds have passed since the last one, or since it was made."""
    last = time.monotonic()

    def tell(stage: Stage) -> None:
        nonlocal last
        if time.monotonic() - last >= _PATIENCE and stage.done < stage.total:
            last = time.monotonic()
            console.print(stage.words, markup=False, soft_wrap=True)

    return tell


@contextlib.contextmanager
def _telling(name: str) -> Iterator[None]:
    """In the context, what a logger of that name says goes to stderr, a line for each."""
    logger, handler = logging.getLogger(name), logging.StreamHandler(sys.stderr)
    logger.addHandler(handler)
    try:
        with _level(logger, logging.INFO):
            yield
    finally:
        logger.removeHandler(handler)


def show(value: Any) -> None:
    """JSON alone, or what `cli.text` made for people."""
    if isinstance(value, dict):
        click.echo(json.dumps(finite(value), indent=2, allow_nan=False))
        return
    console = console_of(sys.stdout, width=None if sys.stdout.isatty() else 80)
    for part in value:
        console.print(part)
