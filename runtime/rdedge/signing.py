"""Signed bundles: who exported one, proved by an Ed25519 signature of its contract, which holds every file's hash.

The signature lies beside the contract as ``contract.sig``, so that a bundle stays what it was for lines that ask for
none. Engines are built on the device and carry hashes of their own: they are not signed and not sent.
"""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta

from rdedge.atomic import write_bytes
from rdedge.bundle import Bundle, open_bundle
from rdedge.contract import CONTRACT_FILE, decode_contract
from rdedge.errors import BundleError, MissingExtraError, UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNATURE_FILE = "contract.sig"
_CONTEXT = b"rdedge contract 1\n"  # what we sign is never also a message of another program
_MAX_BYTES = 1 << 16
_MAX_CONTRACT_BYTES = 1 << 20
_NEW_KEY = "make one with `rdedge sign --new-key FILE`"
_SIGN = "sign it with `rdedge sign BUNDLE --key FILE` where it was exported"


class _Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``contract.sig``: ``key`` names the key that made it, for messages; nothing is trusted because of it."""

    schema_version: Literal[1]
    key: Annotated[str, Meta(pattern="^[0-9a-f]{16}$")]
    signature: Annotated[str, Meta(pattern="^[A-Za-z0-9+/]{86}==$")]  # 64 bytes


def new_key(path: Path) -> tuple[Path, str]:
    """A new private key at ``path``, readable by its owner alone, and the public one beside it, ``<path>.pub``.

    PEM files, as openssl makes and reads them (RFC 8410). Returns the public key's path and name. Raises UsageError if
    either file exists.
    """
    _require_cryptography()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private = Ed25519PrivateKey.generate()
    public_path = path.with_name(f"{path.name}.pub")
    for existing in (path, public_path):
        if os.path.lexists(existing):
            raise UsageError(f"{existing} already exists", remedy="name another file: keys are never overwritten")
    _create(
        path,
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
        mode=0o600,
    )
    public = private.public_key()
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    _create(public_path, pem, mode=0o644)
    return public_path, _name_of(public)


def sign_bundle(bundle: Path, key: Path) -> str:
    """Verify a bundle and sign it, in place of any older signature; returns the key's name.

    Raises BundleError, UsageError, MissingExtraError.
    """
    private = _read_private(key)
    contract = _contract_bytes(open_bundle(bundle))
    name = _name_of(private.public_key())
    signature = base64.b64encode(private.sign(_CONTEXT + contract)).decode()
    made = _Signature(schema_version=1, key=name, signature=signature)
    write_bytes(bundle / SIGNATURE_FILE, msgspec.json.encode(made) + b"\n")
    return name


def check_signature(bundle: Bundle, keys: Path) -> Path:
    """The public key that signed a bundle, of a file or of a folder of ``*.pub`` files.

    Raises BundleError for a bundle that none of them signed, UsageError for keys that cannot be read,
    MissingExtraError.
    """
    trusted = {path: _read_public(path) for path in _key_files(keys)}
    signature = _read_signature(bundle.path)
    contract = _contract_bytes(bundle)
    for path, public in trusted.items():
        if _is_by(public, signature, contract):
            return path
    if any(_name_of(public) == signature.key for public in trusted.values()):
        raise BundleError(f"{bundle.path}: its signature does not fit its contract", remedy=_SIGN)
    raise BundleError(
        f"{bundle.path}: is signed by the key {signature.key}, which is not in {keys}",
        remedy=f"sign it with a key that is, or put that key's .pub file there if you trust it; {keys} has "
        + ", ".join(f"{_name_of(public)} ({path.name})" for path, public in trusted.items()),
    )


def _is_by(public: Ed25519PublicKey, signature: _Signature, contract: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        public.verify(base64.b64decode(signature.signature), _CONTEXT + contract)
    except InvalidSignature:
        return False
    return True


def _contract_bytes(bundle: Bundle) -> bytes:
    """The file whose hashes were verified when the bundle was opened."""
    path = bundle.path / CONTRACT_FILE
    data = _read(path, _MAX_CONTRACT_BYTES, remedy="copy the bundle again")
    if decode_contract(data, path) != bundle.contract:
        raise BundleError(f"{path}: changed while it was read", remedy="start again")
    return data


def _read_signature(bundle: Path) -> _Signature:
    path = bundle / SIGNATURE_FILE
    if not os.path.lexists(path):
        raise BundleError(f"{bundle}: is not signed", remedy=_SIGN)
    try:
        return msgspec.json.decode(_read(path, _MAX_BYTES, remedy=_SIGN), type=_Signature)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise BundleError(f"{path}: is not a signature ({exc})", remedy=_SIGN) from exc


def _key_files(keys: Path) -> list[Path]:
    if not keys.is_dir():
        return [keys]
    found = sorted(keys.glob("*.pub"))
    if not found:
        raise UsageError(f"{keys}: holds no public key", remedy=f"put *.pub files there; {_NEW_KEY}")
    return found


def _read_private(path: Path) -> Ed25519PrivateKey:
    _require_cryptography()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    data = _read(path, _MAX_BYTES, remedy=_NEW_KEY)
    if path.stat().st_mode & 0o077:
        raise UsageError(f"{path}: others may read this private key", remedy=f"chmod 600 {path}")
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError) as exc:  # TypeError: it has a pass phrase
        raise UsageError(f"{path}: is not a private key without a pass phrase ({exc})", remedy=_NEW_KEY) from exc
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"{path}: is a key of another kind than Ed25519", remedy=_NEW_KEY)
    return key


def _read_public(path: Path) -> Ed25519PublicKey:
    _require_cryptography()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    remedy = "give the .pub file that `rdedge sign --new-key` made, or a folder of them"
    try:
        key = serialization.load_pem_public_key(_read(path, _MAX_BYTES, remedy=remedy))
    except ValueError as exc:
        raise UsageError(f"{path}: is not a public key", remedy=remedy) from exc
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(f"{path}: is a key of another kind than Ed25519", remedy=remedy)
    return key


def _read(path: Path, limit: int, *, remedy: str) -> bytes:
    if os.path.lexists(path) and not os.path.isfile(path):  # a pipe would make us wait
        raise UsageError(f"{path}: is not a file", remedy=remedy)
    try:
        with path.open("rb") as f:
            data = f.read(limit + 1)
    except OSError as exc:
        raise UsageError(f"{path}: cannot be read ({exc.strerror})", remedy=remedy) from exc
    if len(data) > limit:
        raise UsageError(f"{path}: has more than {limit} bytes", remedy=remedy)
    return data


def _create(path: Path, data: bytes, *, mode: int) -> None:
    """A file that was not there, with its mode from the first moment on, whatever the umask; or none."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(handle, "wb") as f:
            os.fchmod(f.fileno(), mode)
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _name_of(public: Ed25519PublicKey) -> str:
    """A short name of a key, the same on every machine."""
    return hashlib.sha256(public.public_bytes_raw()).hexdigest()[:16]


def _require_cryptography() -> None:
    try:
        import cryptography  # noqa: F401
    except ModuleNotFoundError as exc:
        raise MissingExtraError(
            "signatures need the package cryptography", remedy="pip install 'rdedge[sign]'"
        ) from exc
