"""install.sh really run: what it leaves when it ends, is run again, is killed, and is taken back."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]
INSTALLER = ROOT / "jetson/install.sh"
MakeBoard = Callable[..., Any]
COPIED = {
    "/usr/local/lib/systemd/system/rdedge@.service": "systemd/rdedge@.service",
    "/usr/local/lib/systemd/system/rdedge-engine@.service": "systemd/rdedge-engine@.service",
    "/opt/rdedge/line_engines.py": "systemd/line_engines.py",
    "/etc/systemd/journald@rdedge.conf": "systemd/journald@rdedge.conf",
    "/etc/udev/rules.d/60-rdedge-cameras.rules": "board/60-rdedge-cameras.rules",
    "/etc/sysctl.d/60-rdedge-cameras.conf": "board/60-rdedge-cameras.conf",
    "/etc/tmpfiles.d/rdedge-usb.conf": "board/rdedge-usb.conf",
    "/etc/rdedge/line.toml.example": "line.example.toml",
}
OUTSIDE = {*COPIED, "/usr/local/bin/rdedge"} - {"/opt/rdedge/line_engines.py"}
# What apt, useradd and groupadd keep, with their back-ups and locks, and what pip and the log leave.
BOOKS = ("/var/lib/dpkg/", "/var/lib/apt/", "/var/cache/", "/var/log/", "/tmp/", "/root/.cache/", "/etc/.pwd.lock")
BOOKS += tuple(f"/etc/{name}" for name in ("passwd", "group", "shadow", "gshadow", "subuid", "subgid"))
MOMENTS = (  # words of the log at which the installer is killed, in the order they come
    "update",
    "step 3",
    "venv --system-site-packages",
    "pip install",
    "pycuda",
    "step 4",
    "useradd",
    "rdedge@.service.rdedge-new",
    "60-rdedge-cameras.rules",
)


@pytest.fixture
def board(make_board: MakeBoard, wheels: Path, driver: Path) -> Any:
    return make_board(wheels=wheels, driver=driver / "lib/libcuda.so.1")


def assert_is_whole(board: Any) -> None:
    """Everything is in its place, and a line's imports are the right ones."""
    assert board.changes("/opt/rdedge/", *BOOKS) == OUTSIDE
    for target, source in COPIED.items():
        assert board.path(target).read_bytes() == (ROOT / "jetson" / source).read_bytes()
    venv = Path(os.readlink(board.path("/opt/rdedge/venv")))
    assert sorted(os.listdir(board.path("/opt/rdedge/venvs"))) == [venv.name]
    assert sorted(os.listdir(board.path("/opt/rdedge"))) == sorted(
        {"venv", "venvs", "line_engines.py", "added-packages"}
        | ({"added-groups"} & set(os.listdir(board.path("/opt/rdedge"))))
    )
    version = board.run("/usr/local/bin/rdedge", "--version")
    assert version.returncode == 0 and version.stdout.startswith("rdedge "), version.stderr
    user = board.run("id", "rdedge")
    assert {"video", "render", "gpio", "i2c"} <= set(re.findall(r"\((.*?)\)", user.stdout)), user.stdout
    assert board.run("id", "-gn", "rdedge").stdout == "rdedge\n"
    lines, data = (board.path(name).stat() for name in ("/etc/rdedge", "/var/lib/rdedge"))
    assert (stat.S_IMODE(lines.st_mode), lines.st_uid) == (0o750, 0)
    assert stat.S_IMODE(data.st_mode) == 0o750 and data.st_uid != 0


def python(board: Any, code: str) -> str:
    done = board.run("/opt/rdedge/venv/bin/python", "-s", "-c", code)
    assert done.returncode == 0, done.stderr
    return str(done.stdout).strip()


def test_install_again_and_uninstall(board: Any) -> None:
    before = board.run("id", "rdedge").returncode
    assert before != 0
    first = board.install()
    assert_is_whole(board)
    assert python(board, "import cv2; print(cv2.__file__)").startswith("/usr/lib/python3/dist-packages/")
    assert python(board, "import numpy; print(numpy.__version__.split('.')[0])") == "1"
    assert python(board, "import importlib.util as u; print(u.find_spec('torch'))") == "None"
    assert python(board, "import pycuda.driver as d; print(d.get_driver_version() > 0)") == "True"
    calls = board.path("/var/log/apt-get.calls").read_text()
    assert "python3-libnvinfer" in calls and "torch" not in calls

    venv = os.readlink(board.path("/opt/rdedge/venv"))
    again = board.install()
    assert "all are there" in again.stdout and "kept" in again.stdout and "missing" in first.stdout
    assert os.readlink(board.path("/opt/rdedge/venv")) == venv
    assert board.path("/var/log/apt-get.calls").read_text() == calls
    assert_is_whole(board)

    board.path("/etc/rdedge/press4.toml").write_text("out = '/var/lib/rdedge/press4'\n")
    board.path("/var/lib/rdedge/bundle").mkdir()
    board.path("/var/lib/rdedge/bundle/model.onnx").write_bytes(b"mine")
    board.install("--uninstall", "--dry-run")
    assert_is_whole_but_for_the_users(board)
    board.install("--uninstall")
    assert board.changes(*BOOKS) == {"/etc/rdedge/press4.toml", "/var/lib/rdedge/bundle/model.onnx"}
    assert not board.path("/opt/rdedge").exists()
    assert board.run("id", "rdedge").returncode == 0
    assert board.run("apt-mark", "showauto").stdout.split().count("python3-libnvinfer") == 1

    board.install("--uninstall", "--purge")
    assert board.changes(*BOOKS) == set()
    assert board.run("id", "rdedge").returncode != 0 and board.run("getent", "group", "rdedge").returncode != 0
    assert not board.path("/etc/rdedge").exists() and not board.path("/var/lib/rdedge").exists()


def assert_is_whole_but_for_the_users(board: Any) -> None:
    assert board.changes("/opt/rdedge/", *BOOKS) == OUTSIDE | {
        "/etc/rdedge/press4.toml",
        "/var/lib/rdedge/bundle/model.onnx",
    }


def test_from_the_checkout_with_pips_index(board: Any) -> None:
    """Without --wheels; only pycuda, which would need CUDA's headers, is given as a wheel."""
    board.env["PIP_FIND_LINKS"] = str(board.wheels)
    done = board.run("bash", str(INSTALLER))
    assert done.returncode == 0, done.stdout + done.stderr + board.log()
    assert_is_whole(board)
    assert python(board, "import cv2; print(cv2.__file__)").startswith("/usr/lib/python3/dist-packages/")


def test_pip_in_the_environment_keeps_to_the_systems_opencv(board: Any) -> None:
    board.install()
    pip = ["/opt/rdedge/venv/bin/python", "-m", "pip", "install", "--no-index", "--find-links", str(board.wheels)]
    for wanted in ("opencv-python-headless==99.0", "torch"):
        refused = board.run(*pip, wanted)
        said = refused.stdout + refused.stderr
        assert refused.returncode != 0 and "The user requested (constraint)" in said, said
    for wanted in (["rdedge[cpu,mqtt,modbus,gpio]"], ["--upgrade", "--upgrade-strategy", "eager", "rdedge[cpu]"]):
        done = board.run(*pip, *wanted)
        assert done.returncode == 0, done.stderr
    assert python(board, "import cv2; print(cv2.__file__)").startswith("/usr/lib/python3/dist-packages/")


def test_killed_at_many_moments_and_run_again(board: Any) -> None:
    for moment in MOMENTS:
        board.killed(moment)
        assert board.changes("/opt/rdedge/", *BOOKS) <= OUTSIDE | {f"{name}.rdedge-new" for name in OUTSIDE}
        for target, source in COPIED.items():
            path = board.path(target)
            assert not path.exists() or path.read_bytes() == (ROOT / "jetson" / source).read_bytes()
        if board.path("/opt/rdedge/venv").is_symlink():
            assert python(board, "import rdedge.cli, cv2, tensorrt, pycuda.driver; print(1)") == "1"
    board.install()
    assert_is_whole(board)


def test_a_user_without_its_group_is_given_one(board: Any) -> None:
    """As useradd leaves it that is killed before it writes groups; the number may be another group's by now."""
    assert board.run("useradd", "--system", "--user-group", "rdedge").returncode == 0
    number = board.run("id", "-g", "rdedge").stdout.strip()
    assert board.run("groupdel", "--force", "rdedge").returncode == 0
    assert board.run("groupadd", "--gid", number, "newcomer").returncode == 0
    board.install()
    assert_is_whole(board)


def test_a_killed_update_leaves_the_old_environment_in_use(board: Any) -> None:
    board.install()
    old = os.readlink(board.path("/opt/rdedge/venv"))
    board.set_version("python3-libnvinfer", "10.7.0.23-1+cuda12.6")
    board.killed("pycuda")
    assert os.readlink(board.path("/opt/rdedge/venv")) == old
    assert python(board, "import rdedge.cli; print(1)") == "1"
    assert len(os.listdir(board.path("/opt/rdedge/venvs"))) == 2
    board.install()
    new = os.readlink(board.path("/opt/rdedge/venv"))
    assert new != old
    assert {Path(old).name, Path(new).name} == set(os.listdir(board.path("/opt/rdedge/venvs")))
    assert "TensorRT 10.7.0.23" in board.path(f"{new}/made-for").read_text()


def test_pips_opencv_over_apts_is_found_before_anything_is_switched(board: Any) -> None:
    """Many a Jetson has had `sudo pip install opencv-python`: it lies before apt's in the search path."""
    folder = next(p for p in python_paths(board) if p.startswith("/usr/local/lib/"))
    board.path(folder).mkdir(parents=True, exist_ok=True)
    board.path(f"{folder}/cv2.py").write_text(
        "__version__ = '4.10.0'\ndef getBuildInformation(): return 'GStreamer: NO'\n"
    )
    done = board.run("bash", str(INSTALLER), "--wheels", str(board.wheels))
    assert done.returncode == 2
    assert f"OpenCV 4.10.0 at {folder}/cv2.py has no GStreamer; one of pip's lies over apt's: sudo" in done.stderr
    assert not board.path("/opt/rdedge/venv").exists()


def python_paths(board: Any) -> list[str]:
    done = board.run("/usr/bin/python3", "-c", "import site; print(*site.getsitepackages())")
    return str(done.stdout).split()


def test_two_at_a_time_are_one_too_many(board: Any) -> None:
    board.path("/run/lock").mkdir()
    held = board.run("flock", "/run/lock/rdedge-install.lock", "bash", str(INSTALLER))
    assert held.returncode == 2
    assert "another one is running" in held.stderr


def test_a_failing_step_says_which_and_where_to_look(board: Any) -> None:
    for wheel in ("msgspec", "pymodbus"):
        assert any(name.startswith(wheel) for name in os.listdir(board.wheels))
    board.path("/usr/local/sbin/apt-get").write_text("#!/bin/sh\necho E: no such package >&2\nexit 100\n")
    done = board.run("bash", str(INSTALLER), "--wheels", str(board.wheels))
    assert done.returncode == 2
    assert "E: no such package" in done.stderr
    assert "this failed: apt-get -q -o DPkg::Lock::Timeout=600 update; mend what" in done.stderr
    assert not board.path("/opt/rdedge/venv").exists()


def test_purge_empties_a_disk_of_its_own_and_leaves_its_mount_point(make_board: MakeBoard) -> None:
    board = make_board()
    data = board.path("/var/lib/rdedge")
    data.mkdir(parents=True)
    assert board.run("mount", "-t", "tmpfs", "tmpfs", "/var/lib/rdedge").returncode == 0
    (data / "results").mkdir()
    (data / "results/verdicts.jsonl").write_text("{}\n")
    done = board.run("bash", str(INSTALLER), "--uninstall", "--purge")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "/var/lib/rdedge is a disk of its own: emptied, and still mounted" in done.stdout
    assert list(data.iterdir()) == [] and board.run("mountpoint", "/var/lib/rdedge").returncode == 0
