"""``rdedge deploy``: a bundle onto a board and its line, whole or not at all."""

from __future__ import annotations

import argparse
import os
import pwd
import socket
from pathlib import Path

import msgspec

from rdedge.bundle import open_bundle
from rdedge.deploy.messages import Done, Order, Ready, Refused, Said
from rdedge.deploy.ssh import Board, Conversation
from rdedge.deploy.store import shipped_files, version_of
from rdedge.errors import DeployError, UsageError
from rdedge.text import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's command line."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", nargs="?", help="folder that `rdedge export --out` made")
    parser.add_argument("board", metavar="USER@BOARD", help="as ssh takes it; ports and keys stand in ~/.ssh/config")
    parser.add_argument("--line", metavar="NAME", help="which line of the board, or its file's path (the only one)")
    parser.add_argument("--rollback", action="store_true", help="back to the version before, which is still there")
    parser.add_argument("--status", action="store_true", help="print as JSON what the line runs and how it is")
    parser.add_argument("--watch", type=float, default=60.0, metavar="S", help="seconds it must go well (%(default)g)")
    parser.add_argument(
        "--max-reject-rate",
        type=float,
        default=0.5,
        metavar="SHARE",
        help="a line that rejects more of its first parts goes back to the old bundle (%(default)s)",
    )
    parser.add_argument("--keep", type=int, default=3, metavar="N", help="proved versions kept there (%(default)s)")
    parser.add_argument("--selftest", metavar="COMMAND", help="also to be passed on the board; {bundle} is its folder")
    parser.add_argument("--restart", metavar="COMMAND", help="restarts the line there (systemctl restart rdedge@NAME)")
    parser.add_argument("--ssh", default="ssh", metavar="COMMAND", help="with options, if need be (%(default)s)")
    parser.add_argument(
        "--rdedge", default="/opt/rdedge/venv/bin/rdedge", metavar="PATH", help="the program there (%(default)s)"
    )


def execute(args: argparse.Namespace) -> int:
    """Shows each step of the board. Raises DeployError: then the line is as it was, or the message says how it is."""
    if args.rollback and args.status:
        raise UsageError("--rollback with --status", remedy="do one after the other")
    action = "rollback" if args.rollback else "status" if args.status else "deploy"
    if (args.bundle is None) == (action == "deploy"):
        word = "needs a BUNDLE" if args.bundle is None else f"with --{action} takes no BUNDLE"
        raise UsageError(f"`rdedge deploy` {word}", remedy="see `rdedge deploy --help`")
    board = Board(args.board, ssh=args.ssh, rdedge=args.rdedge)
    names: list[str] = []
    fields: dict[str, object] = {"action": action, "owner": _owner(), "line": args.line, "protocol": 1}
    if args.bundle is not None:
        open_bundle(args.bundle)
        names = shipped_files(args.bundle)
        size_bytes = sum((args.bundle / name).stat().st_size for name in names)
        fields |= {"version": version_of(args.bundle), "size_bytes": size_bytes}
    try:
        order = msgspec.convert(
            fields
            | {
                "restart": args.restart,
                "selftest": args.selftest,
                "watch_s": args.watch,
                "max_reject_rate": args.max_reject_rate,
                "keep": args.keep,
            },
            Order,
        )
    except msgspec.ValidationError as exc:
        raise UsageError(f"options of deploy: {exc}", remedy="see `rdedge deploy --help`") from exc
    with board.ordered(order) as talk:
        _follow(board, talk, args.bundle, names)
    return 0


def _follow(board: Board, talk: Conversation, bundle: Path | None, names: list[str]) -> None:
    while True:
        answer = talk.answer()
        if isinstance(answer, Ready):
            if bundle is None:
                raise DeployError(f"{board.address}: waits for files that were not announced", remedy="deploy again")
            how = talk.copy(bundle, names, answer.folder, has_rsync=answer.has_rsync)
            print(f"{board.address}: {len(names)} files sent by {how}", flush=True)
            talk.go()
        elif isinstance(answer, Said):
            print(f"{board.address}: {printable(answer.text)}", flush=True)
        elif isinstance(answer, Refused):
            raise DeployError(f"{board.address}: {answer.problem}", remedy=answer.remedy)
        elif isinstance(answer, Done):
            if answer.report is not None:
                print(msgspec.json.format(msgspec.json.encode(answer.report), indent=2).decode())
            else:
                print(f"{board.address}: {printable(answer.text)}")
            return


def _owner() -> str:
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container's user without a name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
