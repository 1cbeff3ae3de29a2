"""On the emulated board: runs what the host asks for through a virtio port, one JSON line each way.

Says ``{"boot": ...}`` at its start; ``{"id": ..., "command": ..., "timeout_s": ...}`` is answered by id, code, output.
"""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

PORT = Path("/dev/virtio-ports/board")


def answer(request: dict[str, object]) -> dict[str, object]:
    """Runs the command by bash; code 124 if it takes too long."""
    try:
        done = subprocess.run(
            ["bash", "-c", str(request["command"])],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=float(str(request["timeout_s"])),
        )
        code, output = done.returncode, done.stdout
    except subprocess.TimeoutExpired as exc:
        code, output = 124, exc.stdout or b""
    return {"id": request["id"], "code": code, "output": output.decode(errors="replace")}


def main() -> None:
    """Until the board ends."""
    while not PORT.exists():
        time.sleep(0.2)
    with PORT.open("r+b", buffering=0) as port:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # A line begun before a power cut is ended first.
        port.write(b"\n" + json.dumps({"boot": boot}).encode() + b"\n")
        rest = b""
        while True:
            piece = port.read(65536)
            if not piece:
                time.sleep(0.2)  # nobody is at the other end
                continue
            *lines, rest = (rest + piece).split(b"\n")
            for line in filter(None, lines):
                reply = json.dumps(answer(json.loads(line))).encode() + b"\n"
                while reply:
                    reply = reply[port.write(reply) :]


if __name__ == "__main__":
    main()
