"""sd_notify over a real datagram socket; nothing where there is no service manager, and nothing waits for one."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from rdedge.line.notify import Notifier


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(10.0)
        yield listening


def test_states_are_told_in_systemds_words(manager: socket.socket, tmp_path: Path) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "30000000"})
    assert notifier.watchdog_s == 30.0
    notifier.ready()
    notifier.feed()
    notifier.feed()
    notifier.reloading()
    notifier.stopping()
    assert manager.recv(100) == f"READY=1\nMAINPID={os.getpid()}".encode()
    assert manager.recv(100) == b"WATCHDOG=1"
    assert manager.recv(100).startswith(b"RELOADING=1\nMONOTONIC_USEC="), "the second feed came too soon to be sent"
    assert manager.recv(100) == b"STOPPING=1"


def test_an_abstract_socket_is_one_too() -> None:
    name = f"rdedge-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"\0{name}")
        Notifier({"NOTIFY_SOCKET": f"@{name}"}).stopping()
        listening.settimeout(10.0)
        assert listening.recv(100) == b"STOPPING=1"


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"NOTIFY_SOCKET": ""},
        {"WATCHDOG_USEC": "x"},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "5000000", "WATCHDOG_PID": "1"},
    ],
)
def test_without_a_manager_nothing_happens(environment: dict[str, str]) -> None:
    notifier = Notifier(environment)
    assert notifier.watchdog_s is None
    notifier.ready()
    notifier.feed()


def test_a_manager_that_is_gone_or_does_not_listen_costs_nothing(manager: socket.socket, tmp_path: Path) -> None:
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready()
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")})
    for _ in range(5000):  # more than the socket holds
        notifier.ready()
