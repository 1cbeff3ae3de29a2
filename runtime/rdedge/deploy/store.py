"""A line's bundles on a board: whole versions side by side, and the link ``current`` that names the one in force.

::

    /var/lib/rdedge/press4/          next to the link that the line's file names as its bundle
        current -> versions/3f9a0c11d2e4b567
        versions/3f9a0c11d2e4b567/   named by the hash of its contract and signature; never changed once it has its name
        incoming/                    what is being copied
        state.json                   which versions have proved themselves on the line, newest first

``current`` changes by one rename, so it names the old version or the new one, whatever kills us. A version is proved
when its first minute on the line was survived: if ``current`` is not the newest proved one, a deploy was cut off.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

import msgspec

from rdedge.atomic import clear_abandoned, new_folder, write_bytes
from rdedge.bundle import Bundle, open_bundle
from rdedge.contract import CONTRACT_FILE, decode_contract
from rdedge.errors import BundleError, DeployError, RdedgeError, UsageError
from rdedge.signing import SIGNATURE_FILE

_VERSIONS, _INCOMING, _STATE, _LOCK = "versions", "incoming", "state.json", ".deploy.lock"
_SLACK_BYTES = 16 << 20  # left free on the disk for everybody else
_READ_AGAIN = "copy the bundle again"


class State(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``proved``: versions that the line ran well, newest first; ``last``: what the last deploy came to."""

    schema_version: Literal[1] = 1
    proved: tuple[str, ...] = ()
    last: str = ""


def shipped_files(bundle: Path) -> list[str]:
    """What of a verified bundle is sent: the contract, what it lists, and a signature if there is one."""
    path = bundle / CONTRACT_FILE
    listed = decode_contract(path.read_bytes(), path).files
    return [CONTRACT_FILE, *listed, *([SIGNATURE_FILE] if (bundle / SIGNATURE_FILE).is_file() else [])]


def version_of(bundle: Path) -> str:
    """A version's name: 16 hex digits of the hash of the contract, which holds all others, and of the signature."""
    digest = hashlib.sha256((bundle / CONTRACT_FILE).read_bytes())
    with suppress(FileNotFoundError):
        digest.update((bundle / SIGNATURE_FILE).read_bytes())
    return digest.hexdigest()[:16]


class Store:
    """The folder around the link ``current``; reading needs no lock, changing does."""

    def __init__(self, current: Path):
        """``current``: the line's bundle as its file names it. Raises UsageError if something else is there."""
        self.current_link = current
        self.folder = current.parent
        if os.path.lexists(current) and self.current is None:
            raise UsageError(
                f"{current}: was not put there by `rdedge deploy`, which switches a link of its own",
                remedy=f"name a link that is not there yet in the line's file, such as {current.with_name('current')}"
                if current.name != "current"
                else "move it away on the board",
            )

    @contextmanager
    def locked(self, owner: str) -> Iterator[None]:
        """One deploy at a time to all lines below one folder. Raises DeployError, naming who has the lock.

        The kernel lets go of the lock however its process ends.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder.parent / _LOCK
        with path.open("a+b") as f:
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                f.seek(0)
                by = f.read(2000).decode(errors="replace").strip() or "somebody"
                raise DeployError(f"another deploy to this board is under way, by {by}", remedy="wait for it") from exc
            f.truncate(0)
            f.write(f"{owner}, process {os.getpid()}, since {now_utc()}\n".encode())
            f.flush()
            yield

    @property
    def current(self) -> str | None:
        """Name of the version in force; None: there is none."""
        try:
            target = Path(os.readlink(self.current_link))
        except OSError:  # nothing, or no link
            return None
        in_place = self.folder / target
        return in_place.name if in_place.parent == self.folder / _VERSIONS else None

    def version(self, name: str) -> Path:
        """Folder of a version."""
        return self.folder / _VERSIONS / name

    def names(self) -> list[str]:
        """Versions that are there."""
        with suppress(FileNotFoundError):
            return sorted(path.name for path in (self.folder / _VERSIONS).iterdir() if not path.name.startswith("."))
        return []

    def state(self) -> State:
        """What is known of the versions; nothing where the file is missing. Raises DeployError where it is damaged."""
        path = self.folder / _STATE
        try:
            return msgspec.json.decode(path.read_bytes(), type=State)
        except FileNotFoundError:
            return State()
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            raise DeployError(
                f"{path}: is damaged ({exc})", remedy="remove it; `current` and the versions stay as they are"
            ) from exc

    def write_state(self, state: State) -> None:
        """Replace what is known, in one step."""
        write_bytes(self.folder / _STATE, msgspec.json.encode(state) + b"\n")

    @contextmanager
    def incoming(self, size_bytes: int) -> Iterator[Path]:
        """An empty folder to copy into, gone afterwards. Raises DeployError where the disk has no room for it."""
        free_bytes = shutil.disk_usage(self.folder).free
        if free_bytes < size_bytes + _SLACK_BYTES:
            raise DeployError(
                f"{self.folder}: {free_bytes / 1e6:.0f} MB of disk are free, the bundle needs {size_bytes / 1e6:.0f} MB"
                f" and {_SLACK_BYTES / 1e6:.0f} MB must be left",
                remedy="make room on the board, or deploy with a smaller --keep",
            )
        folder = self.folder / _INCOMING / f"{os.getpid()}-{os.urandom(4).hex()}"
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder.parent, ignore_errors=True)

    def take_in(self, incoming: Path, name: str) -> Bundle:
        """Make what was copied a version: only the files that the contract lists, all verified. Raises BundleError.

        One that is there already and whole is kept; a damaged one is left and another name taken beside it.
        """
        _check_arrived(incoming, name)
        for place in self._names_for(name):
            with suppress(BundleError):
                if os.path.lexists(place):
                    return open_bundle(place)
        target = next(place for place in self._names_for(name) if not os.path.lexists(place))
        with new_folder(target) as partial:
            for file_name in shipped_files(incoming):
                path = partial / file_name
                path.parent.mkdir(parents=True, exist_ok=True)
                os.replace(incoming / file_name, path)
                path.chmod(0o644)
            open_bundle(partial)
        return open_bundle(target)

    def _names_for(self, name: str) -> list[Path]:
        return [self.version(name if number == 0 else f"{name}-{number}") for number in range(100)]

    @contextmanager
    def prepared(self, name: str) -> Iterator[Path]:
        """A link to a version, to be put in force or gone afterwards. Raises OSError, naming ``current``."""
        unique = os.urandom(4).hex()
        link = self.current_link.with_name(f".{self.current_link.name}.partial-{unique}-{os.getpid()}")
        try:
            os.symlink(f"{_VERSIONS}/{name}", link)
        except OSError as exc:
            exc.filename, exc.filename2 = str(self.current_link), None
            raise
        try:
            yield link
        finally:
            link.unlink(missing_ok=True)

    def put_in_force(self, link: Path) -> None:
        """A prepared link becomes ``current`` in one step that survives a power cut and takes no room on the disk."""
        os.replace(link, self.current_link)
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def way_back(self, new: str | None) -> str | None:
        """What to go back to from ``new``: the current version if it is proved, else the newest proved one, else the
        current one; whole in any case. None: there is none."""
        current, proved = self.current, self.state().proved
        for name in dict.fromkeys([*([current] if current in proved else []), *proved, current]):
            if name is not None and name != new:
                with suppress(RdedgeError):
                    open_bundle(self.version(name))
                    return name
        return None

    def clean_up(self, keep: int) -> list[str]:
        """Remove what killed deploys left, and all versions but the current one and the ``keep`` newest proved."""
        shutil.rmtree(self.folder / _INCOMING, ignore_errors=True)
        clear_abandoned(self.current_link)
        clear_abandoned(self.folder / _STATE)
        state = self.state()
        for path in (self.folder / _VERSIONS).glob(".*.partial-*"):
            shutil.rmtree(path, ignore_errors=True)
        wanted = {self.current, *state.proved[:keep]}
        removed = [name for name in self.names() if name not in wanted]
        for name in removed:
            shutil.rmtree(self.version(name), ignore_errors=True)
        proved = tuple(name for name in state.proved[:keep] if self.version(name).is_dir())
        if proved != state.proved:
            self.write_state(msgspec.structs.replace(state, proved=proved))
        return removed


def _check_arrived(incoming: Path, name: str) -> None:
    """Whole, and what was announced. Raises BundleError."""
    open_bundle(incoming)
    if version_of(incoming) != name:
        raise BundleError(f"version {name} was announced and {version_of(incoming)} arrived", remedy=_READ_AGAIN)


def now_utc() -> str:
    """For people to read; nothing is computed with it."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
