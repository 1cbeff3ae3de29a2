"""``rdedge sign``: makes keys, and signs bundles with them."""

from __future__ import annotations

import argparse
from pathlib import Path

from rdedge.errors import UsageError
from rdedge.signing import SIGNATURE_FILE, new_key, sign_bundle
from rdedge.text import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's command line."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", nargs="?", help="folder that `rdedge export --out` made")
    parser.add_argument("--key", type=Path, metavar="FILE", help="private key (Ed25519, PEM)")
    parser.add_argument("--new-key", type=Path, metavar="FILE", help="make a private key here, and FILE.pub beside it")


def execute(args: argparse.Namespace) -> int:
    """Makes a key or signs a bundle. Raises RdedgeError."""
    if args.new_key is not None:
        if args.bundle is not None or args.key is not None:
            raise UsageError("--new-key with a bundle or a key", remedy="make the key first, then sign with it")
        public, name = new_key(args.new_key)
        print(f"key {name}: {printable(str(args.new_key))} signs, keep it where you export and nowhere else")
        print(f"{printable(str(public))} goes to the boards; name it in a line's file as require_signature")
        return 0
    if args.bundle is None or args.key is None:
        raise UsageError("a bundle and --key FILE are needed", remedy="see `rdedge sign --help`")
    name = sign_bundle(args.bundle, args.key)
    print(f"signed by key {name}: {printable(str(args.bundle / SIGNATURE_FILE))}")
    return 0
