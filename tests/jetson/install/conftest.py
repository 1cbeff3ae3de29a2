"""A board to install on: this machine's own Debian under an overlay, dressed as a Jetson, entered by chroot.

Real are bash, dpkg, useradd, Python, venv, pip, apt's OpenCV and numpy. Pretended are the board's facts, dpkg's list of
packages, apt-get (it adds to that list), TensorRT's module and the CUDA driver. Nothing outlives the test: the mounts
are of a process that ends with it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.parser import Parser
from pathlib import Path
from signal import SIGKILL

import pytest

ROOT = Path(__file__).parents[3]
INSTALLER = ROOT / "jetson/install.sh"
ORIN, THOR, XAVIER = "nvidia,tegra234", "nvidia,tegra264", "nvidia,tegra194"
TIMEOUT_S = 1200
SYSTEM_PYTHON = "/usr/bin/python3"
NEEDED_MODULES = "import cv2, numpy, gi, venv, ensurepip"

_APT_GET = """#!/bin/sh
# Pretends to install: writes what it was told, and what dpkg would then know.
echo "$*" >>/var/log/apt-get.calls
case "$*" in *" install "*) ;; *) exit 0 ;; esac
for word; do
    case $word in -* | install | DPkg*) continue ;; esac
    printf 'Package: %s\\nStatus: install ok installed\\n' "$word" >>/var/lib/dpkg/status
    printf 'Architecture: all\\nMaintainer: nobody\\nVersion: %s\\nDescription: pretended\\n\\n' \\
        "$(cat "/var/lib/pretended/$word" 2>/dev/null || echo 1.0)" >>/var/lib/dpkg/status
done
"""
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
        """Installs until the log says ``marker``, then kills the installer and all its children."""
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


def stanza(package: str, version: str) -> str:
    head = f"Package: {package}\nStatus: install ok installed\nArchitecture: all\nMaintainer: nobody\n"
    return f"{head}Version: {version}\nDescription: pretended\n\n"


def dress(layer: Path, release: str | None, chip: str, core: str, packages: dict[str, str], machine: str) -> None:
    """Writes what makes a root a Jetson's."""
    files = {
        "sys/firmware/devicetree/base/compatible": f"nvidia,p3768-0000\0{chip}\0",
        "var/lib/dpkg/status": "".join(stanza(name, version) for name, version in packages.items()),
        "usr/local/sbin/apt-get": _APT_GET,
        "usr/local/sbin/uname": f"#!/bin/sh\necho {machine}\n",
        "usr/lib/python3/dist-packages/tensorrt/__init__.py": '__version__ = "10.3.0"\n',
        "var/lib/pretended/python3-libnvinfer": "10.3.0.30-1+cuda12.5\n",
    }
    if release is not None:
        files["etc/nv_tegra_release"] = f"{release}\n"
        files["var/lib/dpkg/status"] += stanza("nvidia-l4t-core", f"{core}-20250107174145")
    for name, text in files.items():
        path = layer / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755 if "sbin" in name else 0o644)


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
        release: str | None = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64",
        chip: str = ORIN,
        *,
        core: str = "36.4.3",
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
            dress(layer, release, chip, core, packages or {}, machine)
        if driver is not None:
            target = layer / f"usr/lib/{os.uname().machine}-linux-gnu/libcuda.so.1"
            target.parent.mkdir(parents=True)
            shutil.copy(driver, target)
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
    built = subprocess.run(
        [ROOT / "tests/cuda_standin/build.sh", sys.executable], capture_output=True, text=True, timeout=3600
    )
    assert built.returncode == 0, built.stderr
    return Path(built.stdout.strip())


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory, driver: Path) -> Path:
    """A folder for ``--wheels``: ours and what it requires; also a false OpenCV and a false torch, as bait."""
    found = subprocess.run([SYSTEM_PYTHON, "-c", NEEDED_MODULES], capture_output=True, text=True)
    if found.returncode != 0:
        pytest.skip(f"apt-get install python3-opencv python3-gi python3-venv ({found.stderr.splitlines()[-1]})")
    out = tmp_path_factory.mktemp("wheels") / "wheels"
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", out, ROOT], check=True)
    bait(out, "opencv-python-headless", "99.0", "cv2")
    bait(out, "torch", "99.0", "torch")
    packed(driver / "site", out)
    wheel = next(out.glob("rdedge-*.whl"))
    with zipfile.ZipFile(wheel) as z:
        name = next(n for n in z.namelist() if n.endswith("METADATA"))
        required = Parser().parsestr(z.read(name).decode()).get_all("Requires-Dist", [])
    extras = tuple(f'extra == "{name}"' for name in ("cpu", "mqtt", "modbus", "gpio", "sign"))
    plain = [line.split(";")[0] for line in required if line.replace("'", '"').endswith(extras) or ";" not in line]
    wanted = [line for line in plain if not line.startswith(("opencv", "numpy"))]
    # A Jetson's Python is the system's, so its wheels are asked for with that one's tags.
    venv = tmp_path_factory.mktemp("venv")
    subprocess.run([SYSTEM_PYTHON, "-m", "venv", venv], check=True)
    constraint = venv / "constraint.txt"
    constraint.write_text("numpy<2\n")
    download = [venv / "bin/python", "-m", "pip", "download", "-q", "--only-binary", ":all:", "-c", constraint]
    subprocess.run([*download, "-d", out, *wanted, "pytools", "mako"], check=True, timeout=TIMEOUT_S)
    return out


def bait(folder: Path, name: str, version: str, module: str) -> None:
    """A wheel that must not be taken."""
    stem = f"{name.replace('-', '_')}-{version}"
    files = {
        f"{module}/__init__.py": "raise RuntimeError('the bait was taken')\n",
        f"{stem}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{stem}.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = f"{stem}.dist-info/RECORD"
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as z:
        for path, text in files.items():
            z.writestr(path, text)
        z.writestr(record, "".join(f"{path},,\n" for path in [*files, record]))


def packed(site: Path, folder: Path) -> None:
    """pycuda as a wheel, from where pip has put it."""
    information = next(site.glob("pycuda-*.dist-info"))
    wheel = (information / "WHEEL").read_text()
    tag = next(line.removeprefix("Tag: ") for line in wheel.splitlines() if line.startswith("Tag: "))
    with zipfile.ZipFile(folder / f"{information.name.removesuffix('.dist-info')}-{tag}.whl", "w") as z:
        for line in (information / "RECORD").read_text().splitlines():
            path = site / line.split(",")[0]
            if path.is_file() and ".." not in path.parts and path.suffix != ".pyc":
                z.write(path, path.relative_to(site))
