"""The command ``rdedge``: a table of verbs, each loaded only when it is called."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from io import TextIOWrapper
from typing import NoReturn

from rdedge.errors import MissingExtraError, RdedgeError, UsageError
from rdedge.images import silence_opencv
from rdedge.text import printable

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Verb:
    """Where a verb lives (a module with ``add_arguments`` and ``execute``), what it needs and what it does."""

    module: str
    extra: str
    help: str


VERBS = {
    "demo": Verb("rdedge_export.demo", "export", "make a sample, train, evaluate, export and run it: see it all work"),
    "train": Verb("rdedge_train.train_verb", "train", "learn what good parts look like"),
    "evaluate": Verb("rdedge_train.evaluate_verb", "train", "measure a run or a bundle on labelled parts"),
    "export": Verb("rdedge_export.export_verb", "export", "turn a trained run into a bundle"),
    "import": Verb("rdedge_export.import_verb", "export", "turn another program's checkpoint into a bundle"),
    "engine": Verb("rdedge_export.engine_verb", "tensorrt", "build a bundle's engine on the device that will run it"),
    "run": Verb("rdedge.run_verb", "cpu", "judge the frames of a source with a bundle, or run a line as its file says"),
    "bench": Verb("rdedge.bench.verb", "cpu", "measure latency as the line feels it, or compare two measurements"),
    "check-camera": Verb("rdedge.check_camera_verb", "cpu", "look at a still scene: is the camera fit to train on?"),
    "doctor": Verb("rdedge.doctor_verb", "cpu", "say what this machine has for the line, and what mends the rest"),
    "power": Verb("rdedge.power_verb", "cpu", "show and set a Jetson's power mode, clocks and fan; show its heat"),
    "selftest": Verb("rdedge_export.selftest_verb", "tensorrt", "prove on the device that its engines are right"),
    "info": Verb("rdedge.info_verb", "cpu", "show and verify a bundle"),
    "sign": Verb("rdedge.sign_verb", "sign", "make a key, or sign a bundle with it"),
    "deploy": Verb("rdedge.deploy.deploy_verb", "cpu", "put a bundle on a board and its line, or leave all as it was"),
    "receive": Verb("rdedge.deploy.receive_verb", "cpu", "the board's end of `rdedge deploy`, which starts it"),
}


class _Parser(argparse.ArgumentParser):
    """Faults of the command line are told like every other error: in one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, remedy=f"see `{self.prog} --help`")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0 done, 2 an error of ours, 130 interrupted."""
    _prepare_output()
    try:
        code = _dispatch(list(sys.argv[1:] if argv is None else argv))
        print(end="", flush=True)  # a full disk under stdout shows here at the latest
    except RdedgeError as exc:
        code = _fail(str(exc))
    except BrokenPipeError:
        code = EXIT_ERROR  # the reader of our output is gone; nobody to tell
    except OSError as exc:
        where = f"{exc.filename}: " if exc.filename else ""
        code = _fail(f"{where}{exc.strerror or exc}; check the path, its permissions and the disk's space")
    except KeyboardInterrupt:
        print("rdedge: interrupted", file=sys.stderr)
        code = EXIT_INTERRUPTED
    _finish_output()
    return code


def _fail(message: str) -> int:
    print(f"rdedge: error: {printable(message)}", file=sys.stderr)
    return EXIT_ERROR


def _prepare_output() -> None:
    """One line says what failed, so the libraries' own lines are off; no character fails on a terminal without it."""
    silence_opencv()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # None in a process started without
            stream.reconfigure(errors="backslashreplace")


def _finish_output() -> None:
    """Where stdout takes no more, what is left goes nowhere, or Python would complain of it on exit."""
    try:
        print(end="", flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"rdedge {version('rdedge')}")
        return 0
    name = arguments[0]
    if name not in VERBS:
        raise UsageError(f"no verb {name!r}", remedy=f"use one of: {', '.join(VERBS)}")
    verb = VERBS[name]
    try:
        module = importlib.import_module(verb.module)
        parser = _Parser(prog=f"rdedge {name}", description=verb.help)
        module.add_arguments(parser)
        execute: Callable[[argparse.Namespace], int] = module.execute
        return execute(parser.parse_args(arguments[1:]))
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.startswith("rdedge"):
            raise
        raise MissingExtraError(
            f"`rdedge {name}` needs the package {exc.name.partition('.')[0]}",
            remedy=f"pip install 'rdedge[{verb.extra}]'",
        ) from exc


def _overview() -> str:
    width = max(map(len, VERBS))
    rows = "\n".join(f"  {name:<{width}}  {verb.help}" for name, verb in VERBS.items())
    return (
        "usage: rdedge VERB [options]\n\nFrom images of good parts to verdicts on the line.\n\n"
        f"{rows}\n\n`rdedge VERB --help` shows a verb's options."
    )
