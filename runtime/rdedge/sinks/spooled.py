"""What sinks with an outbox have in common: verdicts and alarms go into it as JSON."""

from __future__ import annotations

import msgspec

from rdedge.events import Event
from rdedge.inspector import Inspection
from rdedge.sinks.outbox import Outbox
from rdedge.sinks.record import event_record, inspection_record


class SpooledSink:
    """Whoever extends it sets ``outbox`` and closes it."""

    outbox: Outbox

    def __init__(self, *, session: str, camera: str):
        self._session = session
        self._camera = camera

    def write(self, inspection: Inspection) -> None:
        """See Sink.write."""
        record = inspection_record(inspection, session=self._session, camera=self._camera)
        self.outbox.append("verdict", msgspec.json.encode(record))

    def event(self, event: Event) -> None:
        """See AlarmSink.event."""
        self.outbox.append("alarm", msgspec.json.encode(event_record(event, session=self._session)))
