"""Damages files for as long as you like, and says what was found.

python -m tests.fuzz [--minutes 30] [--seed 0]
"""

from __future__ import annotations

import random
import signal
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

import click

from tests.fuzz.readers import TARGETS, check

LIMIT_SECONDS = 60


class LateError(BaseException):
    """A case took too long."""


def _late(*_):
    raise LateError


@click.command()
@click.option("--minutes", default=30.0, help="How long.")
@click.option("--seed", default=0, help="Of the first case.")
def main(minutes: float, seed: int) -> None:
    """Run random cases of every target, one after the other."""
    warnings.filterwarnings("ignore")
    signal.signal(signal.SIGALRM, _late)
    found: Counter[str] = Counter()
    first: dict[str, int] = {}
    end, count = time.monotonic() + 60 * minutes, 0
    while time.monotonic() < end:
        target = TARGETS[count % len(TARGETS)]
        with tempfile.TemporaryDirectory() as folder:
            signal.alarm(LIMIT_SECONDS)
            try:
                check(target, random.Random(seed + count), Path(folder))
            except LateError:
                _note(
                    found,
                    first,
                    f"{target.__name__}: no end within {LIMIT_SECONDS} s",
                    seed + count,
                )
            except Exception as error:
                last = traceback.extract_tb(error.__traceback__)[-1]
                what = (
                    f"{target.__name__}: {type(error).__name__}: {str(error)[:80]!r} in {last.name}"
                )
                _note(found, first, what, seed + count)
            finally:
                signal.alarm(0)
        count += 1
    for what, times in found.most_common():
        click.echo(f"{times:5} {what} (first: {first[what]})")
    click.echo(f"{count} cases, {sum(found.values())} failures")


def _note(found: Counter[str], first: dict[str, int], what: str, seed: int) -> None:
    found[what] += 1
    first.setdefault(what, seed)


if __name__ == "__main__":
    main()
