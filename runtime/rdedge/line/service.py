"""Runs lanes as a service: one loop, signals, systemd's watchdog, health; for `rdedge run` with and without a file."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Sequence

from rdedge.line.health import Health
from rdedge.line.lane import Lane, LaneCounts
from rdedge.line.loop import Loop, Shown
from rdedge.line.notify import Notifier
from rdedge.line.signals import Signals

_SLACK_S = 5.0  # for devices and threads to end


def serve(
    lanes: Sequence[Lane],
    *,
    drain_s: float,
    on_shown: Shown,
    close_sinks: Callable[[], None],
    health: Health | None = None,
    reload: Callable[[], None] | None = None,
    keep_warm_s: float = math.inf,
) -> list[LaneCounts]:
    """Until all frames have ended, or SIGTERM or SIGINT asks to stop; then the sinks are closed, whatever happened.

    A stop judges what waits for up to ``drain_s``, gives the sinks as long again, and ends the process with exit code
    3 if that is not done 5 s later. A second signal ends it at once, with 128 and the signal's number.

    The watchdog is fed while frames are judged; while none are, only if it is known of every camera why: it waits for a
    trigger, its fault was told and it is being opened again, or its frames have ended.

    Raises BackendError and what lanes do not forgive; KeyboardInterrupt after a stop by SIGINT.
    """
    notifier = Notifier()

    def stop() -> None:
        loop.stop()
        notifier.stopping()

    def tick(is_alive: bool) -> None:
        if health is not None:
            health.pulse()
        if is_alive:
            notifier.feed()
        if signals.wants_reload and reload is not None:
            signals.wants_reload = False
            notifier.reloading()
            reload()
            notifier.ready()

    loop = Loop(lanes, drain_s=drain_s, on_tick=tick, on_shown=on_shown, keep_warm_s=keep_warm_s)
    with Signals(stop, limit_s=2 * drain_s + _SLACK_S, reloads=reload is not None) as signals:
        notifier.ready()
        try:
            counts = loop.run()
        finally:
            notifier.stopping()
            close_sinks()
    if signals.received == signal.SIGINT:
        raise KeyboardInterrupt
    return counts
