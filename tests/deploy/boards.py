"""A board for the tests: a real sshd on loopback, a real supervised line behind it, and eyes that never leave it."""

from __future__ import annotations

import getpass
import os
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from camera_servers import MjpegServer
from free_port import free_port

import rdedge
from rdedge.bundle import open_bundle
from rdedge.deploy.store import State, Store, version_of
from rdedge.deploy.watch import Look, look
from rdedge.line.config import Metrics

HERE = Path(__file__).parent
PYTHONPATH = os.pathsep.join([str(Path(rdedge.__file__).parents[1]), *os.environ.get("PYTHONPATH", "").split(":")])
WAIT_S = 400.0  # nothing here is about time, and machines may be busy
SSHD = shutil.which("sshd") or "/usr/sbin/sshd"
PACKAGES = {"openssh-server": SSHD, "openssh-client": "ssh", "rsync": "rsync"}
_SETTINGS = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
PidFile none
AuthorizedKeysFile {folder}/user_key.pub
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
PermitRootLogin prohibit-password
MaxStartups 100
SetEnv PATH={folder}/bin:{path} OMP_NUM_THREADS=1 {environment}
"""


def missing_packages() -> list[str]:
    """Debian packages that a board needs and this machine has not."""
    return [package for package, program in PACKAGES.items() if shutil.which(program) is None]


class Sshd:
    """One host: its key, its user's key, and a folder ``bin`` that is first on its PATH."""

    def __init__(self, folder: Path, *, max_file_bytes: int | None = None, environment: dict[str, str] | None = None):
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir()
        for name in ("host_key", "user_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
        self.port = free_port()
        self.address = f"{getpass.getuser()}@127.0.0.1"
        self.know((folder / "host_key.pub").read_text())
        given = " ".join(
            f"{name}={value}" for name, value in ({"PYTHONPATH": PYTHONPATH} | (environment or {})).items()
        )
        settings = _SETTINGS.format(port=self.port, folder=folder, path=os.environ["PATH"], environment=given)
        (folder / "sshd_config").write_text(settings)
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # where it drops its privileges; made at boot elsewhere
        limit = [] if max_file_bytes is None else ["prlimit", f"--fsize={max_file_bytes}"]
        self._log = (folder / "sshd.log").open("wb")
        self._process = subprocess.Popen([*limit, SSHD, "-D", "-e", "-f", folder / "sshd_config"], stderr=self._log)
        self.program("rdedge", f'exec {shlex.quote(sys.executable)} -m rdedge "$@"')
        deadline_s = time.monotonic() + WAIT_S
        while not self._listens():
            assert self._process.poll() is None and time.monotonic() < deadline_s, (folder / "sshd.log").read_text()
            time.sleep(0.02)

    def know(self, host_key: str) -> None:
        """What the workstation takes for the host's key."""
        (self.folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {host_key}")

    @property
    def ssh(self) -> str:
        """The workstation's command."""
        known = f"-o UserKnownHostsFile={self.folder}/known_hosts -o GlobalKnownHostsFile=/dev/null"
        return f"ssh -F none -p {self.port} -i {self.folder}/user_key -o IdentitiesOnly=yes -o LogLevel=ERROR {known}"

    def program(self, name: str, script: str) -> None:
        """A program of the host, in place of one that is installed."""
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(WAIT_S)
        self._log.close()

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


class BoardSite:
    """A board with one line, ``press``, whose camera is ``camera``; its bundle is ``current`` if one was laid."""

    def __init__(
        self,
        folder: Path,
        host: Sshd,
        camera: MjpegServer,
        settings: str = "",
        environment: dict[str, str] | None = None,
    ):
        self.host = host
        self.folder = folder
        self.port = free_port()
        self.line_file = folder / "press.toml"
        self.store = Store(folder / "lines" / "press" / "current")
        self.write_line(camera.uri, settings)
        # Unix sockets have short names
        self.socket = folder / "u"
        serve = [sys.executable, HERE / "line_unit.py", "serve", self.line_file, self.socket]
        self._unit = subprocess.Popen(
            serve, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | (environment or {})
        )
        assert self._unit.stdout is not None and self._unit.stdout.readline() == b"ready\n"
        self.restart = shlex.join([sys.executable, str(HERE / "line_unit.py"), "restart", str(self.socket)])
        self._is_over = threading.Event()
        self.holes: list[str] = []  # moments without a whole bundle
        self.looks = 0
        self._eyes: threading.Thread | None = None

    def write_line(self, camera_uri: str, settings: str = "") -> None:
        """The line's file. A camera that this machine keeps waiting counts as well: it is the bundle that is proved."""
        self.line_file.write_text(
            f'bundle = "lines/press/current"\nout = "out"\ndrain_s = 1\n{settings}\n'
            f'[metrics]\nport = {self.port}\n[[camera]]\nname = "top"\nuri = "{camera_uri}"\npolicy = "latest"\n'
            "watch = { slow_factor = 1000.0, silent_s = 60.0 }\n"
        )

    def lay(self, bundle: Path) -> str:
        """Put a bundle in force without ssh, start the line with it, and watch the link from now on."""
        name = version_of(bundle)
        self.store.folder.mkdir(parents=True)
        shutil.copytree(bundle, incoming := self.store.folder.parent / "arriving")
        self.store.take_in(incoming, name)
        with self.store.prepared(name) as link:
            self.store.put_in_force(link)
        self.store.write_state(State(proved=(name,)))
        shutil.rmtree(incoming)
        subprocess.run(self.restart, shell=True, check=True, timeout=WAIT_S)
        self.watch_link()
        return name

    def watch_link(self) -> None:
        """From now on there must be a whole bundle at every moment."""
        self._eyes = threading.Thread(target=self._stare)
        self._eyes.start()

    def command(self, what: object, *arguments: object, watch_s: float = 1.5) -> list[str]:
        """`rdedge deploy` to this board; ``what``: a bundle, --rollback or --status."""
        options = ["--line", self.line_file, "--restart", self.restart, "--ssh", self.host.ssh]
        options += ["--rdedge", self.host.bin / "rdedge", "--watch", watch_s]
        words = [what, self.host.address, *options, *arguments]
        return [sys.executable, "-m", "rdedge", "deploy", *map(str, words)]

    def deploy(self, what: object, *arguments: object, watch_s: float = 1.5) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        command = self.command(what, *arguments, watch_s=watch_s)
        return subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S * 3)

    @property
    def line_pid(self) -> int:
        """The line's process."""
        return int(Path(f"{self.socket}.pid").read_text())

    def seen(self) -> Look | None:
        """The line's own metrics."""
        return look(Metrics(port=self.port))

    def judges_by(self) -> str | None:
        """sha256 of the contract by which the line judges; waits for a line that is being started."""
        deadline_s = time.monotonic() + WAIT_S
        while time.monotonic() < deadline_s:
            now = self.seen()
            if now is not None and now.bundles:
                return next(iter(now.bundles))
            time.sleep(0.1)
        return None

    def close(self) -> None:
        self._is_over.set()
        if self._eyes is not None:
            self._eyes.join()
        assert self._unit.stdin is not None and self._unit.stdout is not None
        self._unit.stdin.close()
        self._unit.wait(WAIT_S)
        self._unit.stdout.close()

    def _stare(self) -> None:
        while not self._is_over.wait(0.02):
            target = ""
            with suppress(OSError):
                target = os.readlink(self.store.current_link)
            try:
                open_bundle(self.store.folder / target) if target else self.holes.append("no link")
            except Exception as exc:
                self.holes.append(f"{target}: {exc}")
            self.looks += 1
