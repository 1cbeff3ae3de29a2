"""The services: systemd accepts them, finds them well walled in, and what they start does what they rely on."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from rdedge.line.config import read_config

UNITS = Path(__file__).parents[2] / "jetson/systemd"
LINE, ENGINE = "rdedge@.service", "rdedge-engine@.service"
EXPOSURE = {LINE: 1.9, ENGINE: 1.0}  # systemd 252's scale from 0 to 10; below 2.5 it says OK
TIMEOUT_S = 300
UNPLUGGED = ["unshare", "--net", "--map-root-user", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]

TOML = """
bundle = "{bundle}"
out = "{out}"
[metrics]
[page]
[sinks.jsonl]
[sinks.mqtt]
host = "broker.local"
[[camera]]
name = "top"
uri = "http://camera.local/stream"
policy = "latest"
"""


def settings(name: str) -> dict[str, list[str]]:
    """Every key of a unit with its values, in order."""
    found: dict[str, list[str]] = {}
    for line in (UNITS / name).read_text().splitlines():
        if line and not line.startswith(("#", "[")):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


@pytest.fixture(scope="module")
def units(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The units, with programs that are there in place of the board's."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("apt-get install systemd")
    folder = tmp_path_factory.mktemp("units")
    for name in (LINE, ENGINE):
        text = (UNITS / name).read_text()
        (folder / name).write_text(re.sub(r"/opt/rdedge/venv/bin/\w+", "/bin/true", text))
    return folder


@pytest.mark.parametrize("name", [LINE, ENGINE])
def test_systemd_accepts_them_without_a_word(units: Path, name: str) -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=one", name.replace("@", "@press4")],
        cwd=units,
        env=os.environ | {"SYSTEMD_UNIT_PATH": f"{units}:/lib/systemd/system"},
        capture_output=True,
        text=True,
    )
    said = [line for line in done.stderr.splitlines() if "rdedge" in line]
    assert said == []
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", [LINE, ENGINE])
def test_they_are_as_well_walled_in_as_stated(units: Path, name: str) -> None:
    done = subprocess.run(
        [
            "systemd-analyze",
            "security",
            "--offline=true",
            "--no-pager",
            f"--threshold={EXPOSURE[name] * 10:.0f}",
            units / name,
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    score = re.search(r"exposure level for .*: ([\d.]+)", done.stdout)
    assert score is not None and float(score.group(1)) <= EXPOSURE[name]


def test_the_line_waits_for_no_network_and_is_watched() -> None:
    line = settings(LINE)
    everything = " ".join(value for name in (LINE, ENGINE) for values in settings(name).values() for value in values)
    assert "network" not in everything and "time-sync" not in everything
    assert line["WantedBy"] == ["multi-user.target"]
    assert "nvargus-daemon.service" in line["After"][0].split()
    assert (line["Type"], line["Restart"], line["WatchdogSec"]) == (["notify"], ["always"], ["30"])
    assert int(line["StartLimitBurst"][0]) * int(line["RestartSec"][0]) < int(line["StartLimitIntervalSec"][0])
    assert "PrivateTmp" not in line  # /tmp/argus_socket is nvargus-daemon's
    assert line["LogNamespace"] == settings(ENGINE)["LogNamespace"] == ["rdedge"]
    assert "SystemMaxUse=" in (UNITS / "journald@rdedge.conf").read_text()


def test_the_gpu_of_both_is_the_same_and_nothing_else_is_open() -> None:
    line, engine = settings(LINE)["DeviceAllow"], settings(ENGINE)["DeviceAllow"]
    assert set(line) - set(engine) == {f"char-{name} rw" for name in ("video4linux", "media", "usb_device", "gpiochip")}
    assert settings(LINE)["DevicePolicy"] == settings(ENGINE)["DevicePolicy"] == ["closed"]
    assert not any(re.search(r"char-\*|/dev/mem|block-", value) for value in line + engine)


def test_a_camera_that_comes_later_is_in_a_class_of_devices_that_is_known_at_the_start() -> None:
    """systemd looks up the numbers of DeviceAllow=char-… once; booted_board.py shows what happens otherwise."""
    line = settings(LINE)
    assert {"char-video4linux rw", "char-media rw"} <= set(line["DeviceAllow"])
    loader = "modprobe@videodev.service"
    assert loader in " ".join(line["Wants"]).split() and loader in " ".join(line["After"]).split()


@pytest.fixture
def notified(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as received:
        received.bind(str(tmp_path / "notify"))
        received.settimeout(TIMEOUT_S)
        yield received


def test_the_line_starts_and_feeds_its_watchdog_with_the_network_unplugged(
    tmp_path: Path, tiny_bundle: Path, notified: socket.socket
) -> None:
    """What ExecStart starts, in a network of nothing but loopback: neither its camera nor its broker can be reached."""
    file = tmp_path / "press4.toml"
    file.write_text(TOML.format(bundle=tiny_bundle, out=tmp_path / "out"))
    program, *arguments = settings(LINE)["ExecStart"][0].replace("/etc/rdedge/%i.toml", str(file)).split()
    assert program.endswith("/bin/rdedge")
    process = subprocess.Popen(
        [*UNPLUGGED, sys.executable, "-m", "rdedge", *arguments],
        env=os.environ | {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "2000000"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        said = [notified.recv(4096).decode() for _ in range(4)]
        assert said[0] == f"READY=1\nMAINPID={process.pid}"
        assert said[1:] == ["WATCHDOG=1"] * 3
    finally:
        process.terminate()
        out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, out + err


@pytest.fixture(scope="module")
def line_engines() -> ModuleType:
    spec = importlib.util.spec_from_file_location("line_engines", UNITS / "line_engines.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("backend", "options"),
    [
        ("tensorrt", ["--backend", "tensorrt", "--if-needed"]),
        ("tensorrt-rtx", ["--backend", "tensorrt-rtx", "--if-needed"]),
        ("tensorrt-dla1", ["--backend", "tensorrt", "--if-needed", "--dla", "1"]),
        ("openvino", ["--backend", "openvino", "--if-needed"]),
        ("onnxruntime", None),
        ("fake", None),
    ],
)
def test_each_bundle_of_a_line_gets_the_engine_it_asks_for(
    tmp_path: Path, line_engines: ModuleType, backend: str, options: list[str] | None
) -> None:
    file = tmp_path / "line.toml"
    cameras = "".join(
        f'[[camera]]\nname = "{name}"\nuri = "csi://0"\npolicy = "latest"\n{extra}\n'
        for name, extra in (("a", ""), ("b", 'bundle = "/data/other"'), ("c", ""))
    )
    file.write_text(f'bundle = "bundle"\nout = "out"\nbackend = "{backend}"\nprecision = "fp16"\n{cameras}')
    wanted = [str(tmp_path / "bundle"), "/data/other"] if options is not None else []
    expected = [["engine", bundle, "--precision", "fp16", *(options or [])] for bundle in wanted]
    assert line_engines.commands(file, read_config(file)) == expected


def test_openvino_in_fp32_needs_no_engine(tmp_path: Path, line_engines: ModuleType) -> None:
    file = tmp_path / "line.toml"
    camera = '[[camera]]\nname = "a"\nuri = "csi://0"\npolicy = "latest"\n'
    file.write_text(f'bundle = "bundle"\nout = "out"\nbackend = "openvino"\nprecision = "fp32"\n{camera}')
    assert line_engines.commands(file, read_config(file)) == []


def test_a_wrong_file_and_a_missing_bundle_are_told(
    tmp_path: Path, line_engines: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "line.toml"
    file.write_text('out = "out"\ncolour = 1\n')
    assert line_engines.build(file) == 2
    err = capsys.readouterr().err
    assert "colour" in err and f"rdedge: error: {file} has" in err
    file.write_text(
        'bundle = "none"\nout = "out"\nbackend = "tensorrt"\n'
        '[[camera]]\nname = "a"\nuri = "csi://0"\npolicy = "latest"\n'
    )
    assert line_engines.build(file) == 2
    assert f"rdedge: error: {tmp_path / 'none'}" in capsys.readouterr().err
