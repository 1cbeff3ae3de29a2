"""Records that a machine writes beside a bundle, each with the hash of all the rest of it: as written, or refused."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TypeVar

import msgspec

from rdedge.atomic import write_bytes
from rdedge.errors import BackendError
from rdedge.strict import Sha256, Strict

UNSEALED = "0" * 64
_MAX_BYTES = 1 << 22


class SealedRecord(Strict, frozen=True):
    """Base of such a record; UNSEALED until it is written."""

    record_sha256: Sha256


Record = TypeVar("Record", bound=SealedRecord)


def sealed(record: Record) -> Record:
    """The record with its own hash."""
    blank = msgspec.structs.replace(record, record_sha256=UNSEALED)
    return msgspec.structs.replace(record, record_sha256=hashlib.sha256(msgspec.json.encode(blank)).hexdigest())


def write_sealed(path: Path, record: Record) -> Record:
    """Whole or not at all, in place of any older one; returns it with its hash. Raises OSError."""
    record = sealed(record)
    write_bytes(path, msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")
    return record


def read_sealed(path: Path, kind: type[Record], *, remedy: str) -> Record:
    """Raises BackendError where the file is no record of this kind, or was changed since."""
    if not path.is_file():  # a pipe would make us wait
        raise BackendError(f"{path}: is not a file", remedy=remedy)
    try:
        with path.open("rb") as f:
            record = msgspec.json.decode(f.read(_MAX_BYTES), type=kind)
    except OSError as exc:
        raise BackendError(f"{path}: cannot be read ({exc.strerror})", remedy=remedy) from exc
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise BackendError(f"{path}: is not what `rdedge engine` wrote ({exc})", remedy=remedy) from exc
    if sealed(record).record_sha256 != record.record_sha256:
        raise BackendError(f"{path}: was changed since it was written (its own sha256 does not fit)", remedy=remedy)
    return record
