"""Shared by all tests: tiny parts, one small trained run and its bundle, and the rule that nothing may be skipped.

Heavy packages are imported inside the fixtures that need them, so that the line's tests run without torch.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from resource import RLIMIT_FSIZE, getrlimit, setrlimit
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from numpy.typing import NDArray

if TYPE_CHECKING:
    from rdedge_train.config import TrainConfig
    from rdedge_train.distributed import World
    from rdedge_train.run_folder import EpochRecord

# A busy machine may take its time over an example; which examples are drawn is the same in every run.
settings.register_profile("rdedge", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("rdedge")

SIZE_HW = (64, 64)
# Markers of the tests that may be skipped. Root has what these tests need, so there they count.
EXCUSED = ("gpu", "jetson") if os.geteuid() == 0 else ("gpu", "jetson", "mounts")


class _NoSkips:
    """Fails the session where a test was skipped that needs no special hardware."""

    def __init__(self) -> None:
        self.skipped: list[str] = []
        self.excused: set[str] = set()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """A report's keywords hold markers and folders alike, and there is a folder ``jetson``."""
        self.excused = {item.nodeid for item in session.items if any(item.get_closest_marker(name) for name in EXCUSED)}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        is_excused = hasattr(report, "wasxfail") or report.nodeid in self.excused
        if report.skipped and not is_excused:
            self.skipped.append(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self.skipped.append(report.nodeid)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.skipped and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.skipped:
            terminalreporter.section("RDEDGE_NO_SKIPS: these may not be skipped")
            terminalreporter.write_line("\n".join(self.skipped))


def pytest_configure(config: pytest.Config) -> None:
    """RDEDGE_NO_SKIPS=1: every test counts, except those for hardware or, without root, permissions that are not there.

    One thread for torch, here and in child processes, unless asked otherwise: the tiny models gain nothing by more,
    and sums are rounded in the same order on every machine.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if os.environ.get("RDEDGE_NO_SKIPS") == "1":
        config.pluginmanager.register(_NoSkips())


DrawWasher = Callable[..., NDArray[np.uint8]]
WriteParts = Callable[..., Path]


def _washer(seed: int, size_hw: tuple[int, int] = SIZE_HW, *, is_scratched: bool = False) -> NDArray[np.uint8]:
    """A bright ring with camera noise of its own (H, W, 3) BGR, with a dark scratch if asked."""
    height, width = size_hw
    centre, radius = (width // 2, height // 2), min(height, width)
    part = np.full((height, width, 3), (90, 110, 130), np.uint8)
    cv2.circle(part, centre, radius // 3, (190, 180, 170), -1)
    cv2.circle(part, centre, radius // 8, (40, 40, 40), -1)
    if is_scratched:
        cv2.line(part, *_scratch(size_hw), (10, 10, 200), 3)
    noise = np.random.default_rng(seed).integers(-8, 9, part.shape)
    return np.clip(part + noise, 0, 255).astype(np.uint8)


def _scratch(size_hw: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    height, width = size_hw
    return (width // 4, height // 3), (width // 2, height // 2)


def _write(path: Path, image: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


@pytest.fixture(scope="session")
def draw_washer() -> DrawWasher:
    """A part as an array: ``draw_washer(seed, size_hw, is_scratched=False)``."""
    return _washer


@pytest.fixture(scope="session")
def write_parts() -> WriteParts:
    """A data folder laid out like MVTec AD, every picture its own."""

    def write(
        root: Path, *, good: int = 12, test_good: int = 0, scratched: int = 0, size_hw: tuple[int, int] = SIZE_HW
    ) -> Path:
        for i in range(good):
            _write(root / f"train/good/{i:03d}.png", _washer(i, size_hw))
        for i in range(test_good):
            _write(root / f"test/good/{i:03d}.png", _washer(100 + i, size_hw))
        for i in range(scratched):
            mask = np.zeros(size_hw, np.uint8)
            cv2.line(mask, *_scratch(size_hw), 255, 3)
            _write(root / f"test/scratch/{i:03d}.png", _washer(200 + i, size_hw, is_scratched=True))
            _write(root / f"ground_truth/scratch/{i:03d}_mask.png", mask)
        return root

    return write


@pytest.fixture(scope="session")
def parts_folder(tmp_path_factory: pytest.TempPathFactory, write_parts: WriteParts) -> Path:
    """12 good parts to train on; 4 good and 4 scratched ones to test. Read only."""
    return write_parts(tmp_path_factory.mktemp("data") / "parts", test_good=4, scratched=4)


MakeConfig = Callable[..., "TrainConfig"]


@pytest.fixture(scope="session")
def make_config() -> MakeConfig:
    """Settings of a tiny run; any field can be given, head and loss default as on the command line."""

    def make(**fields: object) -> TrainConfig:
        import msgspec

        from rdedge_train.config import TrainConfig, default_head, default_loss, default_tolerance

        head = fields.get("head", default_head(str(fields.get("model", "edge-lite0"))))
        spec = {"size_hw": SIZE_HW, "colour_order": "rgb", "resize": "area+linear", "roi_xywh": None}
        plain = {
            "model": "edge-lite0",
            "input": spec,
            "ocbe": "mff+oce",
            "loss": default_loss(head),
            "tolerance": default_tolerance(head),
            "head": head,
            "epochs": 2,
            "batch_size": 4,
            "learning_rate": 0.005,
            "seed": 0,
            "held_out_share": 0.2,
            "teacher_weights": "imagenet",
        }
        return msgspec.convert(plain | fields, TrainConfig)

    return make


@pytest.fixture(scope="session")
def alone() -> World:
    """One process on the CPU."""
    import torch

    from rdedge_train.distributed import World

    return World(0, 1, 1, torch.device("cpu"))


Train = Callable[..., "list[EpochRecord]"]


@pytest.fixture(scope="session")
def train(make_config: MakeConfig, alone: World) -> Train:
    """``train(data, out, **config)`` in this process; returns the history."""

    def run(data: Path, out: Path, *, skip_bad: bool = False, **fields: object) -> list[EpochRecord]:
        from rdedge_train.fit import fit

        return fit(data, out, make_config(**fields), alone, skip_bad=skip_bad)

    return run


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, parts_folder: Path, train: Train) -> Path:
    """A finished run of edge-lite0 on ``parts_folder``. Read only; see ``copied``."""
    out = tmp_path_factory.mktemp("run") / "run"
    train(parts_folder, out)
    return out


@pytest.fixture(scope="session")
def interrupted_run(tmp_path_factory: pytest.TempPathFactory, parts_folder: Path, train: Train) -> Path:
    """The run of ``tiny_run``, stopped after its first epoch. Read only; see ``copied``."""
    import rdedge_train.fit

    def stop_after_saving(*arguments: object) -> None:
        save_state(*arguments)
        raise KeyboardInterrupt

    out = tmp_path_factory.mktemp("run") / "run"
    save_state: Callable[..., None] = rdedge_train.fit.save_state
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(rdedge_train.fit, "save_state", stop_after_saving)
        train(parts_folder, out)
    return out


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory, tiny_run: Path) -> Path:
    """The bundle of ``tiny_run``. Read only; see ``copied``."""
    from rdedge_export.bundle_writer import write_bundle
    from rdedge_train.run_folder import open_run

    out = tmp_path_factory.mktemp("bundle") / "bundle"
    write_bundle(open_run(tiny_run), out, false_reject_rate=0.1)
    return out


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path], Path]:
    """A copy of a shared folder that the test may damage."""

    def copy(folder: Path) -> Path:
        return Path(shutil.copytree(folder, tmp_path / f"{folder.name}-copy"))

    return copy


@pytest.fixture(scope="session")
def snapshot() -> Callable[[Path], dict[str, str]]:
    """Every file below a folder with the hash of its bytes, to show that nothing was changed or added."""

    def take(folder: Path) -> dict[str, str]:
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

    return take


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must fail: exit code 2 and exactly one line on stderr, which is returned."""
    from rdedge.cli import main

    def run(*arguments: object) -> str:
        capfd.readouterr()
        assert main([str(argument) for argument in arguments]) == 2
        stderr = capfd.readouterr().err
        assert stderr.startswith("rdedge: error: ")
        assert stderr.endswith("\n") and stderr.count("\n") == 1, stderr
        return stderr

    return run


@pytest.fixture(scope="session")
def disk_of() -> Callable[[int], AbstractContextManager[None]]:
    """No file can grow beyond so many bytes: as on a full disk, the write is short and the next one fails."""

    @contextmanager
    def limited(size_bytes: int) -> Iterator[None]:
        soft, hard = getrlimit(RLIMIT_FSIZE)
        setrlimit(RLIMIT_FSIZE, (size_bytes, hard))
        try:
            yield
        finally:
            setrlimit(RLIMIT_FSIZE, (soft, hard))

    return limited
