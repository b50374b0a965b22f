"""Several processes at one conversion: `torchrun --nproc-per-node 2 -m deconvfix convert ...`.

Each process reads its share of the calibration samples; moments and gradients are summed over all of them
(`frontends.torch_processes`), so all come to the same weights. The first one alone verifies, writes and
reports. If one fails, all end, and the first to fail is the one that says why.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import click

__all__ = ["ALONE", "Share", "share", "together"]

# What torchrun sets. Others set RANK and WORLD_SIZE too, for a job that is not ours to join.
_VARIABLES = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE")
# One that has ended is noticed at once; one that is slow is waited for.
_PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Share:
    """Which process this is.

    Attributes:
        rank: Its number.
        world: How many there are.
    """

    rank: int = 0
    world: int = 1


ALONE = Share()


def share() -> Share:
    """This process as torchrun says in the environment; without torchrun it is alone."""
    named = [os.environ.get(variable, "") for variable in _VARIABLES]
    if not all(named) or not all(number.isdecimal() for number in named[-2:]):
        return ALONE
    return Share(*map(int, named[-2:]))


@contextlib.contextmanager
def together(own: Share) -> Iterator[None]:
    """Connects the processes, and lets all succeed or all fail, one of them with a message."""
    if own.world == 1:
        yield
        return
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    store, rank, world = next(rendezvous("env://"))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=_PATIENCE)
    try:
        try:
            yield
        except click.exceptions.Exit as done:
            if done.exit_code:
                raise
            _leave_together()
            raise
        _leave_together()
    except click.exceptions.Exit as done:
        if done.exit_code:
            _is_first(store)
            dist.destroy_process_group()
        raise
    except BaseException as error:
        dist.destroy_process_group()
        if _is_first(store):
            raise
        # It told already; here it is only that the connection to it was lost, or the same again.
        code = error.exit_code if isinstance(error, click.ClickException) else 1
        raise SystemExit(code) from None


def _leave_together() -> None:
    """Waits for the others, and ends without taking the connections down.

    A process that leaves early would be taken for one that failed. So would one whose threads are still
    running while it ends, as gloo's are now and then (`terminate called without an active exception`).
    """
    import torch.distributed as dist

    dist.barrier()
    atexit.register(_end)


def _end() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _is_first(store: Any) -> bool:
    """Whether no other process has failed before."""
    try:
        return bool(store.add("deconvfix/failed", 1) == 1)
    except RuntimeError:  # the store is gone with the process that kept it
        return False
