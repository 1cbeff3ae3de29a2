"""Where inspections go: one module a kind. Those that need a package of an extra are imported where they are used."""

from rdedge.sinks.base import AlarmSink, Sink
from rdedge.sinks.budget import DiskBudget
from rdedge.sinks.detached import DetachedSink
from rdedge.sinks.jsonl import JsonLinesSink
from rdedge.sinks.overlay import OverlaySink

__all__ = ["AlarmSink", "DetachedSink", "DiskBudget", "JsonLinesSink", "OverlaySink", "Sink"]
