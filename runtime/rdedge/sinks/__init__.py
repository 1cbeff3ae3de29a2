"""Where inspections go: one module a kind."""

from rdedge.sinks.base import Sink
from rdedge.sinks.jsonl import JsonLinesSink
from rdedge.sinks.overlay import OverlaySink

__all__ = ["JsonLinesSink", "OverlaySink", "Sink"]
