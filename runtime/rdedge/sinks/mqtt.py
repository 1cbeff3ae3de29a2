"""Verdicts and alarms to an MQTT broker. The only module that imports paho."""

from __future__ import annotations

import secrets
import ssl
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rdedge.errors import MissingExtraError, SinkError, UsageError
from rdedge.events import EventHandler
from rdedge.sinks.outbox import Outbox
from rdedge.sinks.spool import Item
from rdedge.sinks.spooled import SpooledSink

if TYPE_CHECKING:
    from paho.mqtt.client import Client, MQTTMessageInfo

_IN_FLIGHT = 64
_ACK_WAIT_S = 1.0
_KEEPALIVE_S = 15
_LONGEST_PAUSE_S = 30
_STOP_S = 2.0
_NO_CONNECTION = 4  # MQTT_ERR_NO_CONN


class MqttSink(SpooledSink):
    """Publishes with QoS 1, in order, from a spool on disk: a broker that was away gets everything, perhaps twice.

    ``<topic>/<camera>/verdict`` and ``.../alarm`` carry JSON records whose ``id`` tells a duplicate;
    ``.../status`` is retained: ``online``, and ``offline`` after closing or, as the last will, when the connection is
    lost (within 1.5 keep-alives of 15 s). Up to 64 messages wait for their acknowledgement at a time. MQTT 3.1.1, clean
    sessions: what is unacknowledged is in the spool, so the broker need not remember us.
    """

    def __init__(
        self,
        *,
        host: str,
        session: str,
        camera: str,
        spool: Path,
        on_event: EventHandler,
        port: int = 1883,
        topic: str = "rdedge",
        username: str | None = None,
        password: str | None = None,
        tls: ssl.SSLContext | None = None,
        spool_bytes: int = 64 << 20,
        drain_s: float = 5.0,
    ):
        """``spool``: a folder of this sink's own; ``tls``: see ``rdedge.sinks.tls``; ``drain_s``: see Outbox.

        Connects in the background. Raises MissingExtraError, UsageError, and SinkError if the spool cannot be used.
        """
        prefix = f"{topic}/{camera}"
        if any(sign in prefix for sign in "#+\0") or not topic or not camera:
            raise UsageError(f"MQTT topic {prefix!r}", remedy="name topic and camera, without # and +")
        self._address = f"mqtt://{host}:{port}"
        super().__init__(session=session, camera=camera)
        self._prefix = prefix
        self._status = f"{prefix}/status"
        self._trouble = "no connection yet"  # "" while connected
        self._handed: deque[MQTTMessageInfo] = deque()  # to paho, unacknowledged: the outbox's first so many
        self._handed_seq = 0
        self._client = self._make_client()
        if username is not None:
            self._client.username_pw_set(username, password)
        if tls is not None:
            self._client.tls_set_context(tls)
        self.outbox = Outbox(
            spool,
            self._deliver,
            name="mqtt",
            camera=camera,
            on_event=on_event,
            max_bytes=spool_bytes,
            batch=_IN_FLIGHT,
            longest_pause_s=_ACK_WAIT_S,
            drain_s=drain_s,
        )
        self._client.connect_async(host, port, _KEEPALIVE_S)
        self._client.loop_start()

    def close(self) -> None:
        """See Sink.close; takes up to ``drain_s`` and some seconds."""
        try:
            self.outbox.close()
        finally:
            if self._client.is_connected():
                self._client.publish(self._status, "offline", qos=1, retain=True).wait_for_publish(_ACK_WAIT_S)
            self._client.disconnect()
            # It waits for the last acknowledgement, which a broker that hangs never sends.
            stopping = threading.Thread(target=stop_loop, args=(self._client,), name="rdedge-mqtt-stop", daemon=True)
            stopping.start()
            stopping.join(_STOP_S)

    def _make_client(self) -> Client:
        try:
            from paho.mqtt import client as paho
            from paho.mqtt.enums import CallbackAPIVersion
        except ImportError as exc:
            raise MissingExtraError(f"MQTT needs paho ({exc})", remedy="pip install 'rdedge[mqtt]'") from exc
        # An id of chance: two clients of one name would throw each other out for ever.
        client = paho.Client(CallbackAPIVersion.VERSION2, client_id=f"rdedge-{secrets.token_hex(6)}")
        client.max_inflight_messages_set(0)  # the outbox bounds it
        client.reconnect_delay_set(1, _LONGEST_PAUSE_S)
        client.will_set(self._status, "offline", qos=1, retain=True)

        def connected(_client: Client, _userdata: Any, _flags: Any, reason: Any, _properties: Any) -> None:
            self._trouble = str(reason) if reason.is_failure else ""
            if not reason.is_failure:
                client.publish(self._status, "online", qos=1, retain=True)

        def disconnected(_client: Client, _userdata: Any, _flags: Any, reason: Any, _properties: Any) -> None:
            self._trouble = self._trouble or f"connection lost: {reason}"

        def refused(_client: Client, _userdata: Any) -> None:
            self._trouble = "nobody answers there"

        client.on_connect, client.on_disconnect, client.on_connect_fail = connected, disconnected, refused
        return client

    def _deliver(self, items: Sequence[Item]) -> int:
        """Each record goes to paho once, which sends it again after a lost connection until it is acknowledged."""
        for item in items:
            if item.seq > self._handed_seq:
                info = self._client.publish(f"{self._prefix}/{item.topic}", item.body, qos=1)
                if info.rc == _NO_CONNECTION:  # no fault: paho sends it after the next connection
                    info.rc = type(info.rc)(0)
                self._handed.append(info)
                self._handed_seq = item.seq
        until_s = time.monotonic() + _ACK_WAIT_S
        count = 0
        while self._handed:
            self._handed[0].wait_for_publish(max(0.0, until_s - time.monotonic()))
            if not self._handed[0].is_published():
                break
            self._handed.popleft()
            count += 1
        if count == 0 and self._trouble:
            raise SinkError(f"{self._address}: {self._trouble}", remedy="check the broker and the network")
        return count


def stop_loop(client: Client) -> None:
    """Ends a client's thread. paho's own fails where the thread ends while it is being ended; then it has ended.

    Source: https://github.com/eclipse-paho/paho.mqtt.python/issues/872
    """
    with suppress(AttributeError):
        client.loop_stop()
