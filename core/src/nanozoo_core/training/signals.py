"""Signals that end a run early: noted when they come, obeyed between two steps."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from nanozoo_core.machine.ranks import Ranks


def ending_signals() -> list[signal.Signals]:
    """What asks a process to end: SIGTERM; SIGHUP, of a terminal that is closed; SIGUSR1 and
    SIGUSR2, by which schedulers announce the end of an allocation. One that is ignored, as nohup
    does with SIGHUP, stays so."""
    found = [getattr(signal, name, None) for name in ("SIGHUP", "SIGUSR1", "SIGUSR2")]
    heard = [s for s in found if s is not None and signal.getsignal(s) != signal.SIG_IGN]
    return [signal.SIGTERM, *heard]


@contextmanager
def catch_signals() -> Iterator[list[int]]:
    """Collects Ctrl-C and what `ending_signals` lists instead of dying; a second Ctrl-C interrupts
    at once. A signal that somebody else handles, as submitit does to queue a job again, reaches
    that handler after the block."""
    received: list[int] = []

    def note(number: int, _frame: object) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    try:
        previous = {s: signal.signal(s, note) for s in (signal.SIGINT, *ending_signals())}
    except ValueError:  # not the main thread: whoever owns it handles signals
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    for one in sorted({*received} - {signal.SIGINT}):
        if callable(previous[signal.Signals(one)]):
            signal.raise_signal(one)


@contextmanager
def ending_as_keyboard_interrupt() -> Iterator[None]:
    """Inside it what `ending_signals` lists interrupts as Ctrl-C does."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    try:
        previous = {s: signal.signal(s, interrupt) for s in ending_signals()}
    except ValueError:  # not the main thread: whoever owns it handles signals
        yield
        return
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Ctrl-C waits for the end of this block, and then does what it would have done."""
    waiting: list[int] = []
    try:
        previous = signal.signal(signal.SIGINT, lambda number, _frame: waiting.append(number))
    except ValueError:  # not the main thread, which alone is interrupted
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        if waiting:
            signal.raise_signal(signal.SIGINT)


def agreed_signal(received: list[int], ranks: Ranks, device: torch.device) -> int | None:
    """The signal that any rank has received so far, or None; the same on every rank."""
    latest = float(received[-1]) if received else 0.0
    if ranks.world_size > 1:
        latest = float(ranks.max(torch.tensor([latest], device=device)))
    return int(latest) or None
