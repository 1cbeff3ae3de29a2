"""Signed bundles: whatever is not what a trusted key signed is refused, and private keys stay private."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rdedge.bundle import open_bundle
from rdedge.cli import main
from rdedge.contract import CONTRACT_FILE
from rdedge.errors import BundleError, UsageError
from rdedge.signing import SIGNATURE_FILE, check_signature, new_key, sign_bundle

Reseal = Callable[[dict[str, object]], bytes]

WITHOUT = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "cryptography":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
from rdedge.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def key(tmp_path: Path) -> Path:
    new_key(tmp_path / "key")
    return tmp_path / "key"


@pytest.fixture
def public(key: Path) -> Path:
    return key.with_name("key.pub")


@pytest.fixture
def signed(bundle: Path, key: Path) -> Path:
    sign_bundle(bundle, key)
    return bundle


def check(bundle: Path, keys: Path) -> Path:
    return check_signature(open_bundle(bundle), keys)


def test_a_signed_bundle_is_by_its_key(signed: Path, public: Path, tmp_path: Path) -> None:
    new_key(tmp_path / "another")
    assert check(signed, public) == public
    assert check(signed, tmp_path) == public, "of a folder, the one that signed"


def test_the_commands_make_sign_and_verify(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = tmp_path / "plant"
    assert main(["sign", "--new-key", str(key)]) == 0
    name = capsys.readouterr().out.split()[1].rstrip(":")
    assert main(["sign", str(bundle), "--key", str(key)]) == 0
    assert f"signed by key {name}: " in capsys.readouterr().out
    assert main(["info", str(bundle)]) == 0
    assert "  signature          not checked; give --key PUB\n" in capsys.readouterr().out
    assert main(["info", str(bundle), "--key", f"{key}.pub"]) == 0
    assert f"  signature          by {key}.pub\n" in capsys.readouterr().out


@pytest.mark.parametrize("umask", [0o000, 0o777])
def test_a_private_key_is_for_its_owner_alone(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        public, _ = new_key(tmp_path / "key")
    finally:
        os.umask(before)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert public.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("existing", ["key", "key.pub"])
def test_keys_are_never_overwritten(tmp_path: Path, existing: str) -> None:
    (tmp_path / existing).symlink_to("nowhere")
    with pytest.raises(UsageError, match="already exists; name another file: keys are never overwritten"):
        new_key(tmp_path / "key")
    assert os.listdir(tmp_path) == [existing]


def test_a_key_that_others_may_read_does_not_sign(bundle: Path, key: Path) -> None:
    key.chmod(0o640)
    with pytest.raises(UsageError, match="others may read this private key; chmod 600 "):
        sign_bundle(bundle, key)
    assert not (bundle / SIGNATURE_FILE).exists()


def test_an_unsigned_bundle(bundle: Path, public: Path) -> None:
    with pytest.raises(BundleError, match="is not signed; sign it with `rdedge sign BUNDLE --key FILE`"):
        check(bundle, public)


def test_a_bundle_of_another_key(signed: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    _, name = new_key(tmp_path / "keys" / "another")
    with pytest.raises(BundleError, match=rf"is signed by the key [0-9a-f]{{16}}, which is not in .*{name} \(another"):
        check(signed, tmp_path / "keys")


def test_a_contract_that_was_changed_and_sealed_anew(signed: Path, public: Path, reseal: Reseal) -> None:
    contract = json.loads((signed / CONTRACT_FILE).read_bytes())
    contract["created_utc"] = "2026-11-22T08:15:01Z"
    (signed / CONTRACT_FILE).write_bytes(reseal(contract))
    with pytest.raises(BundleError, match="its signature does not fit its contract"):
        check(signed, public)


def test_a_file_that_was_changed(signed: Path, public: Path) -> None:
    (signed / "model.onnx").write_bytes(b"another")
    with pytest.raises(BundleError, match="altered or incomplete"):
        check(signed, public)


def test_a_contract_that_changes_between_opening_and_checking(signed: Path, public: Path, reseal: Reseal) -> None:
    opened = open_bundle(signed)
    contract = json.loads((signed / CONTRACT_FILE).read_bytes())
    contract["created_utc"] = "2026-11-22T08:15:01Z"
    (signed / CONTRACT_FILE).write_bytes(reseal(contract))
    with pytest.raises(BundleError, match="changed while it was read"):
        check_signature(opened, public)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-10],
        lambda data: b"",
        lambda data: data.replace(b'"schema_version":1', b'"schema_version":2'),
        lambda data: data.replace(b'"key"', b'"keys"'),
        lambda data: data.replace(b"==", b"="),
    ],
    ids=["cut", "empty", "another form", "unknown key", "short"],
)
def test_what_is_no_signature(signed: Path, public: Path, damage: Callable[[bytes], bytes]) -> None:
    path = signed / SIGNATURE_FILE
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BundleError, match="is not a signature"):
        check(signed, public)


def test_every_bit_of_a_signature_counts(signed: Path, public: Path) -> None:
    path = signed / SIGNATURE_FILE
    made = json.loads(path.read_bytes())
    raw = base64.b64decode(made["signature"])
    for position in range(0, 512, 37):
        flipped = bytearray(raw)
        flipped[position // 8] ^= 1 << position % 8
        path.write_text(json.dumps(made | {"signature": base64.b64encode(bytes(flipped)).decode()}))
        with pytest.raises(BundleError, match="its signature does not fit"):
            check(signed, public)


def test_openssl_reads_our_keys_and_we_read_its(bundle: Path, tmp_path: Path, key: Path, public: Path) -> None:
    def openssl(*arguments: object) -> bytes:
        return subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True).stdout

    assert openssl("pkey", "-in", key, "-pubout") == public.read_bytes()
    openssl("genpkey", "-algorithm", "ed25519", "-out", tmp_path / "theirs")
    (tmp_path / "theirs").chmod(0o600)
    (tmp_path / "theirs.pub").write_bytes(openssl("pkey", "-in", tmp_path / "theirs", "-pubout"))
    sign_bundle(bundle, tmp_path / "theirs")
    assert check(bundle, tmp_path / "theirs.pub") == tmp_path / "theirs.pub"


def test_keys_that_are_none(bundle: Path, tmp_path: Path, key: Path, public: Path) -> None:
    def openssl(*arguments: object) -> None:
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)

    openssl("genpkey", "-algorithm", "rsa", "-out", tmp_path / "rsa")
    (tmp_path / "rsa").chmod(0o600)
    openssl("pkey", "-in", tmp_path / "rsa", "-pubout", "-out", tmp_path / "rsa.pub")
    with pytest.raises(UsageError, match="another kind than Ed25519"):
        sign_bundle(bundle, tmp_path / "rsa")
    sign_bundle(bundle, key)
    for name, expected in (("rsa.pub", "another kind"), ("key", "is not a public key"), ("none", "cannot be read")):
        with pytest.raises(UsageError, match=expected):
            check(bundle, tmp_path / name)
    with pytest.raises(UsageError, match="is not a private key"):
        public.chmod(0o600)
        sign_bundle(bundle, public)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no public key"):
        check(bundle, tmp_path / "empty")


def test_a_damaged_bundle_is_not_signed(bundle: Path, key: Path, refused: Callable[..., str]) -> None:
    (bundle / "report.html").unlink()
    assert "is missing" in refused("sign", bundle, "--key", key)
    assert not (bundle / SIGNATURE_FILE).exists()


@pytest.mark.parametrize("arguments", [(), ("b",), ("--key", "k"), ("b", "--new-key", "k")], ids=" ".join)
def test_half_a_command(refused: Callable[..., str], arguments: tuple[str, ...]) -> None:
    refused("sign", *arguments)


def test_a_line_that_requires_a_signature(
    signed: Path, public: Path, parts: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    line = tmp_path / "line.toml"
    line.write_text(
        f'bundle = "bundle"\nout = "out"\nrequire_signature = "{public.name}"\n'
        f'[[camera]]\nname = "top"\nuri = "folder:{parts.name}"\npolicy = "every"\n'
    )
    assert main(["run", "--line", str(line), "--dry-run"]) == 0
    capfd.readouterr()
    (signed / SIGNATURE_FILE).unlink()
    assert main(["run", "--line", str(line), "--dry-run"]) == 2
    assert f"{line}: bundle: {signed}: is not signed" in capfd.readouterr().err
    line.write_text(line.read_text().replace("key.pub", "gone.pub"))
    assert main(["run", "--line", str(line), "--dry-run"]) == 2
    assert "gone.pub: cannot be read" in capfd.readouterr().err


@pytest.mark.parametrize("verb", ["sign", "info"])
def test_without_cryptography_the_extra_is_named(signed: Path, key: Path, public: Path, verb: str) -> None:
    option = key if verb == "sign" else public
    command = [sys.executable, "-c", WITHOUT, verb, str(signed), "--key", str(option)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "pip install 'rdedge[sign]'" in done.stderr
    plain = subprocess.run([sys.executable, "-c", WITHOUT, "info", str(signed)], capture_output=True, timeout=60)
    assert plain.returncode == 0, "who asks for no signature needs no package"
