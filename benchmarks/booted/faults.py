"""What a board must get over: a hung and a killed line, an unplugged camera, a full disk, a power cut; and the end."""

from __future__ import annotations

from booted.line import DATA, ENGINE, FILE, PINS, PLENTY_S, REJECT_PIN, UNIT, VERDICTS, Line, expect, parse, pause
from booted.root import PLACE

_DRIVER = "/sys/bus/platform/drivers/vivid"
_PICTURES = f"""/opt/rdedge/venv/bin/python -s - <<'END'
import cv2, pathlib
found = [path for path in pathlib.Path("{DATA}/results/top").rglob("*") if path.suffix in (".png", ".jpg")]
bad = [str(path) for path in found if cv2.imread(str(path)) is None]
print(len(found), *bad)
END"""


def hung_line_is_restarted(line: Line) -> str:
    """SIGSTOP: the process is there and does nothing, as one that waits for a driver for ever."""
    pid, restarts = line.state()
    line.do(f"kill -STOP {pid}")
    killed_s = line.wait(f"! test -e /proc/{pid}", "systemd ends it")
    ready_s = killed_s + line.wait(_is_new(line, restarts), "it runs again")
    log = line.do(f"journalctl -b --no-pager -o cat -u {UNIT} | grep -i watchdog || true")
    expect("atchdog timeout" in log, f"not by the watchdog: {log!r}")
    expect(
        15.0 < killed_s < 120.0,
        f"killed after {killed_s:.0f} s, expected the 30 s of WatchdogSec and what emulation adds",
    )
    line.wait_for_verdicts(2)
    return (
        f"killed {killed_s:.0f} s after it stopped ({log.splitlines()[0]}), ready again after {ready_s:.0f} s, judges"
    )


def killed_line_is_restarted(line: Line) -> str:
    """SIGKILL; the file of verdicts goes on with whole lines."""
    pid, restarts = line.state()
    line.do(f"kill -KILL {pid}")
    ready_s = line.wait(_is_new(line, restarts), "it runs again")
    line.wait_for_verdicts(2)
    return f"ready again after {ready_s:.0f} s, judges, {len(line.records())} whole lines"


def _is_new(line: Line, restarts: str) -> str:
    return f'{line.is_active()} && [ "$(systemctl show --value -p NRestarts {UNIT})" -gt {restarts} ]'


def unplugged_camera_is_told_once(line: Line) -> str:
    """The driver is taken off the device while the line reads from it, and put back a while later."""
    before, mark = line.state(), line.mark()
    line.do(f"echo vivid.0 >{_DRIVER}/unbind")
    try:
        line.wait("! test -e /dev/video0", "the device is gone")
        pause(15.0)
        health, told = line.health(), [text for text in line.log_since(mark) if ": error: " in text]
    finally:
        line.do(f"echo vivid.0 >{_DRIVER}/bind")
    expect(health["ok"] is False and bool(health["cameras"]["top"]["faults"]), f"health: {health}")
    expect(len(told) == 1, f"told {len(told)} times: {told}")
    expect(line.do(f"systemctl is-active {UNIT}") == "active", "not active")
    _, back_s = line.wait_for_verdicts(6)
    expect(line.state() == before, f"restarted: {before}, {line.state()}")
    line.wait(_is_healthy(), "it is healthy again")
    return f'told once ("{told[0][:150]}"), 503 meanwhile, judging {back_s:.0f} s after it was back, same process'


def _is_healthy() -> str:
    return "python3 -c 'import urllib.request as u; u.urlopen(\"http://127.0.0.1:9188/healthz\", timeout=30)'"


def full_disk_is_got_over(line: Line) -> str:
    """To the last byte, for a while; the line goes on, and nothing is half-written."""
    before, mark = line.state(), line.mark()
    try:
        line.do(f"cat /dev/zero >{DATA}/filler 2>/dev/null; sync; ! runuser -u rdedge -- sh -c 'echo x >{DATA}/more'")
        line.wait(f"{line.log_command()} --after-cursor='{mark}' | grep -q 'No space left'", "it is told")
        judged = _judged(line)
        pause(10.0)
        judged_on = _judged(line) - judged
        parsed, end = parse(line.do(f"cat {VERDICTS}")), line.do(f"tail -c 1 {VERDICTS} | od -An -c").strip()
        said = [text for text in line.log_since(mark) if ": error: " in text]
    finally:
        line.do(f"rm -f {DATA}/filler {DATA}/more")
    expect(judged_on > 0, "it does not judge on")
    expect(not parsed.broken and end == "\\n", f"half a line: {parsed.broken[:1]}, ends with {end}")
    expect(len(said) == 1, f"told {len(said)} times: {said}")
    records, back_s = line.wait_for_verdicts(3)
    expect(line.state() == before, f"restarted: {before}, {line.state()}")
    indices = [r["index"] for r in line.records() if r["session"] == records[0]["session"]]
    expect(indices == sorted(set(indices)), "out of order, or twice")
    pictures = line.do(_PICTURES, PLENTY_S).split()
    expect(len(pictures) == 1, f"no pictures: {pictures[1:]}")
    told = f'told once ("{said[0][:150]}"), {judged_on} judged meanwhile, lines whole'
    return f"{told}, written again {back_s:.0f} s after there was space; {pictures[0]} pictures, all whole"


def _judged(line: Line) -> int:
    return int(line.health()["cameras"]["top"]["judged"])


def power_cut_is_got_over(line: Line) -> str:
    """A reset of the machine in the middle of writing."""
    line.wait_for_verdicts(4)
    known = {r["id"] for r in line.records()}
    pause(3.0)  # JsonLinesSink promises all but the last second
    line.board.cut_power()
    text = line.do(f"cat {VERDICTS}")
    parsed = parse(text)
    line.wait(line.is_active(), "the line runs")
    line.wait_for_verdicts(3)
    after = line.records()  # raises for a line that is none
    missing = known - {r["id"] for r in after}
    expect(not missing, f"{len(missing)} of {len(known)} verdicts that were 3 s old are gone")
    expect(len(parsed.broken) <= 1, f"{len(parsed.broken)} broken lines after the cut")
    replayed = line.do("journalctl -b --no-pager -o cat -k | grep -c 'recovery complete' || true")
    kept = f"all {len(known)} verdicts of before are there, broken lines {len(parsed.broken)}, then none"
    return f"runs again, {kept}; file systems' journals replayed: {replayed}"


def stops_cleanly(line: Line) -> str:
    """By systemctl: what waits is judged, the pins are low."""
    line.do(f"systemctl stop {UNIT}", PLENTY_S)
    result, code = line.show("Result"), line.show("ExecMainStatus")
    pin = line.do(f"cat {PINS}{REJECT_PIN}/value")
    expect((result, code, pin) == ("success", "0", "0"), f"{result}, exit code {code}, pin {pin}")
    line.do(f"systemctl start {UNIT}", PLENTY_S)
    return "exit code 0, pin low; started again"


def uninstalls(line: Line) -> str:
    """While the line runs; its data and file stay, then --purge takes them too."""
    line.do(f"bash {PLACE}/jetson/install.sh --uninstall 2>&1", PLENTY_S)
    left = line.do(
        f"systemctl list-units --all --no-legend --plain '{UNIT}.service' '{ENGINE}.service'; pgrep -u rdedge || true; "
        "ls -d /etc/systemd/system/*.wants/rdedge* /opt/rdedge /usr/local/bin/rdedge "
        "/usr/local/lib/systemd/system/rdedge* /etc/udev/rules.d/60-rdedge* 2>/dev/null || true"
    )
    expect(left == "", f"left: {left}")
    line.do(f"test -s {VERDICTS} && test -s {FILE} && test -s {DATA}/bundle/model.onnx && id rdedge")
    line.do(f"bash {PLACE}/jetson/install.sh --uninstall --purge 2>&1", PLENTY_S)
    line.do(f"! id rdedge 2>/dev/null && ! test -e {FILE} && ! test -e {DATA}/bundle")
    expect(line.do("systemctl --failed --no-legend --plain") == "", "failed units are left")
    return "service, program and rules gone, verdicts, line file and bundle stay; --purge takes them and the user"
