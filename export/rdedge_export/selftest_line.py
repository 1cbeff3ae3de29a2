"""Self-test of what a line is connected to: its cameras give pictures, its sinks can be reached. No verdict is sent."""

from __future__ import annotations

import http.client
import itertools
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from rdedge.errors import ImageError, MissingExtraError, SinkError, SourceError
from rdedge.frames import Frame
from rdedge.line import config as tables
from rdedge.line.checked import Problems
from rdedge.line.outlets import tls_context
from rdedge.line.plan import Plan, make_plan
from rdedge.sinks.mqtt import stop_loop
from rdedge.sources import Camera, WatchLimits, is_camera, open_camera, open_source
from rdedge.sources.health import PictureCheck
from rdedge_export.selftest_result import Result, tried

_FRAMES = 60
_LONGEST_S = 20.0  # of looking at a slow camera
_TIMEOUT_S = 10.0
_REGISTERS = 8  # of a PLC; see rdedge.sinks.modbus
_LEAST_FREE_MB = 100
_TRIGGER = "trigger+"


def examine_camera(name: str, uri: str) -> Result:
    """Takes some frames: do they come, as often as the device says, and are they pictures?"""
    if uri.startswith(_TRIGGER):
        return Result(name, None, f"{uri.partition('#')[0]} waits for its trigger; test it without {_TRIGGER}")
    return tried(name, partial(_look, uri))


def examine_line(path: Path) -> Iterator[Result]:
    """The file and all it names, then each camera, then each sink once."""
    try:
        plan = make_plan(path)
    except Problems as exc:
        yield Result("line", False, "; ".join(exc.problems))
        return
    yield Result("line", True, f"{path}: {len(plan.config.camera)} cameras, {plan.config.backend}")
    seen: list[object] = []
    for camera in plan.config.camera:
        yield examine_camera(f"camera {camera.name}", plan.uri(camera))
    for camera in plan.config.camera:
        for kind, table, reach in _sinks(plan, camera):
            if table not in seen:
                seen.append(table)
                yield tried(f"{kind} {camera.name}", reach)


def _look(uri: str) -> str:
    """Raises RdedgeError: a fault of the camera is not waited for here."""
    if is_camera(uri):
        with closing(open_camera(uri)) as camera:
            return _judged(camera.name, _frames_of(camera), lambda: camera.info.fps)
    with closing(open_source(uri)) as source:
        return _judged(source.name, iter(source), None)


def _frames_of(camera: Camera) -> Iterator[Frame]:
    """Frames that can be used, for some time."""
    ends_s = time.monotonic() + _LONGEST_S
    while time.monotonic() < ends_s:
        try:
            frame = camera.read()
        except ImageError:
            continue
        if frame is None:
            return
        yield frame


def _judged(name: str, frames: Iterator[Frame], promised_fps: Callable[[], float | None] | None) -> str:
    """``promised_fps``: what the device says once frames have come; None for files, which come as fast as one reads."""
    limits = WatchLimits()
    check = PictureCheck(limits)
    times_s: list[float] = []
    faults: list[str] = []
    size_hw = (0, 0)
    for frame in itertools.islice(frames, _FRAMES):
        times_s.append(frame.captured_at_s)
        size_hw = frame.image_bgr_u8.shape[:2]
        fault = check.fault_of(frame)
        if fault is not None:
            faults.append(fault.text)
    if len(times_s) < 2:
        raise SourceError(f"{name}: gave {len(times_s)} frames", remedy="check the camera, its cable and its address")
    if len(faults) > len(times_s) // 2:
        raise SourceError(
            f"{name}: {len(faults)} of {len(times_s)} frames are no pictures: {faults[-1]}",
            remedy="check light, lens and exposure; `rdedge check-camera` says more",
        )
    text = f"{len(times_s)} frames of {size_hw[1]}x{size_hw[0]}"
    if promised_fps is not None:
        fps, promised = (len(times_s) - 1) / max(times_s[-1] - times_s[0], 1e-6), promised_fps()
        text += f", {fps:.1f} a second"
        if promised is not None and fps * limits.slow_factor < promised:
            raise SourceError(
                f"{name}: {text}, of {promised:.1f} promised", remedy="check bandwidth, exposure time and cable"
            )
    return f"{text}; {len(faults)} of them black, frozen or damaged" if faults else text


def _sinks(plan: Plan, camera: tables.Camera) -> Iterator[tuple[str, object, Callable[[], str]]]:
    """Kind, table and test of each sink of a camera."""
    sinks = plan.config.sinks_of(camera)
    if sinks.jsonl is not None or sinks.pictures is not None:
        yield "files", "files", partial(_files, plan.file(plan.config.out))
    if sinks.mqtt is not None:
        yield "mqtt", sinks.mqtt, partial(_mqtt, plan, sinks.mqtt)
    if sinks.webhook is not None:
        yield "webhook", sinks.webhook, partial(_webhook, plan, sinks.webhook)
    if sinks.modbus is not None:
        yield "modbus", sinks.modbus, partial(_modbus, sinks.modbus)
    if sinks.gpio is not None:
        yield "gpio", sinks.gpio, partial(_gpio, sinks.gpio)


def _files(out: Path) -> str:
    folder = next(folder for folder in (out, *out.absolute().parents) if folder.is_dir())
    free_mb = shutil.disk_usage(folder).free // 1_000_000
    if not os.access(folder, os.W_OK | os.X_OK):
        raise SinkError(f"{folder} may not be written", remedy="give the line's user the folder")
    if free_mb < _LEAST_FREE_MB:
        raise SinkError(f"{folder} has {free_mb} MB left", remedy="free some, or name another folder")
    return f"{out}: {free_mb} MB free"


def _mqtt(plan: Plan, table: tables.Mqtt) -> str:
    """The broker must take the name and the password; nothing is published."""
    try:
        from paho.mqtt import client as paho
        from paho.mqtt.enums import CallbackAPIVersion
    except ImportError as exc:
        raise MissingExtraError(f"MQTT needs paho ({exc})", remedy="pip install 'rdedge[mqtt]'") from exc
    address = f"mqtt://{table.host}:{table.port}"
    answered, told = threading.Event(), ["no answer"]

    def answer(text: str) -> None:
        told[0] = text
        answered.set()

    client = paho.Client(CallbackAPIVersion.VERSION2)
    if table.username is not None:
        client.username_pw_set(table.username, plan.secret(table.password_file))
    context = tls_context(table.tls, plan.file)
    if context is not None:
        client.tls_set_context(context)
    client.on_connect = lambda _c, _u, _f, reason, _p: answer(str(reason) if reason.is_failure else "")
    client.on_connect_fail = lambda _c, _u: answer("nobody answers there")
    client.connect_timeout = _TIMEOUT_S
    client.connect_async(table.host, table.port)
    client.loop_start()
    try:
        answered.wait(_TIMEOUT_S)
    finally:
        client.disconnect()
        stop_loop(client)
    if told[0]:
        raise SinkError(f"{address}: {told[0]}", remedy="check the broker, its address, name and password")
    return f"{address} takes us"


def _webhook(plan: Plan, table: tables.Webhook) -> str:
    """The server must answer the connection; nothing is posted."""
    url = urlsplit(table.url)
    host, context = url.hostname or "", tls_context(table.tls, plan.file)
    connection = (
        http.client.HTTPSConnection(host, url.port, timeout=_TIMEOUT_S, context=context)
        if url.scheme == "https"
        else http.client.HTTPConnection(host, url.port, timeout=_TIMEOUT_S)
    )
    where = f"{host}:{connection.port}"
    try:
        connection.connect()
    except OSError as exc:
        raise SinkError(f"{where}: {exc}", remedy="check the server, its address and its certificate") from exc
    finally:
        connection.close()
    return f"{where} answers; nothing was posted"


def _modbus(table: tables.Modbus) -> str:
    """The PLC must let the registers be read; nothing is written."""
    try:
        from pymodbus.client import ModbusTcpClient
        from pymodbus.exceptions import ModbusException
    except ImportError as exc:
        raise MissingExtraError(f"Modbus needs pymodbus ({exc})", remedy="pip install 'rdedge[modbus]'") from exc
    where = f"modbus://{table.host}:{table.port}"
    remedy = "check the PLC, its address, device_id and registers"
    client = ModbusTcpClient(table.host, port=table.port, timeout=_TIMEOUT_S, retries=0)
    try:
        if not client.connect():  # type: ignore[no-untyped-call]
            raise SinkError(f"{where}: nobody answers there", remedy=remedy)
        answer = client.read_holding_registers(table.address, count=_REGISTERS, device_id=table.device_id)
    except (OSError, ModbusException) as exc:
        raise SinkError(f"{where}: {exc}", remedy=remedy) from exc
    finally:
        client.close()  # type: ignore[no-untyped-call]
    if answer.isError():
        raise SinkError(f"{where}: the PLC refuses: {answer}", remedy=remedy)
    return f"{where}: registers {table.address} to {table.address + _REGISTERS - 1} can be read"


def _gpio(table: tables.Gpio) -> str:
    """The pins must be there and free; none is driven."""
    try:
        import gpiod
    except ImportError as exc:
        raise MissingExtraError(f"GPIO needs gpiod ({exc})", remedy="pip install 'rdedge[gpio]'") from exc
    lines = [line for line in (table.line, table.heartbeat_line) if line is not None]
    try:
        with gpiod.Chip(table.chip) as chip:
            infos = [chip.get_line_info(line) for line in lines]
    except (OSError, ValueError) as exc:  # ValueError: no line of that name
        raise SinkError(
            f"{table.chip}, lines {lines}: {exc}", remedy="see `gpiodetect` and `gpioinfo`, and the group gpio"
        ) from exc
    taken = [f"{info.offset} by {info.consumer}" for info in infos if info.used]
    if taken:
        raise SinkError(f"{table.chip}: used already: line {', '.join(taken)}", remedy="stop what uses it")
    return f"{table.chip}, lines {lines}: free"
