"""Deploys to a line on a GPU: the engine is built beside the running line, which then runs from it, or all stays as it
was. The GPU is the pretended one of tests/engines and tests/cuda_standin, in every process of the board.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from boards import PYTHONPATH, WAIT_S, BoardSite, Sshd
from camera_servers import MjpegServer, showing_levels
from engine_bundles import write_bundle
from small_disks import fill_command, small_disk

from rdedge.bundle import open_bundle
from rdedge.deploy.store import version_of

HERE = Path(__file__).parent
CUDA_STANDIN = HERE.parent / "cuda_standin"
ENGINES = HERE.parent / "engines"


@dataclass
class GpuSite:
    """A board with a pretended GPU, whose lines' folder lies on a disk of its own where one can be mounted."""

    board: BoardSite
    gpu: Path
    lab: Path

    def bundle(self, name: str) -> Path:
        return write_bundle(self.lab / name, versions={"name": name})

    def faults(self, **faults: Any) -> None:
        """Of the processes that begin from now on."""
        (self.gpu / "faults.json").write_text(json.dumps(faults))

    def engine_of(self, name: str) -> dict[str, Any]:
        """The record of the version's engine, and when it was written."""
        (path,) = (self.board.store.version(name) / "engines").glob("fp16-*.json")
        return json.loads(path.read_text()) | {"mtime_ns": path.stat().st_mtime_ns}

    def runs_from(self, name: str) -> bool:
        """The line gives frames to this version's engine, now."""
        book = self.gpu / "runs" / f"{self.board.line_pid}-{self.engine_of(name)['engine_sha256']}"
        size = book.stat().st_size if book.exists() else 0
        deadline_s = time.monotonic() + WAIT_S
        while time.monotonic() < deadline_s:
            if book.exists() and book.stat().st_size > size:
                return True
            time.sleep(0.05)
        return False

    def processes(self, *words: str) -> list[int]:
        """Those of the board's sshd that have these words in their command line."""
        found = []
        for folder in Path("/proc").iterdir():
            with suppress(OSError):
                command = (folder / "cmdline").read_bytes().split(b"\0") if folder.name.isdecimal() else []
                if all(word.encode() in command for word in words) and f"RDEDGE_BOARD_GPU={self.gpu}".encode() in (
                    folder / "environ"
                ).read_bytes().split(b"\0"):
                    found.append(int(folder.name))
        return found


@pytest.fixture(scope="module")
def standin() -> Path:
    """The built driver and pycuda; the first time on a machine this takes some minutes."""
    done = subprocess.run(
        ["bash", str(CUDA_STANDIN / "build.sh"), sys.executable], stdout=subprocess.PIPE, text=True, timeout=1500
    )
    assert done.returncode == 0, "tests/cuda_standin/build.sh failed; it needs gcc, g++ and make"
    return Path(done.stdout.strip())


@pytest.fixture(scope="module")
def camera() -> Iterator[MjpegServer]:
    """Shows a part that is brighter than the held-out ones: all are good."""
    with showing_levels(235, 256, 0.05) as server:
        yield server


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory, packages: None, standin: Path, camera: MjpegServer
) -> Iterator[GpuSite]:
    folder, gpu = tmp_path_factory.mktemp("g"), tmp_path_factory.mktemp("gpu")
    for path in (gpu / "runs", gpu / "reports", folder / "host", folder / "lines"):
        path.mkdir()
    paths = [str(HERE / "board_gpu"), str(standin / "site"), str(ENGINES), PYTHONPATH]
    environment = {
        "PYTHONPATH": os.pathsep.join(paths),
        "LD_LIBRARY_PATH": str(standin / "lib"),
        "RDEDGE_BOARD_GPU": str(gpu),
        "NULLCUDA_STRICT": "exit",
        "NULLCUDA_LAZY": "1",
        "NULLCUDA_INTEGRATED": "1",
        "NULLCUDA_REPORT": f"{gpu}/reports/%p",
    }
    with small_disk(folder / "lines"):
        host = Sshd(folder / "host", environment=environment)
        settings = 'backend = "tensorrt"\nprecision = "fp16"'
        opened = GpuSite(BoardSite(folder, host, camera, settings, environment), gpu, folder / "lab")
        opened.faults()
        try:
            yield opened
        finally:
            opened.board.close()
            host.close()
    assert opened.board.holes == []
    reports = [json.loads(path.read_text()) for path in (gpu / "reports").iterdir()]
    assert reports and [report["error_list"] for report in reports if report["error_list"]] == []


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("rdedge: error: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def old(site: GpuSite) -> str:
    """The version in force, which came by a deploy, too."""
    bundle = site.bundle("old")
    done = site.board.deploy(bundle)
    assert done.returncode == 0, done.stderr
    assert f"engine: built {site.board.store.version(version_of(bundle))}/engines/fp16-tensorrt-10.3.0-" in done.stdout
    site.board.watch_link()
    assert site.runs_from(version_of(bundle))
    return version_of(bundle)


def test_the_line_runs_from_the_engine_that_the_deploy_built_and_goes_back_to_the_old_one(
    site: GpuSite, old: str
) -> None:
    built, pid = site.engine_of(old), site.board.line_pid
    bundle = site.bundle("new")
    name = version_of(bundle)
    hook = (
        f"test $(readlink {site.board.store.current_link}) = versions/{old} && kill -0 {pid} && touch {site.gpu}/beside"
    )
    site.faults(hook=hook)
    done = site.board.deploy(bundle, "--selftest", f"{site.board.host.bin}/rdedge selftest {{bundle}} --seconds 1")
    site.faults()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "self-test: " in done.stdout
    assert (site.gpu / "beside").exists(), "the line ran on with the old bundle while the engine was built"
    assert re.search(r"trial: \d of 6 good parts rejected", done.stdout)
    assert site.board.store.current == name and site.board.line_pid != pid
    record = site.engine_of(name)
    assert (record["key"]["precision"], record["key"]["flavour"]) == ("fp16", "tensorrt")
    assert "fp16" in record["layer_precisions"].values()
    assert site.runs_from(name)
    assert site.board.judges_by() == open_bundle(bundle).contract.contract_sha256

    site.faults(hook=f"touch {site.gpu}/rebuilt")
    back = site.board.deploy("--rollback")
    site.faults()
    assert back.returncode == 0 and "engine: kept " in back.stdout, back.stdout + back.stderr
    assert site.board.store.current == old and site.engine_of(old) == built
    assert not (site.gpu / "rebuilt").exists()
    assert site.runs_from(old)


def test_a_rollback_after_an_update_of_tensorrt_builds_the_engine_before_it_switches(site: GpuSite, old: str) -> None:
    """Here the old engine is lost, which is found in the same way."""
    bundle = site.bundle("before update")
    done = site.board.deploy(bundle)
    assert done.returncode == 0, done.stderr
    for path in (site.board.store.version(old) / "engines").glob("fp16-*.json"):
        path.unlink()
    link = site.board.store.current_link
    site.faults(hook=f"readlink {link} >{site.gpu}/current")
    back = site.board.deploy("--rollback")
    site.faults()
    assert back.returncode == 0 and "engine: built " in back.stdout, back.stdout + back.stderr
    assert (site.gpu / "current").read_text().strip() == f"versions/{version_of(bundle)}"
    assert site.runs_from(old)


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "parser": ({"refuses_graph": True}, "building the engine failed with code 2: .*the ONNX parser refuses it"),
    "no room on the GPU": (
        {"refuse": "cuMemHostAlloc"},
        "building the engine failed with code 2: .*CUDA_ERROR_OUT_OF_MEMORY",
    ),
    "the builder's memory": (
        {"fails_to_build": "1024 MB could not be allocated: out of memory"},
        "building the engine failed with code 2: .*out of memory",
    ),
    "killed for memory": ({"hook": "kill -KILL $PPID"}, "building the engine was killed by signal 9"),
    "numerics": ({"map_offset": 0.5}, "building the engine failed with code 2: .*differs from ONNX Runtime by"),
    "numerics of the trial": (
        {"map_offset": float("nan"), "only_in": "rdedge.deploy.trial"},
        "the trial failed with code 2: .*gives scores that are no numbers",
    ),
    "disk": ({"hook": "fill"}, "building the engine failed with code 2: .*No space left on device"),
}


@pytest.mark.parametrize(
    "fault", [pytest.param(fault, marks=[pytest.mark.mounts] if fault == "disk" else []) for fault in FAULTS]
)
def test_an_engine_that_is_not_right_leaves_the_line_on_its_own(site: GpuSite, old: str, fault: str) -> None:
    faults, said = FAULTS[fault]
    filler = site.board.folder / "lines" / "filler"
    if fault == "disk":
        if not filler.parent.is_mount():
            pytest.skip("needs root, who may mount a small disk")
        faults = faults | {"hook": fill_command(filler)}
    built, pid = site.engine_of(old), site.board.line_pid
    bundle = site.bundle(fault)
    site.faults(**faults)
    error = refusal(site.board.deploy(bundle))
    site.faults()
    assert re.search(said, error) and f"the line goes on with {old}" in error
    assert (site.board.store.current, site.board.line_pid) == (old, pid), "not even restarted"
    assert site.board.store.names() == [old] and site.engine_of(old) == built
    assert not (site.board.store.folder / "incoming").exists()
    assert site.runs_from(old)
    if fault == "disk":
        assert filler.stat().st_size > 1 << 20
        filler.unlink()
        assert site.board.deploy(bundle).returncode == 0, "with room again"
        assert site.runs_from(version_of(bundle))
        assert site.board.deploy("--rollback").returncode == 0


def test_a_deploy_killed_while_it_builds_leaves_no_builder_behind(site: GpuSite, old: str) -> None:
    built, pid = site.engine_of(old), site.board.line_pid
    bundle = site.bundle("killed")
    site.faults(hook=f"touch {site.gpu}/begun; while test ! -e {site.gpu}/go-on; do sleep 0.05; done")
    process = subprocess.Popen(site.board.command(bundle), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: (site.gpu / "begun").exists())
        (builder,) = site.processes("engine", str(site.board.store.version(version_of(bundle))))
        assert os.getpriority(os.PRIO_PROCESS, builder) > os.getpriority(os.PRIO_PROCESS, pid)
        score = int(Path(f"/proc/{builder}/oom_score_adj").read_text())
        assert score == 500, "goes before the line where memory is short"
        for receiver in site.processes("receive"):
            os.kill(receiver, signal.SIGKILL)
        error = process.communicate(timeout=WAIT_S)[1]
        assert process.returncode == 2 and "another deploy mends what was cut off" in error
        wait_until(lambda: not Path(f"/proc/{builder}").exists())
    finally:
        (site.gpu / "go-on").touch()
        site.faults()
        process.kill()
        process.communicate()
    assert (site.board.store.current, site.board.line_pid, site.engine_of(old)) == (old, pid, built)
    assert site.runs_from(old)
    again = site.board.deploy(bundle)
    assert again.returncode == 0 and f"removed {version_of(bundle)}, left by" in again.stdout, again.stderr
    assert site.runs_from(version_of(bundle))


def wait_until(is_so: Any) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
