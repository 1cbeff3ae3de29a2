"""Several processes train what one would: the same loss curve, batch norm over the whole batch, and no hanging."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from free_port import free_port
from torch import nn

from rdedge_train.distributed import GlobalBatchNorm2d, joined_world, use_global_batch_norm
from rdedge_train.run_folder import WEIGHTS_FILE, EpochRecord, open_run

WriteParts = Callable[..., Path]
Train = Callable[..., list[EpochRecord]]

PATIENCE_S = 600.0  # what hangs waits for gloo's half hour
# 5 training parts in batches of 2: the last batch holds one, so that one of two processes gets nothing.
UNEVEN = ["--image-size", "64", "--batch-size", "2"]

BATCH_NORM_WORKER = """
import sys
import torch
from rdedge_train.distributed import GlobalBatchNorm2d, joined_world

with joined_world() as world:
    results = []
    for n in (5, 4, 1):
        torch.manual_seed(n)
        x, weights = torch.randn(n, 3, 4, 6) * 2 + 1, torch.randn(n, 3, 4, 6)
        norm = GlobalBatchNorm2d(3)
        with torch.no_grad():
            norm.weight.copy_(torch.tensor([0.5, 1.0, 2.0])), norm.bias.copy_(torch.tensor([0.1, 0.2, 0.3]))
        mine = x[world.rank :: world.size].clone().requires_grad_()
        y = norm(mine)
        (y * weights[world.rank :: world.size]).sum().backward()
        results.append(
            {"y": y.detach(), "x_grad": mine.grad, "weight_grad": norm.weight.grad, "bias_grad": norm.bias.grad}
            | {key: value for key, value in norm.state_dict().items() if "running" in key or "tracked" in key}
        )
    torch.save(results, f"{sys.argv[1]}/rank{world.rank}.pt")
"""

# The command in float64, where rounding is far below anything that a fault of the algorithm would change.
DOUBLE_PRECISION_TRAIN = """
import sys
import torch
torch.set_default_dtype(torch.float64)
from rdedge_train import fit
from rdedge.cli import main

class DoubleDetector(fit.Detector):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.double()

fit.Detector = DoubleDetector
sys.exit(main())
"""

FAILING_TRAIN = """
import os
import sys
from rdedge_train import fit
from rdedge.cli import main

step, steps = fit._step, []

def failing_step(*args):
    steps.append(0)
    if len(steps) == 3 and os.environ["RANK"] == "1":
        os._exit(9)
    return step(*args)

fit._step = failing_step
sys.exit(main())
"""


@contextmanager
def started(processes: int, script: str, *arguments: object) -> Iterator[list[subprocess.Popen[str]]]:
    """The script in so many processes that know of each other, without a supervisor; none outlives the block."""
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    common |= {"GLOO_SOCKET_IFNAME": "lo"}
    common |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    children = []
    try:
        for rank in range(processes):
            joined = (
                common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {"OMP_NUM_THREADS": "1"}
            )
            command = [sys.executable, "-c", script, *map(str, arguments)]
            pipe = subprocess.PIPE
            children.append(subprocess.Popen(command, env=os.environ | joined, stdout=pipe, stderr=pipe, text=True))
        yield children
    finally:
        for child in children:
            child.kill()
            child.communicate()


def run_to_end(processes: int, script: str, *arguments: object) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of every process."""
    with started(processes, script, *arguments) as children:
        outputs = [child.communicate(timeout=PATIENCE_S) for child in children]
        return [(child.returncode, out, err) for child, (out, err) in zip(children, outputs, strict=True)]


def curve(run: Path) -> list[float]:
    return [number for epoch in open_run(run).history for number in (epoch.loss, epoch.held_out_loss)]


@pytest.fixture(scope="module")
def six_parts(tmp_path_factory: pytest.TempPathFactory, write_parts: WriteParts) -> Path:
    return write_parts(tmp_path_factory.mktemp("data") / "parts", good=6)


def test_batch_norm_over_processes_equals_that_over_the_batch(tmp_path: Path) -> None:
    """5 images make shares of 3 and 2; 1 image leaves a process with none."""
    for code, _, err in run_to_end(2, BATCH_NORM_WORKER, tmp_path):
        assert code == 0, err
    shares = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    for n, first, second in zip((5, 4, 1), *shares, strict=True):
        torch.manual_seed(n)
        x, weights = (torch.randn(n, 3, 4, 6) * 2 + 1).requires_grad_(), torch.randn(n, 3, 4, 6)
        norm = nn.BatchNorm2d(3)
        with torch.no_grad():
            norm.weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
            norm.bias.copy_(torch.tensor([0.1, 0.2, 0.3]))
        y = norm(x)
        (y * weights).sum().backward()
        assert x.grad is not None and norm.weight.grad is not None and norm.bias.grad is not None
        for rank, share in enumerate((first, second)):
            torch.testing.assert_close(share["y"], y.detach()[rank::2], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(share["x_grad"], x.grad[rank::2], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(share["running_mean"], norm.running_mean, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(share["running_var"], norm.running_var, rtol=1e-5, atol=1e-6)
            assert share["num_batches_tracked"] == norm.num_batches_tracked == 1
        for key, expected in (("weight_grad", norm.weight.grad), ("bias_grad", norm.bias.grad)):
            torch.testing.assert_close(first[key] + second[key], expected, rtol=1e-5, atol=1e-5)


def test_batch_norm_keeps_its_parameters_and_evaluates_as_before() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4)))
    x = torch.randn(2, 3, 5, 5)
    names, expected = list(model.state_dict()), model.eval()(x)
    use_global_batch_norm(model)
    assert [type(m) for m in model.modules() if isinstance(m, nn.BatchNorm2d)] == [GlobalBatchNorm2d] * 2
    assert list(model.state_dict()) == names
    assert torch.equal(model(x), expected)


def test_two_processes_give_the_curve_of_one(six_parts: Path, tmp_path: Path) -> None:
    """Loss and held-out loss of 3 epochs, in float64: equal to 2e-11 where this was measured."""
    for processes in (1, 2):
        out = tmp_path / f"run{processes}"
        command = ["train", six_parts, "--out", out, *UNEVEN, "--epochs", "3"]
        for code, _, err in run_to_end(processes, DOUBLE_PRECISION_TRAIN, *command):
            assert code == 0, err
    one, two = curve(tmp_path / "run1"), curve(tmp_path / "run2")
    assert len(one) == 6
    assert two == pytest.approx(one, rel=1e-9)


def test_torchrun_trains_a_run_that_one_process_could_have_made(six_parts: Path, tmp_path: Path, train: Train) -> None:
    """In float32 Adam turns a gradient's rounding at zero into a full step, as another number of threads does too."""
    command = ["torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2"]
    options = [str(six_parts), "--out", str(tmp_path / "two"), *UNEVEN, "--epochs", "2"]
    done = subprocess.run(
        [sys.executable, "-m", *command, "-m", "rdedge", "train", *options],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trained edge-lite0: 2 epochs") == 1
    assert done.stderr.count("epoch 2/2") == 1
    train(six_parts, tmp_path / "one", batch_size=2)
    one, two = open_run(tmp_path / "one"), open_run(tmp_path / "two")
    assert one.record.config == two.record.config
    assert curve(two.folder) == pytest.approx(curve(one.folder), rel=0.2)
    assert train(six_parts, tmp_path / "two", batch_size=2) == two.history


def test_the_others_end_when_one_process_dies(six_parts: Path, tmp_path: Path) -> None:
    with started(2, FAILING_TRAIN, "train", six_parts, "--out", tmp_path / "run", *UNEVEN) as (first, second):
        assert second.wait(PATIENCE_S) == 9
        assert first.wait(PATIENCE_S) != 0
    assert not (tmp_path / "run" / WEIGHTS_FILE).exists()


def test_the_others_end_when_the_first_refuses_to_start(six_parts: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("not a run")
    with started(2, FAILING_TRAIN, "train", six_parts, "--out", tmp_path, *UNEVEN) as (first, second):
        _, err = first.communicate(timeout=PATIENCE_S)
        assert first.returncode == 2
        own = [line for line in err.splitlines() if not line.startswith("[W")]  # torch warns of a host without a name
        assert own == [f"rdedge: error: {tmp_path}: is not empty and not a run; name a new folder"]
        assert second.wait(PATIENCE_S) != 0


def test_alone_without_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with joined_world() as world:
        assert (world.rank, world.size, world.local_size, world.is_first) == (0, 1, 1, True)
        assert not torch.distributed.is_initialized()
