"""A board to install on: this machine's own Debian under an overlay, dressed as a Jetson, entered by chroot.

Real are bash, dpkg, useradd, Python, venv, pip, apt's OpenCV and numpy; what is pretended: benchmarks/dressed_board.py.
Nothing outlives the test: the mounts are of a process that ends with it.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL

import pytest

from dressed_board import (
    CORE,
    ORIN,
    RELEASE,
    SYSTEM_PYTHON,
    TIMEOUT_S,
    build_driver,
    copy_driver,
    device_tree,
    dress,
    gather_wheels,
    stanza,
)

ROOT = Path(__file__).parents[3]
INSTALLER = ROOT / "jetson/install.sh"
NEEDED_MODULES = "import cv2, numpy, gi, venv, ensurepip"

_MOUNT = """
set -e
mount -t tmpfs -o size=4g tmpfs {at}
mkdir {at}/upper {at}/work {at}/root
cp -r {layer} {at}/layer # overlays take no folder that lies in another of theirs
mount -t overlay overlay -o lowerdir={at}/layer:/,upperdir={at}/upper,workdir={at}/work {at}/root
mount -t proc proc {at}/root/proc
mount --rbind /dev {at}/root/dev
mkdir -p {at}/root{repository} {at}/root{wheels}
mount --bind -o ro {repository} {at}/root{repository}
mount --bind -o ro {wheels} {at}/root{wheels}
mount -t tmpfs tmpfs {at}/root/run
echo ready
exec cat
"""


@dataclass
class Board:
    """A Jetson's root; ``root`` is how this process sees it, ``changes`` the files written since it was flashed."""

    holder: subprocess.Popen[str]
    at: Path
    wheels: Path
    env: dict[str, str] = field(default_factory=lambda: {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"})

    @property
    def root(self) -> Path:
        return Path(f"/proc/{self.holder.pid}/root{self.at}/root")

    def command(self, *arguments: str, user: str = "root:root") -> list[str]:
        enter = ["nsenter", f"--mount=/proc/{self.holder.pid}/ns/mnt", "chroot", f"--userspec={user}"]
        return [*enter, str(self.at / "root"), *arguments]

    def run(self, *arguments: str, user: str = "root:root") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments, user=user), env=self.env, capture_output=True, text=True, timeout=TIMEOUT_S
        )

    def install(self, *options: str) -> subprocess.CompletedProcess[str]:
        done = self.run("bash", str(INSTALLER), "--wheels", str(self.wheels), *options)
        assert done.returncode == 0, done.stdout + done.stderr + self.log()
        return done

    def killed(self, marker: str) -> None:
        """Installs until the log says ``marker``, then kills the installer with all its children."""
        self.path("/var/log/rdedge-install.log").unlink(missing_ok=True)
        process = subprocess.Popen(
            self.command("bash", str(INSTALLER), "--wheels", str(self.wheels)),
            env=self.env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            deadline_s = time.monotonic() + TIMEOUT_S
            while marker not in self.log():
                assert process.poll() is None, f"ended before {marker!r}: {self.log()}"
                assert time.monotonic() < deadline_s, self.log()
                time.sleep(0.002)
        finally:
            os.killpg(process.pid, SIGKILL)
            process.wait()
        assert self.run("flock", "/run/lock/rdedge-install.lock", "true").returncode == 0

    def path(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def log(self) -> str:
        path = self.path("/var/log/rdedge-install.log")
        return path.read_text(errors="replace") if path.is_file() else ""

    def changes(self, *ignored: str) -> set[str]:
        """Files, links and removals since the board was flashed, but for those below ``ignored``."""
        upper = Path(f"/proc/{self.holder.pid}/root{self.at}/upper")
        found = {"/" + p.relative_to(upper).as_posix() for p in upper.rglob("*") if p.is_symlink() or not p.is_dir()}
        own = (str(ROOT), str(self.wheels), *ignored)
        return {name for name in found if not name.startswith(own) and "/__pycache__/" not in name}

    def set_version(self, package: str, version: str) -> None:
        """As after an update."""
        status = self.path("/var/lib/dpkg/status")
        stanzas = [text for text in status.read_text().split("\n\n") if f"Package: {package}\n" not in text + "\n"]
        status.write_text("\n\n".join(stanzas) + "\n" * 2 + stanza(package, version))


MakeBoard = Callable[..., Board]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without root there is no board, and a container may forbid the mounts even to root."""
    for item in items:
        if isinstance(item, pytest.Function) and "make_board" in item.fixturenames:
            item.add_marker(pytest.mark.mounts)


@pytest.fixture
def make_board(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[MakeBoard]:
    """``make_board(release, chip, core=..., packages=..., machine=..., wheels=..., driver=..., pretends=...)``;
    ``pretends=False``: this machine's own root, with real apt."""
    if os.geteuid() != 0:
        pytest.skip("needs root: overlay mounts and chroot")
    holders: list[subprocess.Popen[str]] = []

    def make(
        release: str | None = RELEASE,
        chip: str = ORIN,
        *,
        core: str = CORE,
        packages: dict[str, str] | None = None,
        machine: str = "aarch64",
        wheels: Path | None = None,
        driver: Path | None = None,
        pretends: bool = True,
    ) -> Board:
        layer, at = tmp_path / f"layer{len(holders)}", tmp_path / f"board{len(holders)}"
        at.mkdir()
        layer.mkdir()
        if pretends:
            dress(layer, release, core, packages or {}, machine)
            tree = layer / "sys/firmware/devicetree/base/compatible"
            tree.parent.mkdir(parents=True)
            tree.write_text(device_tree(chip))
        if driver is not None:
            copy_driver(driver, layer, f"{os.uname().machine}-linux-gnu")
        wheels = wheels or tmp_path
        script = _MOUNT.format(at=at, layer=layer, repository=ROOT, wheels=wheels)
        holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        holders.append(holder)
        assert holder.stdout is not None and holder.stderr is not None
        if holder.stdout.readline() != "ready\n":
            reason = holder.stderr.read().strip()
            if any(words in reason.lower() for words in ("not permitted", "permission denied", "must be superuser")):
                pytest.skip(f"needs the permission to mount: {reason}")
            pytest.fail(f"no overlay can be mounted here, though mounting is not forbidden: {reason}")
        return Board(holder, at, wheels)

    yield make
    for holder in holders:
        holder.communicate()


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pretended CUDA driver's folder, with pycuda built against it; see tests/cuda_standin."""
    return build_driver()


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory, driver: Path) -> Path:
    """A folder for ``--wheels``: ours and what it requires; also a false OpenCV and a false torch, as bait."""
    found = subprocess.run([SYSTEM_PYTHON, "-c", NEEDED_MODULES], capture_output=True, text=True)
    if found.returncode != 0:
        pytest.skip(f"apt-get install python3-opencv python3-gi python3-venv ({found.stderr.splitlines()[-1]})")
    out = tmp_path_factory.mktemp("wheels") / "wheels"
    gather_wheels(out, driver, tmp_path_factory.mktemp("venv"))
    return out
