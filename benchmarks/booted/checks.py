"""What a board must show once it is installed and has started: the service, its walls, its log, its pins."""

from __future__ import annotations

import json
import re
from statistics import median

from booted.line import (
    DATA,
    ENGINE,
    FILE,
    HEARTBEAT_PIN,
    PINS,
    PLENTY_S,
    REJECT_PIN,
    TOML,
    UNIT,
    VERDICTS,
    Line,
    expect,
)
from booted.root import PLACE

_INSTALL_S = 900.0
EXPOSURE = {UNIT: 1.9, ENGINE: 1.0}  # as in the guide
_ALLOWED = ("/dev/null", "/dev/urandom", "/dev/video0", "/dev/media0", "/dev/gpiochip0")
_REFUSED = ("/dev/vda", "/dev/kmsg", "/dev/mem", "/dev/ttyS0", "/dev/rtc0", "/dev/input/event0")
_READ_ONLY = ("/etc", "/etc/rdedge", "/usr", "/opt/rdedge", "/var/log", "/tmp", "/root", "/home", "/boot", "/srv")
_WRITABLE = (DATA, "/run/rdedge-press")
_GOOD, _OTHER = 0, 7  # vivid's pictures: colour bars; red

_OPEN = """
import errno, os
for path in {paths!r}:
    try:
        os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))
        print(path, "opened")
    except OSError as exc:
        print(path, errno.errorcode[exc.errno])
"""
_TOUCH = """
import errno, os
for folder in {paths!r}:
    path = folder + "/board-check"
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT))
        os.unlink(path)
        print(folder, "written")
    except OSError as exc:
        print(folder, errno.errorcode[exc.errno])
"""
# Counts a pin's pulses while the camera shows one picture, then the other, then the first again.
WATCH_PIN = """
import subprocess, time
show = lambda n: subprocess.run(["v4l2-ctl", "-d", "/dev/video0", "-c", f"test_pattern={{n}}"], check=True)
steps, edges, last = {steps!r}, 0, "0"
for pattern, seconds in steps:
    if pattern is not None:
        show(pattern)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = open("{pin}/value").read().strip()
        edges += {counted}
        last = value
        time.sleep(0.02)
print(edges)
"""


def installs_again(line: Line) -> str:
    """The installer in the booted board, over what it left in a chroot."""
    said = line.do(f"bash {PLACE}/jetson/install.sh --wheels {PLACE}/wheels 2>&1", _INSTALL_S)
    expect("is right, kept" in said, f"the environment was not kept: {said[-600:]}")
    log = line.do("cat /var/log/rdedge-install.log")
    wanted = (
        "+ systemctl daemon-reload",
        "+ udevadm control --reload",
        "+ udevadm trigger",
        "+ sysctl",
        "+ systemd-tmpfiles",
    )
    expect(all(word in log for word in wanted), f"not all of {wanted} ran")
    return f"exit code 0; ran {', '.join(word[2:] for word in wanted)}"


def devices_are_rdedges(line: Line) -> str:
    """Rules of udev, sysctl and tmpfiles."""
    seen = line.do("stat -c '%n %G %a' /dev/video0 /dev/gpiochip0").splitlines()
    expect(seen == ["/dev/video0 video 660", "/dev/gpiochip0 gpio 660"], f"{seen}")
    buffer = line.do("cat /proc/sys/net/core/rmem_max")
    memory = line.do("cat /sys/module/usbcore/parameters/usbfs_memory_mb")
    expect((buffer, memory) == ("33554432", "1000"), f"rmem_max {buffer}, usbfs_memory_mb {memory}")
    return f"{'; '.join(seen)}; rmem_max {buffer}, usbfs_memory_mb {memory}"


def line_is_put_up(line: Line) -> str:
    """The guide's steps: bundle, line file, dry run as rdedge, enable."""
    line.do(
        f"chown -R rdedge: {DATA}/bundle && cat >{FILE} <<'END'\n{TOML}END\nchown root:rdedge {FILE}; chmod 640 {FILE}"
    )
    line.do(f"runuser -u rdedge -- rdedge run --line {FILE} --dry-run", PLENTY_S)
    line.do(f"systemctl enable --now {UNIT}", PLENTY_S)
    line.do(line.is_active())
    return "dry run as rdedge, then systemctl enable --now: active"


def runs_after_restart(line: Line) -> str:
    """Without anybody's help, without a network card, and without a camera: not even its driver is there yet."""
    line.do("touch /etc/board-without-camera; sync")
    line.board.reboot()
    line.wait(line.is_active(), "the line runs")
    cards = line.do("ls /sys/class/net").split()
    expect(cards == ["lo"], f"network: {cards}")
    expect(line.show("NRestarts") == "0", "it was restarted")
    passed_us = int(line.show("ActiveEnterTimestampMonotonic"))
    return f"Type=notify, ready {passed_us / 1e6:.0f} s after the kernel began; network cards: none"


def camera_plugged_in_later(line: Line) -> str:
    """The line started while the kernel had no camera, and must be allowed the one that comes."""
    before = line.state()
    expect(line.board.run("test -e /dev/video0").code != 0, "there is a camera")
    expect(line.health()["ok"] is False, "healthy without a camera")
    line.do("rm /etc/board-without-camera; modprobe vivid n_devs=1 node_types=0x1 num_inputs=1 input_types=0")
    _, passed_s = line.wait_for_verdicts(3, 180.0)
    expect(line.state() == before, f"restarted: {before}, {line.state()}")
    return f"judging {passed_s:.0f} s after its driver came, same process"


def engine_ran_first(line: Line) -> str:
    """rdedge-engine@press, which has nothing to build for onnxruntime."""
    result, code = line.show("Result", ENGINE), line.show("ExecMainStatus", ENGINE)
    ended, began = line.show("ExecMainExitTimestampMonotonic", ENGINE), line.show("ExecMainStartTimestampMonotonic")
    expect((result, code) == ("success", "0") and 0 < int(ended) <= int(began), f"{result}, {code}, {ended}, {began}")
    return f"Result={result}, ended {(int(began) - int(ended)) / 1e3:.0f} ms before the line was started"


def nothing_is_wrong(line: Line) -> str:
    """systemd's own view of this start."""
    failed = line.do("systemctl --failed --no-legend --plain")
    expect(failed == "", f"failed units: {failed}")
    complaints = line.do("journalctl -b --no-pager -o cat -p warning | grep -iE 'rdedge|cycle|unknown key' || true")
    expect(complaints == "", complaints)
    return "no failed unit; no warning of the units, no ordering cycle"


def verdicts_come(line: Line) -> str:
    """From the kernel's camera, in files of rdedge."""
    records, passed_s = line.wait_for_verdicts(5)
    expect(all(r["source"].startswith("v4l2:///dev/video0") for r in records), f"{records[0]}")
    owner = line.do(f"stat -c '%U %a' {VERDICTS}")
    expect(owner == "rdedge 640", owner)
    return f"{len(records)} verdicts from /dev/video0 in {passed_s:.0f} s, {VERDICTS} of {owner}"


def walls_stand(line: Line) -> str:
    """Of the running process."""
    pid = line.show("MainPID")
    text = line.do(f"cat /proc/{pid}/status; id -u rdedge")
    facts = dict(re.findall(r"^(Uid|CapEff|CapBnd|NoNewPrivs|Seccomp):\s+(\w+)", text, re.MULTILINE))
    wanted = {"Uid": text.split()[-1], "CapEff": "0" * 16, "CapBnd": "0" * 16, "NoNewPrivs": "1", "Seccomp": "2"}
    expect(facts == wanted, f"{facts}, expected {wanted}")
    return ", ".join(f"{key} {value}" for key, value in facts.items())


def memory_is_capped(line: Line) -> str:
    """70 % of the board's, by the kernel's own word."""
    pid = line.show("MainPID")
    cap = int(line.do(f"cat /sys/fs/cgroup$(cut -d: -f3 /proc/{pid}/cgroup)/memory.max"))
    total = int(line.do("awk '/^MemTotal/ {print $2}' /proc/meminfo")) * 1024
    expect(abs(cap / total - 0.70) < 0.01, f"memory.max {cap} of {total}")
    return f"memory.max {cap / 2**20:.0f} MB of {total / 2**20:.0f}"


def log_is_its_own(line: Line) -> str:
    """By the guide's command, by the line's name, and not in the system's journal."""
    session = line.records()[-1]["session"]
    expect(f"session {session}" in line.do(line.log_command()), "the guide's command does not show this session")
    named = line.do("journalctl --no-pager -o cat --namespace=rdedge RDEDGE_LINE=press")
    expect(f"session {session}" in named, "RDEDGE_LINE=press does not find it")
    expect(session not in line.do("journalctl --no-pager -o cat"), "the system's journal has it too")
    return f"session {session} found by unit and by RDEDGE_LINE=press, in the namespace alone"


def exposure_is_as_stated(line: Line) -> str:
    """Of the loaded units."""
    seen: dict[str, float] = {}
    for unit, most in EXPOSURE.items():
        score = re.search(r"exposure level for .*: ([\d.]+)", line.do(f"systemd-analyze security --no-pager {unit}"))
        expect(
            score is not None and float(score.group(1)) <= most, f"{unit}: {score and score.group(1)}, stated {most}"
        )
        assert score is not None
        seen[unit] = float(score.group(1))
    return ", ".join(f"{unit} {score}" for unit, score in seen.items())


def other_devices_are_refused(line: Line) -> str:
    """By the control group, even to root; outside the walls the same can be opened."""
    outside = line.do(f"python3 - <<'END'\n{_OPEN.format(paths=_REFUSED)}\nEND")
    expect(outside.count(" opened") == len(_REFUSED), f"outside: {outside}")
    inside = line.inside(_OPEN.format(paths=(*_ALLOWED, *_REFUSED))).splitlines()
    wanted = [f"{path} opened" for path in _ALLOWED] + [f"{path} E" for path in _REFUSED]
    is_so = len(inside) == len(wanted) and all(map(str.startswith, inside, wanted))
    expect(is_so and sum(text.endswith("EPERM") for text in inside) >= len(_REFUSED) - 1, f"{inside}")
    return f"opened: {' '.join(_ALLOWED)}; refused even to root: {', '.join(inside[len(_ALLOWED) :])}"


def files_are_read_only(line: Line) -> str:
    """But for its data and its folder of /run."""
    inside = line.inside(_TOUCH.format(paths=(*_WRITABLE, *_READ_ONLY))).splitlines()
    written = [text.split()[0] for text in inside if text.endswith(" written")]
    expect(written == list(_WRITABLE) and len(inside) == len(_WRITABLE + _READ_ONLY), f"{inside}")
    return f"written: {' '.join(written)}; refused: {', '.join(inside[len(_WRITABLE) :])}"


def camera_daemon_is_reached(line: Line) -> str:
    """A socket of the name and place of nvargus-daemon's, though /tmp is read-only to the line."""
    serve = (
        "import socket; s = socket.socket(socket.AF_UNIX); s.bind('/tmp/argus_socket'); "
        "s.listen(); s.accept()[0].send(b'x')"
    )
    line.do(f'systemd-run --quiet python3 -c "{serve}"')
    line.wait("test -S /tmp/argus_socket && chmod 777 /tmp/argus_socket", "a socket")
    client = (
        "import os, pwd, socket\nos.setuid(pwd.getpwnam('rdedge').pw_uid)\ns = socket.socket(socket.AF_UNIX)\n"
        "s.connect('/tmp/argus_socket')\nprint(s.recv(1))"
    )
    expect(line.inside(client) == "b'x'", "nothing came")
    return "/tmp/argus_socket answers a process behind the line's walls"


def page_and_health_answer(line: Line) -> str:
    """On the loopback interface, with nothing else there."""
    health = line.health()
    expect(health["ok"] is True, f"{health}")
    fetch = "import urllib.request as u; r = u.urlopen('http://127.0.0.1:8360/'); print(r.status, len(r.read()))"
    page = line.do(f'python3 -c "{fetch}"')
    expect(page.startswith("200 "), page)
    return f"/healthz {json.dumps(health)}; page {page} bytes"


def heartbeat_beats(line: Line) -> str:
    """A change each half second, read back from the simulated chip."""
    program = WATCH_PIN.format(steps=[(None, 10.0)], pin=f"{PINS}{HEARTBEAT_PIN}", counted="value != last")
    changes = int(line.do(f"python3 - <<'END'\n{program}\nEND"))
    expect(16 <= changes <= 22, f"{changes} changes in 10 s")
    return f"pin {HEARTBEAT_PIN}: {changes} changes of level in 10 s"


def reload_takes_a_threshold(line: Line) -> str:
    """Between the scores of two pictures, without a restart or a new session."""
    before = line.state()
    scores: dict[int, float] = {}
    for pattern in (_OTHER, _GOOD):
        line.do(f"v4l2-ctl -d /dev/video0 -c test_pattern={pattern}")
        records, _ = line.wait_for_verdicts(6)
        scores[pattern] = median(r["score"] for r in records[-3:])
    low, high = sorted(scores.values())
    expect(high - low > 0.02 * high, f"the pictures' scores are too near: {scores}")
    is_good_low = scores[_GOOD] == low
    expect(is_good_low, f"colour bars score higher than red: {scores}")
    threshold = round((low + high) / 2, 6)
    line.edit("threshold = 1000000.0", f"threshold = {threshold}")
    line.do(f"systemctl reload {UNIT}")
    records, _ = line.wait_for_verdicts(4)
    expect(records[-1]["threshold"] == threshold, f"threshold {records[-1]['threshold']}, expected {threshold}")
    expect(line.state() == before, f"restarted: {before}, {line.state()}")
    expect(len({r["session"] for r in records}) == 1, "a new session")
    return f"1000000.0, then {threshold}, same process and session"


def rejects_are_pulsed(line: Line) -> str:
    """As many pulses as verdicts "anomalous", and the pin at rest while parts are good."""
    return _pulses(line, "anomalous", [(_GOOD, 5.0), (_OTHER, 12.0), (_GOOD, 10.0)])


def good_parts_are_pulsed(line: Line) -> str:
    """The fail-safe wiring, taken over by a reload; here rejects are what stands around."""
    line.edit('on = "anomalous"', 'on = "good"')
    line.do(f"systemctl reload {UNIT}")
    line.do(f"v4l2-ctl -d /dev/video0 -c test_pattern={_OTHER}")
    line.wait_for_verdicts(4)
    seen = _pulses(line, "good", [(_OTHER, 5.0), (_GOOD, 12.0), (_OTHER, 10.0)])
    line.do(f"v4l2-ctl -d /dev/video0 -c test_pattern={_GOOD}")
    return seen


def _pulses(line: Line, verdict: str, steps: list[tuple[int, float]]) -> str:
    before = len(line.records())
    program = WATCH_PIN.format(steps=steps, pin=f"{PINS}{REJECT_PIN}", counted='value == "1" and last == "0"')
    pulses = int(line.do(f"python3 - <<'END'\n{program}\nEND", PLENTY_S))
    records = line.records()[before:]
    wanted = sum(r["verdict"] == verdict for r in records)
    expect(
        wanted == pulses and 0 < wanted < len(records),
        f"{pulses} pulses, {wanted} {verdict} of {len(records)} verdicts",
    )
    return f'pin {REJECT_PIN}: {pulses} pulses for {wanted} verdicts "{verdict}" of {len(records)}'
