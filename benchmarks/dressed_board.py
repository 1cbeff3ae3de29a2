"""A Debian root dressed as a Jetson, and the wheels that its installer is given; for tests and for booted_board.py.

Pretended are the board's facts, dpkg's list of packages, apt-get (it adds to that list), TensorRT's module and the CUDA
driver.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from email.parser import Parser
from pathlib import Path

ROOT = Path(__file__).parent.parent
RELEASE = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64"
CORE = "36.4.3"
ORIN, THOR, XAVIER = "nvidia,tegra234", "nvidia,tegra264", "nvidia,tegra194"
SYSTEM_PYTHON = "/usr/bin/python3"
TIMEOUT_S = 1200

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


def stanza(package: str, version: str) -> str:
    """What dpkg's status file says of an installed package."""
    head = f"Package: {package}\nStatus: install ok installed\nArchitecture: all\nMaintainer: nobody\n"
    return f"{head}Version: {version}\nDescription: pretended\n\n"


def device_tree(chip: str) -> str:
    """The device tree's ``compatible``: words that end with NUL."""
    return f"nvidia,p3768-0000\0{chip}\0"


def dress(layer: Path, release: str | None, core: str, packages: Mapping[str, str], machine: str) -> None:
    """Writes what makes a root a Jetson's, but for the device tree; dpkg's status is written anew."""
    files = {
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


def build_driver() -> Path:
    """The pretended CUDA driver's folder, with pycuda built against it; see tests/cuda_standin.

    Raises CalledProcessError where a compiler is missing.
    """
    script = ROOT / "tests/cuda_standin/build.sh"
    built = subprocess.run([script, sys.executable], stdout=subprocess.PIPE, text=True, timeout=3600, check=True)
    return Path(built.stdout.strip())


def gather_wheels(out: Path, driver: Path, scratch: Path) -> None:
    """A folder for ``--wheels``: ours and what it requires; also a false OpenCV and a false torch, as bait.

    Raises CalledProcessError, e.g. where the system's Python has no venv.
    """
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", out, ROOT], check=True)
    _bait(out, "opencv-python-headless", "99.0", "cv2")
    _bait(out, "torch", "99.0", "torch")
    _pack(driver / "site", out)
    wheel = next(out.glob("rdedge-*.whl"))
    with zipfile.ZipFile(wheel) as z:
        name = next(n for n in z.namelist() if n.endswith("METADATA"))
        required = Parser().parsestr(z.read(name).decode()).get_all("Requires-Dist", [])
    extras = tuple(f'extra == "{name}"' for name in ("cpu", "mqtt", "modbus", "gpio", "sign"))
    plain = [line.split(";")[0] for line in required if line.replace("'", '"').endswith(extras) or ";" not in line]
    wanted = [line for line in plain if not line.startswith(("opencv", "numpy"))]
    # A Jetson's Python is the system's, so its wheels are asked for with that one's tags.
    subprocess.run([SYSTEM_PYTHON, "-m", "venv", scratch], check=True)
    constraint = scratch / "constraint.txt"
    constraint.write_text("numpy<2\n")
    download = [str(scratch / "bin/python"), "-m", "pip", "download", "-q", "--only-binary", ":all:"]
    subprocess.run(
        [*download, "-c", str(constraint), "-d", str(out), *wanted, "pytools", "mako"], check=True, timeout=TIMEOUT_S
    )


def _bait(folder: Path, name: str, version: str, module: str) -> None:
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


def _pack(site: Path, folder: Path) -> None:
    """pycuda as a wheel, from where pip has put it."""
    information = next(site.glob("pycuda-*.dist-info"))
    wheel = (information / "WHEEL").read_text()
    tag = next(line.removeprefix("Tag: ") for line in wheel.splitlines() if line.startswith("Tag: "))
    with zipfile.ZipFile(folder / f"{information.name.removesuffix('.dist-info')}-{tag}.whl", "w") as z:
        for line in (information / "RECORD").read_text().splitlines():
            path = site / line.split(",")[0]
            if path.is_file() and ".." not in path.parts and path.suffix != ".pyc":
                z.write(path, path.relative_to(site))


def copy_driver(driver: Path, layer: Path, triplet: str) -> None:
    """Where the loader of a root finds it."""
    target = layer / f"usr/lib/{triplet}/libcuda.so.1"
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(driver, target)
