"""ONNX Runtime and onnx.checker in a process of their own, which alone ends with a crash or at a limit.

A stranger's file can hold a loop of 2^62 turns, or make ONNX Runtime read memory that is not there. The
process that asks (`Worker`) and the one that runs (`main`) talk over a socket; both are this package, so what
is sent is trusted, and what is run is not. A class has a method for each request: `Sessions` here, and
another one for other runtimes in `deconvfix.runtimes.process`.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

__all__ = ["CrashError", "LateError", "Worker", "main", "make_session", "prepare", "rejection"]

_SESSIONS = "deconvfix.parity.worker:Sessions"


class CrashError(Exception):
    """The process ended or was ended; the message says why, as a part of a sentence."""


class LateError(CrashError):
    """It was ended at the time limit."""


class Worker:
    """The other process, seen from this one; it starts with the object.

    Args:
        answers: The class whose methods it answers with, as "module:name".
    """

    def __init__(self, answers: str = _SESSIONS) -> None:
        ours, theirs = socket.socketpair()
        environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1"}
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _START, str(theirs.fileno()), answers],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**environment, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        self.connection = Connection(ours.detach())

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return self.process.poll() is None

    def ask(self, *request: Any, seconds: float | None = None) -> Any:
        """Sends a request and waits for the answer.

        Args:
            request: Name of a method of what it answers with, and its arguments.
            seconds: How long that may take; None for as long as it takes.

        Raises:
            CrashError: If the process ends.
            LateError: If it takes longer.
            RuntimeError: If the method fails, with its words.
        """
        try:
            # A request and its answer; nothing else is ever on the way.
            self.connection.send(request)
            if not self.connection.poll(seconds):
                self.end()
                raise LateError(f"it did not finish within {seconds:g} s")
            succeeded, answer = self.connection.recv()
        except (EOFError, OSError) as error:
            self.end()
            raise CrashError(_cause(self.process.returncode)) from error
        except BaseException:
            self.end()  # interrupted: the answer would be taken for that of the next request
            raise
        if not succeeded:
            raise RuntimeError(answer)
        return answer

    def end(self) -> None:
        """Ends the process at once."""
        self.process.kill()
        self.process.wait()
        self.connection.close()


def _cause(code: int) -> str:
    """What the exit code of a process says."""
    if code >= 0:
        return f"its process ended with exit code {code}"
    with contextlib.suppress(ValueError):
        return f"its process was ended by {signal.Signals(-code).name}"
    return f"its process was ended by signal {-code}"


def make_session(model: bytes | str, *, optimize: bool, threads: int | None) -> Any:
    """A session of ONNX Runtime on the CPU, in this process; see `runtime.open_session`."""
    # Set before the import: ONNX Runtime writes telemetry files otherwise.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if threads is not None:
        options.intra_op_num_threads = threads
    else:
        # Nobody times it: threads that wait for work do not keep the processor busy.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def rejection(path: str, *, full: bool) -> str | None:
    """Why onnx.checker rejects a file, in this process; None if it does not."""
    import onnx

    try:
        onnx.checker.check_model(path, full_check=full)
    except Exception as error:  # any: its own, those of shape inference, those of protobuf
        return str(error) or type(error).__name__
    return None


# --- the process itself -----------------------------------------------------------------------------

_START = "import sys; from deconvfix.parity.worker import main; main(*sys.argv[1:])"
# prctl: the kernel sends this signal when the process that asked is gone.
_PARENT_DEATH_SIGNAL = 1


class Sessions:
    """The sessions that are open, by number."""

    def __init__(self) -> None:
        self.sessions: dict[int, Any] = {}

    def open(self, number: int, model: bytes | str, optimize: bool) -> Any:
        """Opens a file; its inputs and outputs are the answer."""
        session = make_session(model, optimize=optimize, threads=None)
        self.sessions[number] = session
        return [
            [(value.name, value.shape, value.type) for value in values]
            for values in (session.get_inputs(), session.get_outputs())
        ]

    def run(self, number: int, feed: dict[str, Any]) -> Any:
        """All outputs for inputs by name."""
        return self.sessions[number].run(None, feed)

    def close(self, number: int) -> None:
        """Forgets a session."""
        self.sessions.pop(number, None)

    def check(self, path: str, full: bool) -> str | None:
        """See `rejection`."""
        return rejection(path, full=full)


def main(descriptor: str, answers: str) -> None:
    """Answers requests on a socket until its other end is closed."""
    prepare()
    module, _, kind = answers.partition(":")
    answering = getattr(importlib.import_module(module), kind)()
    with Connection(int(descriptor)) as connection:
        while True:
            try:
                name, *arguments = connection.recv()
            except (EOFError, OSError):
                return
            connection.send(_answer(getattr(answering, name), arguments))


def _answer(method: Callable[..., Any], arguments: list[Any]) -> tuple[bool, Any]:
    try:
        return True, method(*arguments)
    except Exception as error:
        return False, str(error) or type(error).__name__


def prepare() -> None:
    """Ends with the process that asks, before it if memory is short, and takes no more than there is."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not sys.platform.startswith("linux"):
        return
    import ctypes
    import resource

    ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    # Files that are mapped into memory do not count.
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
