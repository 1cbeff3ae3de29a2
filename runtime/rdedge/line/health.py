"""Health and metrics of a line over HTTP: ``/healthz`` answers 200 or 503, ``/metrics`` is for Prometheus."""

from __future__ import annotations

import ipaddress
import json
import socket
import threading
import time
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from rdedge.errors import UsageError
from rdedge.line.announcer import Announcer
from rdedge.line.heat import HeatWatch
from rdedge.line.lane import Lane
from rdedge.line.metrics import CONTENT_TYPE, render

_STALLED_S = 10.0  # without a pass of the loop
_REQUEST_S = 5.0


class Health:
    """What a line tells of itself; ``pulse`` is called by its loop, the rest from any thread."""

    def __init__(self, lanes: Sequence[Lane], announcer: Announcer, heat: HeatWatch | None = None):
        self._lanes = lanes
        self._announcer = announcer
        self._heat = heat
        self._started_s = self._pulse_s = time.monotonic()

    def pulse(self) -> None:
        """The loop goes on."""
        self._pulse_s = time.monotonic()

    def metrics(self) -> str:
        """See rdedge.line.metrics."""
        return render(self._lanes, self._announcer, self._started_s, None if self._heat is None else self._heat.heat)

    def report(self) -> tuple[bool, dict[str, object]]:
        """Whether all is well, and of each camera whether it is and why not: JSON values."""
        now_s = time.monotonic()
        cameras: dict[str, object] = {}
        is_well = is_turning = now_s - self._pulse_s < _STALLED_S
        for lane in self._lanes:
            faults = [*lane.source.info.faults, *([lane.fault.problem] if lane.fault is not None else [])]
            is_well = is_well and not faults
            age_s = None if lane.last_verdict_s is None else round(now_s - lane.last_verdict_s, 3)
            cameras[lane.name] = {"faults": faults, "judged": lane.counts.judged, "last_verdict_age_s": age_s}
        return is_well, {"ok": is_well, "loop": "turning" if is_turning else "stalled", "cameras": cameras}


class HealthServer:
    """Serves from a thread of its own until closed."""

    def __init__(self, bind: str, port: int, health: Health):
        """``port`` 0 takes a free one. Raises UsageError if the address cannot be bound."""
        try:
            self._server = _server_class(bind)((bind, port), _handler_class(health))
        except OSError as exc:
            raise UsageError(
                f"metrics cannot be served at {bind} port {port} ({exc.strerror})",
                remedy="end what uses the port, or name another one",
            ) from exc
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="rdedge-metrics", daemon=True
        )
        self._thread.start()

    @property
    def port(self) -> int:
        """The one that is listened on."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """May be called twice."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _server_class(bind: str) -> type[ThreadingHTTPServer]:
    if bind == "localhost" or ipaddress.ip_address(bind).version == 4:
        return ThreadingHTTPServer
    return type("Server6", (ThreadingHTTPServer,), {"address_family": socket.AF_INET6})


def _handler_class(health: Health) -> type[BaseHTTPRequestHandler]:
    def healthz() -> tuple[int, str, str]:
        is_well, report = health.report()
        return 200 if is_well else 503, "application/json", json.dumps(report) + "\n"

    pages: dict[str, Callable[[], tuple[int, str, str]]] = {
        "/healthz": healthz,
        "/metrics": lambda: (200, CONTENT_TYPE, health.metrics()),
    }

    class Handler(BaseHTTPRequestHandler):
        timeout = _REQUEST_S  # a caller that sends nothing is not waited for
        server_version = "rdedge"
        sys_version = ""

        def do_GET(self) -> None:
            page = pages.get(self.path.partition("?")[0])
            status, kind, text = page() if page else (404, "text/plain", f"known: {', '.join(pages)}\n")
            data = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            """A scrape every few seconds is no news."""

    return Handler
