"""Several things that may each take a while, at the same time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from threading import Thread


def at_once(actions: Iterable[Callable[[], None]]) -> None:
    """Each in a thread of its own, and all waited for; then the first fault is raised."""
    faults: list[BaseException] = []

    def attempt(action: Callable[[], None]) -> None:
        try:
            action()
        except BaseException as exc:  # raised below
            faults.append(exc)

    threads = [Thread(target=attempt, args=(action,), name="rdedge-closing") for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise faults[0]
