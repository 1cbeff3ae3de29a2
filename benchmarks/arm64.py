"""A bundle on arm64 userland without a board: real aarch64 wheels in an emulated Debian; the verdicts of both machines.

Needs root, debootstrap and qemu-user-static. The Debian is kept in ``--work`` and used again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rdedge.bundle import open_bundle
from rdedge.contract import Precision
from rdedge.errors import RdedgeError, UsageError
from results_file import write_results

ROOT = Path(__file__).parent.parent
MIRROR = "http://deb.debian.org/debian"
SUITE, SUITE_PYTHON = "bookworm", "3.11"
# Which Pythons must be served, and the newest glibc that their system has.
TARGETS = {"3.10": ("JetPack 6, Ubuntu 22.04", 35), "3.12": ("JetPack 7, Ubuntu 24.04", 39), "3.11": ("Debian 12", 36)}
_OLDEST_GLIBC = 17  # manylinux2014
_QEMU = "qemu-aarch64-static"
_INCLUDED = "python3-minimal,python3-pip,ca-certificates"
_COMPARED = ("verdict", "score", "threshold", "regions")
_SCORE_SHARE = 1e-4  # of the threshold: other vector units add in another order
_VERSIONS = (
    "import importlib.metadata as m, platform as p; "
    "print(p.machine(), p.python_version(), *(f'{n} {m.version(n)}' for n in "
    "('numpy', 'opencv-python-headless', 'msgspec', 'onnxruntime')), sep=', ')"
)


def main() -> None:
    """Wheels, root, both runs, results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("source", type=Path, help="folder with a folder of pictures for each kind of part")
    parser.add_argument("--each", type=int, default=2, metavar="N", help="pictures of each kind (%(default)s)")
    parser.add_argument("--work", type=Path, default=Path.home() / ".cache" / "rdedge-arm64", help="(%(default)s)")
    args = parser.parse_args()
    try:
        _require(_QEMU, "debootstrap")
        wheels = fetch_wheels(args.work / "wheels")
        root = make_root(args.work / "root")
        with tempfile.TemporaryDirectory() as scratch:
            parts = pick(args.source, args.each, Path(scratch) / "parts")
            install(root, args.work / "wheels" / SUITE_PYTHON, args.bundle, parts)
            runs = {
                precision: (
                    run_here(args.bundle, precision, parts, Path(scratch) / precision),
                    run_emulated(root, precision),
                )
                for precision in open_bundle(args.bundle).contract.precisions
            }
    except RdedgeError as exc:
        sys.exit(f"arm64: {exc}")
    figures: dict[str, object] = {
        "wheels": wheels,
        "records": {p: [one.records for one in two] for p, two in runs.items()},
    }
    write_results("arm64", render(wheels, runs), figures, ("numpy", "onnxruntime", "opencv-python-headless"))
    sys.exit(0 if all(compare(*two).is_equal for two in runs.values()) else 1)


def _require(*tools: str) -> None:
    """Raises UsageError."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        raise UsageError(f"{', '.join(missing)} not found", remedy="apt-get install qemu-user-static debootstrap")
    if os.geteuid() != 0:
        raise UsageError("a Debian root is made and entered", remedy="run this as root, best in a container")


def platforms(newest_glibc: int) -> list[str]:
    """Platform tags of aarch64 wheels that a system with glibc 2.``newest_glibc`` takes, PEP 600."""
    return [
        *(f"manylinux_2_{minor}_aarch64" for minor in range(newest_glibc, _OLDEST_GLIBC - 1, -1)),
        "manylinux2014_aarch64",
    ]


def fetch_wheels(folder: Path) -> dict[str, list[str]]:
    """Downloads what base and [cpu] need on aarch64 for every Python; wheels only, nothing may need a compiler.

    Names of the files by Python. Raises CalledProcessError where one does not exist.
    """
    dist = folder / "rdedge"
    shutil.rmtree(folder, ignore_errors=True)
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(dist), str(ROOT)], check=True)
    (own,) = dist.glob("rdedge-*.whl")
    for python, (_, glibc) in TARGETS.items():
        tags = [word for tag in platforms(glibc) for word in ("--platform", tag)]
        options = ["--quiet", "--only-binary=:all:", "--implementation", "cp", "--python-version", python, *tags]
        subprocess.run([*pip, "download", *options, "--dest", str(folder / python), f"{own}[cpu]"], check=True)
    return {python: sorted(path.name for path in (folder / python).glob("*.whl")) for python in TARGETS}


def make_root(root: Path) -> Path:
    """A Debian of arm64 with Python and pip: packages unpacked, not configured, as that would need binfmt_misc."""
    stamp = root / ".unpacked"
    if stamp.exists():
        return root
    shutil.rmtree(root, ignore_errors=True)
    root.parent.mkdir(parents=True, exist_ok=True)
    options = ["--arch=arm64", "--foreign", "--variant=minbase", f"--include={_INCLUDED}"]
    subprocess.run(["debootstrap", *options, SUITE, str(root), MIRROR], check=True, stdout=subprocess.DEVNULL)
    for package in sorted((root / "var/cache/apt/archives").glob("*.deb")):
        subprocess.run(["dpkg", "-x", str(package), str(root)], check=True)
    qemu = shutil.which(_QEMU)
    assert qemu is not None
    shutil.copy2(qemu, root / "qemu")
    stamp.touch()
    return root


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """``versions``: of machine, Python and libraries; ``records``: lines of verdicts.jsonl, by the picture's name."""

    versions: str
    records: dict[str, dict[str, Any]]
    seconds: float


def pick(source: Path, each: int, into: Path) -> Path:
    """Copies the first pictures of every folder. Raises UsageError where there are none."""
    for folder in sorted(path for path in source.iterdir() if path.is_dir()):
        (into / folder.name).mkdir(parents=True)
        for picture in sorted(folder.iterdir())[:each]:
            shutil.copy2(picture, into / folder.name)
    if not into.exists():
        raise UsageError(f"{source}: has no folders of pictures", remedy="name a folder such as rdedge-demo/parts/test")
    return into


def run_here(bundle: Path, precision: str, source: Path, out: Path) -> Run:
    """The reference: this machine's own Python."""
    started_s = time.perf_counter()
    words = [str(bundle), "--precision", precision, "--source", str(source), "--out", str(out)]
    subprocess.run([sys.executable, "-m", "rdedge", "run", *words], check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - started_s
    versions = subprocess.run([sys.executable, "-c", _VERSIONS], check=True, capture_output=True, text=True).stdout
    return Run(versions=versions.strip(), records=read_records(out), seconds=seconds)


def install(root: Path, wheels: Path, bundle: Path, source: Path) -> None:
    """Into the root: its own pip chooses among the wheels."""
    for name, folder in (("wheels", wheels), ("bundle", bundle), ("parts", source)):
        shutil.rmtree(root / name, ignore_errors=True)
        shutil.copytree(folder, root / name)
    shutil.rmtree(root / "site", ignore_errors=True)
    _emulated(root, "-m", "pip", "install", "--quiet", "--no-index", "--find-links", "/wheels", "--target", "/site",
              "--root-user-action=ignore", "--no-compile", "rdedge[cpu]")  # fmt: skip


def run_emulated(root: Path, precision: str) -> Run:
    """The same as ``run_here`` by the root's Python."""
    shutil.rmtree(root / "out", ignore_errors=True)
    started_s = time.perf_counter()
    _emulated(root, "-m", "rdedge", "run", "/bundle", "--precision", precision, "--source", "/parts", "--out", "/out")
    seconds = time.perf_counter() - started_s
    versions = _emulated(root, "-c", _VERSIONS)
    return Run(versions=versions.strip(), records=read_records(root / "out"), seconds=seconds)


def _emulated(root: Path, *arguments: str) -> str:
    """Runs the root's Python by qemu in a mount namespace of its own; returns its stdout. Raises UsageError."""
    script = 'mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && exec chroot "$0" /qemu "$@"'
    command = ["unshare", "--mount", "sh", "-c", script, str(root), "/usr/bin/python3", *arguments]
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTHONPATH": "/site",
        "HOME": "/root",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(["env", "-i", *(f"{k}={v}" for k, v in environment.items()), *command], capture_output=True)
    if done.returncode != 0:
        error = done.stderr.decode(errors="replace").strip()[-2000:]
        raise UsageError(f"python3 {' '.join(arguments[:3])} failed under qemu: {error}", remedy="see the error above")
    return done.stdout.decode()


def read_records(out: Path) -> dict[str, dict[str, Any]]:
    """What verdicts.jsonl says of each picture, by its folder and name."""
    lines = (out / "verdicts.jsonl").read_text(encoding="utf-8").splitlines()
    records = map(json.loads, lines)
    return {"/".join(Path(r["source"]).parts[-2:]): {key: r[key] for key in _COMPARED} for r in records}


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """``flips``: pictures with another verdict; ``score_share``: largest difference of scores, of the threshold."""

    pictures: int
    anomalous: int
    flips: list[str]
    score_share: float
    other_regions: list[str]

    @property
    def is_equal(self) -> bool:
        """Every verdict the same, every score but for rounding; and there was something to compare."""
        return self.pictures > 0 and not self.flips and self.score_share <= _SCORE_SHARE


def compare(one: Run, other: Run) -> Comparison:
    """Verdicts, scores and regions of the same pictures. Raises UsageError where they are not the same."""
    here, there = one.records, other.records
    if here.keys() != there.keys():
        raise UsageError(
            f"pictures judged on one side only: {sorted(here.keys() ^ there.keys())}", remedy="see the runs' output"
        )
    boxes = {name: [[r["box_xywh"] for r in run[name]["regions"]] for run in (here, there)] for name in here}
    shares = [abs(here[name]["score"] - there[name]["score"]) / abs(here[name]["threshold"]) for name in here]
    return Comparison(
        pictures=len(here),
        anomalous=sum(record["verdict"] == "anomalous" for record in here.values()),
        flips=[name for name in here if here[name]["verdict"] != there[name]["verdict"]],
        score_share=float(np.max(shares, initial=0.0)),  # NaN if any is
        other_regions=[name for name, (one, other) in boxes.items() if one != other],
    )


def render(wheels: dict[str, list[str]], runs: Mapping[Precision, tuple[Run, Run]]) -> str:
    """The results as tables."""
    here, there = next(iter(runs.values()))
    rows = [
        f"Reference: {here.versions}. Emulated: {there.versions}; Debian's arm64 userland under qemu-user,",
        "so its times say nothing of a board.",
        "",
        "| precision | pictures | anomalous | other verdicts | other boxes of regions "
        "| largest difference of scores, of the threshold | seconds of `rdedge run`, reference and emulated |",
        "|---|---|---|---|---|---|---|",
    ]
    for precision, (here, there) in runs.items():
        c = compare(here, there)
        rows.append(
            f"| {precision} | {c.pictures} | {c.anomalous} | {', '.join(c.flips) or 'none'} "
            f"| {', '.join(c.other_regions) or 'none'} | {c.score_share:.1e} "
            f"| {here.seconds:.1f}, {there.seconds:.1f} |"
        )
    rows += [
        "",
        "Wheels for aarch64 that base and [cpu] need, all found by `pip download --only-binary=:all:` with the",
        "platform tags that each system's glibc takes:",
        "",
        "| Python | system | wheels |",
        "|---|---|---|",
    ]
    for python, names in wheels.items():
        packages = [" ".join(name.split("-")[:2]) for name in names if not name.startswith("rdedge-")]
        rows.append(f"| {python} | {TARGETS[python][0]} | {', '.join(packages)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
