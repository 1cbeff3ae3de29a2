"""The board's guide says what is so: its commands, files, table and addresses are those of the code."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from rdedge.cli import VERBS
from rdedge.line.config import Metrics, Page
from rdedge.sources import open_source

ROOT = Path(__file__).parents[2]
JETSON = ROOT / "jetson"
GUIDE = (JETSON / "README.md").read_text(encoding="utf-8")
INSTALLER = (JETSON / "install.sh").read_text(encoding="utf-8")
FIELD_COMPLAINTS = (  # what users of boards and cameras complain of elsewhere
    "ResolutionImpossible", "cuda.h", "No module named 'tensorrt'", "libnvdla_compiler.so", "NumPy 1.x", "'FP16'",
    "built on another board", "out of memory", "differ from the lab", "first part after a pause", "nvargus-daemon",
    "no permission", "v4l2-ctl", "lags behind", "GigE", "triggers missed", "light changes", "pip install tensorrt",
    "no DLA core", "line is out of memory", "memory grows", "nvpmodel -m 0", "over-current", "is busy", "time-outs",
    "beside them", "week to week",
)  # fmt: skip


def board_commands() -> list[list[str]]:
    blocks = re.findall(r"^```sh\n(.*?)^```", GUIDE, flags=re.M | re.S)
    inline = [code for code in re.findall(r"`([^`\n]+)`", GUIDE) if code.startswith(("sudo ", "rdedge ", "pip "))]
    lines = [line for block in blocks for line in block.splitlines()] + inline
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def rdedge_commands() -> list[list[str]]:
    """Without sudo and its user."""
    found = []
    for words in board_commands():
        if words[0] == "sudo":
            words = words[3:] if words[1] == "-u" else words[1:]
        if words and words[0] == "rdedge":
            found.append(words[1:])
    return found


@pytest.mark.parametrize("words", rdedge_commands(), ids=" ".join)
def test_every_command_of_ours_exists(words: list[str]) -> None:
    verb, *arguments = words
    parser = argparse.ArgumentParser(exit_on_error=False)
    importlib.import_module(VERBS[verb].module).add_arguments(parser)
    if arguments:
        parser.parse_args(arguments)


def test_the_first_line_takes_every_step() -> None:
    verbs = [words[0] for words in rdedge_commands()]
    assert {"doctor", "check-camera", "run", "engine", "selftest", "export"} <= set(verbs)
    assert ["sudo", "systemctl", "enable", "--now", "rdedge@press4"] in board_commands()


def test_files_and_options_it_names_are_there() -> None:
    for name in re.findall(r"jetson/[\w./-]*\w", GUIDE.replace("/opt/nvidia/jetson-io/jetson-io.py", "")):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"`(Dockerfile\.\w+)`", GUIDE):
        assert (JETSON / "containers" / name).is_file()
    usage = subprocess.run(["bash", JETSON / "install.sh", "--help"], capture_output=True, text=True, check=True).stdout
    for option in ("--dry-run", "--wheels", "--deploy-key", "--uninstall", "--purge"):
        assert option in usage and option in GUIDE
    for path in ("/etc/rdedge", "/var/lib/rdedge", "/opt/rdedge", "/var/log/rdedge-install.log"):
        assert path in GUIDE and path in INSTALLER


def test_the_table_is_the_installers() -> None:
    rows = re.findall(r"^\| (6[^|]*|7[^|]*)\| ([\d.,to ]+)\| ([\d.]+) \|", GUIDE, flags=re.M)
    told = {jetpack: cuda for jetpacks, _, cuda in rows for jetpack in re.split(r",\s*", jetpacks.strip())}
    known = dict(re.findall(r"echo ([\d.]+) ([\d.]+) 3\.1[02] (?:orin|thor)", INSTALLER))
    assert told == known and len(known) == 8


def test_what_listens_is_what_the_code_listens_on() -> None:
    for server in (Metrics(), Page()):
        assert f"| {server.bind}:{server.port} |" in GUIDE


@pytest.mark.parametrize(
    "uri",
    [
        u
        for u in re.findall(r"`([^`\s]+://[^`\s]+)`", GUIDE)
        if u.upper() != u and "ADDRESS" not in u and "ID`" not in u
    ],
)
def test_every_camera_address_can_be_written(uri: str) -> None:
    open_source(uri).close()


@pytest.mark.parametrize("complaint", FIELD_COMPLAINTS)
def test_every_known_complaint_has_an_answer(complaint: str) -> None:
    rows = [
        row
        for row in GUIDE.partition("## Troubleshooting")[2].partition("## Security")[0].splitlines()
        if complaint in row
    ]
    assert rows and all(len(row.strip("|").split("|")[-1]) > 20 for row in rows)
