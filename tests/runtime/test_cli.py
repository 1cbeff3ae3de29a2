"""The command: its verbs, and that every failure is one line and exit code 2, whatever is missing or full."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

import rdedge
from rdedge.cli import VERBS, main

RunPython = Callable[..., "subprocess.CompletedProcess[str]"]

WITHOUT = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1].split(","):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
from rdedge.cli import main
sys.exit(main(sys.argv[2:]))
"""
LOADED = """
import sys
from rdedge.cli import main
code = main(sys.argv[1:])
print(code, [name for name in ("torch", "torchvision", "onnx", "onnxruntime") if name in sys.modules])
"""


def rdedge_process(*arguments: object, stdout: object = subprocess.PIPE) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "rdedge", *map(str, arguments)]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, timeout=60)  # type: ignore[call-overload]


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_help_names_every_verb(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "usage: rdedge VERB [options]"
    assert [line.split()[0] for line in lines if line.startswith("  ")] == list(VERBS)


@pytest.mark.parametrize("option", ["-V", "--version"])
def test_version_is_the_packages(capsys: pytest.CaptureFixture[str], option: str) -> None:
    assert main([option]) == 0
    assert capsys.readouterr().out == f"rdedge {version('rdedge')}\n"


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_load_nothing_heavy(run_python: RunPython, option: str) -> None:
    assert run_python(LOADED, option).stdout.splitlines()[-1] == "0 []"


@pytest.mark.parametrize("verb", ["run", "info"])
def test_a_verb_has_its_help(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main([verb, "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: rdedge {verb} ") and VERBS[verb].help in " ".join(out.split())


@pytest.mark.parametrize("verb", list(VERBS))
def test_every_verb_of_the_table_exists(verb: str) -> None:
    module = VERBS[verb].module
    root = {"rdedge": "runtime", "rdedge_train": "train", "rdedge_export": "export"}[module.partition(".")[0]]
    project = Path(rdedge.__file__).parents[2]
    assert (project / root / (module.replace(".", "/") + ".py")).is_file()


@pytest.mark.parametrize("verb", ["fly", "--fly", "", "RUN"])
def test_an_unknown_verb_is_told_the_known_ones(refused: Callable[..., str], verb: str) -> None:
    known = ", ".join(VERBS)
    assert refused(verb) == f"rdedge: error: no verb {verb!r}; use one of: {known}\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run"], "the following arguments are required: BUNDLE, --source; see `rdedge run --help`"),
        (["run", "b", "--source", "x", "--fly"], "unrecognized arguments: --fly; see `rdedge run --help`"),
        (["run", "b", "--source", "x", "--threshold", "high"], "argument --threshold: invalid float value: 'high'"),
        (["run", "b", "--source", "x", "--policy", "some"], "argument --policy: invalid choice: 'some'"),
        (["info"], "the following arguments are required: BUNDLE; see `rdedge info --help`"),
    ],
)
def test_a_wrong_command_line_is_one_line(refused: Callable[..., str], arguments: list[str], says: str) -> None:
    assert says in refused(*arguments)


def test_a_missing_engine_names_its_extra(run_python: RunPython, bundle: Path, parts: Path) -> None:
    done = run_python(WITHOUT, "onnxruntime", "run", bundle, "--source", parts)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "rdedge: error: ONNX Runtime cannot be loaded (No module named 'onnxruntime'); pip install 'rdedge[cpu]'\n"
    )


def test_a_bundle_is_shown_without_any_engine(run_python: RunPython, bundle: Path) -> None:
    done = run_python(WITHOUT, "onnxruntime,torch,onnx", "info", bundle)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_missing_extra_of_a_verb_is_named(
    run_python: RunPython, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lazy_verb.py").write_text(
        "def add_arguments(parser): pass\ndef execute(args):\n    import torch.nn\n    return 0\n"
    )
    (tmp_path / "eager_verb.py").write_text("import torch.nn\n")
    code = WITHOUT.replace(
        "from rdedge.cli import main",
        "from rdedge.cli import main, VERBS, Verb\n"
        "for kind in ('lazy', 'eager'): VERBS[kind] = Verb(kind + '_verb', 'train', '')",
    )
    for verb in ("lazy", "eager"):
        done = run_python(code, "torch", verb, PYTHONPATH=str(tmp_path))
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == (f"rdedge: error: `rdedge {verb}` needs the package torch; pip install 'rdedge[train]'\n")


def test_a_missing_module_of_our_own_is_a_bug_and_told_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VERBS, "new", type(VERBS["run"])("rdedge.new_verb", "cpu", ""))
    with pytest.raises(ModuleNotFoundError, match=r"rdedge\.new_verb"):
        main(["new"])


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(28, "No space left on device", "/x/y"), "/x/y: No space left on device; check the path"),
        (OSError(5, "Input/output error"), "rdedge: error: Input/output error; check the path"),
        (OSError("odd"), "rdedge: error: odd; check the path"),
    ],
)
def test_an_error_of_the_system_is_one_line(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, error: OSError, says: str
) -> None:
    def fail(args: object) -> int:
        raise error

    monkeypatch.setattr("rdedge.info_verb.execute", fail)
    assert says in refused("info", "bundle")


def test_control_characters_of_a_name_do_not_reach_the_terminal(refused: Callable[..., str]) -> None:
    assert "a\\x1b[31m b: no such bundle folder" in refused("info", "a\x1b[31m\nb")


def test_an_interrupt_is_one_line_and_130(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(args: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("rdedge.info_verb.execute", interrupt)
    assert main(["info", "bundle"]) == 130
    assert capsys.readouterr().err == "rdedge: interrupted\n"


@pytest.mark.parametrize("arguments", [["--help"], ["info"], ["info", "--json"]], ids=" ".join)
def test_a_full_disk_under_stdout_is_one_line(bundle: Path, arguments: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        done = rdedge_process(*arguments, *([bundle] if arguments[0] == "info" else []), stdout=full)
    assert done.returncode == 2
    assert done.stderr == (
        b"rdedge: error: No space left on device; check the path, its permissions and the disk's space\n"
    )


@pytest.mark.parametrize("arguments", [["--help"], ["info"]], ids=" ".join)
def test_a_reader_that_left_is_no_news(bundle: Path, arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as pipe:
        done = rdedge_process(*arguments, *([bundle] if arguments[0] == "info" else []), stdout=pipe)
    assert (done.returncode, done.stderr) == (2, b"")


def test_a_process_without_stdout_runs(bundle: Path) -> None:
    command = f'exec "{sys.executable}" -m rdedge info "{bundle}" >&-'
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_terminal_without_unicode_gets_escapes(write_bundle: Callable[..., Path], run_python: RunPython) -> None:
    bundle = write_bundle("größe")
    code = "import sys; from rdedge.cli import main; sys.exit(main(sys.argv[1:]))"
    done = run_python(code, "info", bundle, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0].endswith("gr\\xf6\\xdfe")
