"""What was measured before: ratios by runtime, version, CPU, threads, geometry and writing.

A file of lines, each a JSON object, in the user's cache folder. It says how fast something is, and nothing is
ever believed right for being in it. Whoever deletes it loses time alone.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import os
import platform
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from deconvfix.runtimes.verdict import Verdict

__all__ = ["Cache", "Key", "cache_path", "cpu_model"]

_VARIABLE = "DECONVFIX_CACHE"
_CPU_FIELDS = ("model name", "cpu family", "model", "stepping")


@dataclass(frozen=True)
class Key:
    """What a ratio belongs to.

    Attributes:
        runtime: Its name; see `registry.RUNTIMES`.
        version: Of the runtime.
        cpu: Its model (`cpu_model`).
        threads: That it ran on.
        geometry: Everything about the layer and its input that its time depends on.
        writing: What it was replaced by.
    """

    runtime: str
    version: str
    cpu: str
    threads: int
    geometry: str
    writing: str


class Cache:
    """The verdicts of a file, read once; of two for one key the later one counts.

    Args:
        path: The file; `cache_path()` by default. It need not exist.

    Attributes:
        notes: Sentences: what was not read, or not written.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = cache_path() if path is None else path
        self.notes: list[str] = []
        self.found: dict[Key, Verdict] = {}
        self.dates: dict[Key, str] = {}
        damaged = self._read()
        if damaged:
            self.notes.append(
                f"{self.path}: {damaged} damaged lines of what was measured before were left out."
            )
            self._write(self._rebuild)

    def get(self, key: Key) -> Verdict | None:
        """What was measured; None if nothing was."""
        return self.found.get(key)

    def date(self, key: Key) -> str | None:
        """The day on which it was, as 2026-11-30."""
        return self.dates.get(key)

    def put(self, key: Key, verdict: Verdict) -> None:
        """Remembers a verdict, in the file too if that can be written."""
        if not math.isfinite(verdict.high):
            return  # too few runs: nothing was found
        self.found[key] = verdict
        self.dates[key] = datetime.datetime.now(datetime.UTC).date().isoformat()
        self._write(lambda: self._append(key))

    def _read(self) -> int:
        """The number of lines that say nothing."""
        try:
            text = self.path.read_bytes().decode("utf-8", errors="replace")
        except FileNotFoundError:
            return 0
        except OSError as error:
            self.notes.append(f"{self.path}: it cannot be read ({error.strerror}).")
            return 0
        damaged = 0
        for line in text.split("\n"):
            if not line.strip():
                continue
            try:
                key, verdict, date = _parsed(line)
            except (ValueError, TypeError, KeyError, RecursionError):
                damaged += 1
                continue
            self.found[key], self.dates[key] = verdict, date
        return damaged

    def _write(self, writes: Callable[[], None]) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            writes()
        except OSError as error:
            note = f"{self.path}: it cannot be written ({error.strerror})."
            if note not in self.notes:
                self.notes.append(note)

    def _append(self, key: Key) -> None:
        # One write at the end of the file: lines of several processes do not mix. A line that another one
        # could not finish is ended by the empty one in front.
        line = f"\n{self._line(key)}\n".encode()
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)

    def _rebuild(self) -> None:
        descriptor, name = tempfile.mkstemp(dir=self.path.parent, prefix=self.path.name)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.writelines(f"{self._line(key)}\n" for key in self.found)
            os.replace(name, self.path)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise

    def _line(self, key: Key) -> str:
        return json.dumps({**asdict(key), **asdict(self.found[key]), "date": self.dates[key]})


def cache_path() -> Path:
    """$DECONVFIX_CACHE, or timings.jsonl in the folder `deconvfix` of the user's cache folder."""
    own = os.environ.get(_VARIABLE)
    if own:
        return Path(own)
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "deconvfix" / "timings.jsonl"


def cpu_model() -> str:
    """The model of this machine's CPU, as far as it says."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:  # not Linux
        lines = []
    pairs = [line.partition(":") for line in lines]
    said = {name.strip(): value.strip() for name, _, value in pairs}
    words = [f"{name} {said[name]}" for name in _CPU_FIELDS[1:] if name in said]
    name = said.get(_CPU_FIELDS[0]) or platform.processor() or platform.machine()
    return ", ".join([name, *words])


def _parsed(line: str) -> tuple[Key, Verdict, str]:
    """A line as a key, what was measured, and the day.

    Raises:
        ValueError: If it is no JSON, or its values are impossible.
        KeyError: If something is missing.
        TypeError: If it is no object.
    """
    told = json.loads(line)
    key = Key(*(_typed(told[field.name], field.name == "threads") for field in fields(Key)))
    ratio, low, high, confidence = (
        float(told[name]) for name in ("ratio", "low", "high", "confidence")
    )
    if not 0 < low <= ratio <= high < math.inf or not 0 < confidence < 1:
        raise ValueError("no interval")
    return key, Verdict(ratio, low, high, confidence, int(told["loads"])), str(told["date"])


def _typed(value: Any, is_number: bool) -> Any:
    if type(value) is not (int if is_number else str):
        raise TypeError("another type")
    return value
