"""A camera's sinks as its tables say: opened, changed while the line runs, and closed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from ssl import SSLContext

import msgspec

from rdedge.errors import RdedgeError
from rdedge.events import Event, EventHandler
from rdedge.line import config as tables
from rdedge.line.together import at_once
from rdedge.sinks import DetachedSink, DiskBudget, JsonLinesSink, OverlaySink, Sink

MB = 1_000_000
ACTUATORS = ("modbus", "gpio")  # they act on parts, the others tell of frames

File = Callable[[str], Path]
Secret = Callable[[str | None], str | None]


class Outlets:
    """The open sinks of one camera, by kind."""

    def __init__(
        self,
        camera: str,
        *,
        session: str,
        folder: Path,
        roi_xywh: tuple[int, int, int, int] | None,
        file: File,
        secret: Secret,
        drain_s: float,
        on_event: EventHandler,
    ):
        """``folder``: for all files of this camera; ``file`` and ``secret``: of a name in the line's file."""
        self._camera, self._session, self._folder, self._roi_xywh = camera, session, folder, roi_xywh
        self._file, self._secret = file, secret
        self._drain_s = drain_s
        self._on_event = on_event
        self._tables = tables.Sinks()
        self._open: dict[str, Sink] = {}

    def set(self, wanted: tables.Sinks) -> None:
        """Close what is no longer asked for as it is, then open what is new; the rest goes on.

        Raises RdedgeError where a sink cannot be opened; then those that were there before are open again, as far as
        they can be.
        """
        before = self._tables
        try:
            self._change_to(wanted)
        except RdedgeError:
            self._change_to(before)
            raise

    @property
    def sinks(self) -> list[Sink]:
        """Those that get every verdict."""
        return [sink for kind, sink in self._open.items() if kind not in ACTUATORS]

    @property
    def actuators(self) -> list[Sink]:
        """Those that act on a part."""
        return [sink for kind, sink in self._open.items() if kind in ACTUATORS]

    @property
    def listeners(self) -> list[EventHandler]:
        """Sinks that forward alarms."""
        return [sink.event for sink in self._open.values() if hasattr(sink, "event")]

    def close(self) -> None:
        """Flush and release all, at the same time; what cannot be flushed is told. May be called twice."""
        at_once(partial(self._close, kind) for kind in list(self._open))

    def _change_to(self, wanted: tables.Sinks) -> None:
        for kind in wanted.__struct_fields__:
            table = getattr(wanted, kind)
            if kind in self._open and table == getattr(self._tables, kind):
                continue
            self._close(kind)
            self._open.pop(kind, None)
            self._tables = msgspec.structs.replace(self._tables, **{kind: None})
            if table is not None:
                self._open[kind] = getattr(self, f"_{kind}")(table)
            self._tables = msgspec.structs.replace(self._tables, **{kind: table})

    def _close(self, kind: str) -> None:
        sink = self._open.get(kind)
        if sink is None:
            return
        try:
            sink.close()
        except RdedgeError as exc:
            self._on_event(Event(kind="sink-fault", severity="error", text=str(exc), camera=self._camera))

    def _jsonl(self, table: tables.JsonLines) -> Sink:
        return JsonLinesSink(
            self._folder / "verdicts.jsonl",
            self._session,
            camera=self._camera,
            max_bytes=table.max_mb * MB,
            keep_files=table.keep_files,
            on_event=self._on_event,
        )

    def _pictures(self, table: tables.Pictures) -> Sink:
        root = self._folder / "rejects"
        budget = DiskBudget(root, max_bytes=table.max_mb * MB, keep_rejects=table.keep_rejects)
        overlay = OverlaySink(root / self._session, self._roi_xywh, good_every=table.sample_good, budget=budget)
        return DetachedSink(
            overlay,
            wants=overlay.wants,
            name="pictures",
            camera=self._camera,
            on_event=self._on_event,
            drain_s=self._drain_s,
        )

    def _mqtt(self, table: tables.Mqtt) -> Sink:
        from rdedge.sinks.mqtt import MqttSink

        return MqttSink(
            host=table.host,
            port=table.port,
            topic=table.topic,
            username=table.username,
            password=self._secret(table.password_file),
            tls=tls_context(table.tls, self._file),
            session=self._session,
            camera=self._camera,
            spool=self._folder / "spool-mqtt",
            spool_bytes=table.spool_mb * MB,
            drain_s=self._drain_s,
            on_event=self._on_event,
        )

    def _webhook(self, table: tables.Webhook) -> Sink:
        from rdedge.sinks.webhook import WebhookSink

        return WebhookSink(
            url=table.url,
            secret=self._secret(table.secret_file),
            tls=tls_context(table.tls, self._file),
            session=self._session,
            camera=self._camera,
            spool=self._folder / "spool-webhook",
            spool_bytes=table.spool_mb * MB,
            drain_s=self._drain_s,
            on_event=self._on_event,
        )

    def _modbus(self, table: tables.Modbus) -> Sink:
        from rdedge.sinks.modbus import ModbusSink

        return ModbusSink(
            host=table.host,
            port=table.port,
            device_id=table.device_id,
            address=table.address,
            heartbeat_s=table.heartbeat_s,
            hold_s=table.hold_s,
            camera=self._camera,
            on_event=self._on_event,
        )

    def _gpio(self, table: tables.Gpio) -> Sink:
        from rdedge.sinks.gpio import GpioSink

        return GpioSink(
            chip=table.chip,
            line=table.line,
            pulse_s=table.pulse_s,
            active_low=table.active_low,
            heartbeat_line=table.heartbeat_line,
            on=table.on,
            camera=self._camera,
            on_event=self._on_event,
        )


def tls_context(table: tables.Tls | None, file: File) -> SSLContext | None:
    """Of a sink's ``tls`` table; ``file``: its names to paths. Raises UsageError."""
    from rdedge.sinks.tls import client_context

    if table is None:
        return None
    ca_file, cert_file, key_file = (
        None if name is None else file(name) for name in (table.ca_file, table.cert_file, table.key_file)
    )
    return client_context(ca_file=ca_file, cert_file=cert_file, key_file=key_file)
