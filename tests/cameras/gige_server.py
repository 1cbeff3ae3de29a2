"""A real GigE Vision camera on loopback: ``gige_server.py ADDRESS``, Aravis's own fake (Debian: gir1.2-aravis-0.8)."""

from __future__ import annotations

import ctypes
import fcntl
import signal
import sys
import threading
from pathlib import Path
from tempfile import gettempdir

import gi

gi.require_version("Aravis", "0.8")
from gi.repository import Aravis  # noqa: E402

PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a killed test run leaves no camera that the next waits for

# GigE Vision's port is fixed, so two test runs on one machine must take turns.
turn = open(Path(gettempdir(), "rdedge-test-gige.lock"), "w")  # noqa: SIM115 - held until this process ends
fcntl.flock(turn, fcntl.LOCK_EX)
camera = Aravis.GvFakeCamera.new(sys.argv[1], "rdedge-test")
if not camera.is_running():
    raise SystemExit(f"{sys.argv[1]}: no camera can be here")
print("ready", flush=True)
threading.Event().wait()
