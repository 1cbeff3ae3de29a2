"""`install.sh --deploy-key`: deploys over the board's own sshd and sudo with exactly the rights that it gives.

sshd, sudo, visudo, usermod and the login are real, in the chroot of conftest.py; systemctl is a stand-in that tells
tests/deploy/line_unit.py, which supervises a real line, to restart it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from camera_servers import MjpegServer, showing_levels
from engine_bundles import write_bundle
from free_port import free_port

from rdedge.bundle import open_bundle
from rdedge.deploy.messages import GO, File, Order, encode
from rdedge.deploy.store import version_of

ROOT = Path(__file__).parents[3]
LINE_UNIT = ROOT / "tests/deploy/line_unit.py"
WAIT_S = 400.0
MakeBoard = Callable[..., Any]
KEYS, SUDOERS, DROP_IN = (
    "/etc/ssh/rdedge_deploy_keys",
    "/etc/sudoers.d/rdedge-deploy",
    "/etc/ssh/sshd_config.d/60-rdedge-deploy.conf",
)
OURS = {KEYS, SUDOERS, DROP_IN}
PROGRAMS = {"openssh-server": "sshd", "openssh-client": "ssh", "sudo": "visudo"}
SYSTEMCTL = f"""#!/bin/sh
echo "$*" >>/var/log/systemctl.calls
test "$*" = "restart rdedge@press.service" || exit 0
exec /opt/rdedge/venv/bin/python -s /var/lib/rdedge/{LINE_UNIT.name} restart /var/lib/rdedge/u
"""
LINE = """
bundle = "/var/lib/rdedge/press/current"
out = "/var/lib/rdedge/results"
drain_s = 1
[metrics]
port = {port}
[[camera]]
name = "top"
uri = "{uri}"
policy = "latest"
watch = {{ slow_factor = 1000.0, silent_s = 60.0 }}
"""


@pytest.fixture
def camera() -> Iterator[MjpegServer]:
    """Parts brighter than the held-out ones."""
    with showing_levels(235, 256, 0.05) as server:
        yield server


@dataclass
class Login:
    """A workstation with a key, and the board's sshd."""

    board: Any
    port: int
    folder: Path

    def ssh(self, key: str = "plant") -> list[str]:
        known = f"UserKnownHostsFile={self.folder}/known_hosts"
        options = [known, "GlobalKnownHostsFile=/dev/null", "IdentitiesOnly=yes", "LogLevel=ERROR", "BatchMode=yes"]
        command = ["ssh", "-F", "none", "-p", str(self.port), "-i", str(self.folder / key)]
        return [*command, *(word for option in options for word in ("-o", option))]

    def deploy(self, what: object, *options: object) -> subprocess.CompletedProcess[str]:
        words = [what, "rdedge@127.0.0.1", "--line", "press", "--watch", 1.5, "--ssh", " ".join(self.ssh()), *options]
        command = [sys.executable, "-m", "rdedge", "deploy", *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S * 3)

    def tell(
        self,
        *arguments: str,
        data: bytes = b"",
        to: str = "rdedge@127.0.0.1",
        command: str | None = None,
        key: str = "plant",
    ) -> subprocess.CompletedProcess[bytes]:
        """Bytes to whatever the login starts."""
        words = [*self.ssh(key), *arguments, to, *([] if command is None else [command])]
        return subprocess.run(words, input=data, capture_output=True, timeout=WAIT_S)


def new_key(folder: Path, name: str) -> str:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    return (folder / f"{name}.pub").read_text()


@pytest.fixture
def board(make_board: MakeBoard, wheels: Path, driver: Path, tmp_path: Path) -> Any:
    """Installed with the key ``plant``."""
    missing = [
        package for package, program in PROGRAMS.items() if shutil.which(program, path="/usr/sbin:/usr/bin") is None
    ]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    made = make_board(wheels=wheels, driver=driver / "lib/libcuda.so.1")
    made.path("/root/keys.pub").write_text(new_key(tmp_path, "plant"))
    made.install("--deploy-key", "/root/keys.pub")
    return made


@pytest.fixture
def login(board: Any, camera: MjpegServer, tmp_path: Path) -> Iterator[Login]:
    """The board's sshd, and its line ``press`` under supervision, as rdedge."""
    port = free_port()
    host_key = board.path("/etc/ssh/ssh_host_ed25519_key.pub").read_text()
    (tmp_path / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}")
    board.path("/usr/bin/systemctl").unlink()
    board.path("/usr/bin/systemctl").write_text(SYSTEMCTL)
    board.path("/usr/bin/systemctl").chmod(0o755)
    shutil.copy(LINE_UNIT, board.path("/var/lib/rdedge"))
    board.path("/etc/rdedge/press.toml").write_text(LINE.format(port=free_port(), uri=camera.uri))
    sshd = board.command("/usr/sbin/sshd", "-D", "-e", "-p", str(port), "-o", "ListenAddress=127.0.0.1")
    with (tmp_path / "sshd.log").open("wb") as log:
        server = subprocess.Popen(sshd, env=board.env, stderr=log)
    python = ["/opt/rdedge/venv/bin/python", "-s", f"/var/lib/rdedge/{LINE_UNIT.name}"]
    serve = board.command(*python, "serve", "/etc/rdedge/press.toml", "/var/lib/rdedge/u", user="rdedge:rdedge")
    unit = subprocess.Popen(serve, env=board.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert unit.stdin is not None and unit.stdout is not None
    try:
        assert unit.stdout.readline() == b"ready\n"
        made = Login(board, port, tmp_path)
        deadline_s = time.monotonic() + WAIT_S
        while b"Connection refused" in made.tell().stderr:
            assert server.poll() is None and time.monotonic() < deadline_s, (tmp_path / "sshd.log").read_text()
            time.sleep(0.1)
        yield made
    finally:
        unit.stdin.close()
        unit.wait(WAIT_S)
        unit.stdout.close()
        server.terminate()
        server.wait(WAIT_S)


def assert_refused(done: subprocess.CompletedProcess[Any], problem: str) -> None:
    assert done.returncode == 2 and problem in done.stderr, done.stdout + done.stderr


@pytest.mark.slow
def test_the_key_deploys_and_does_nothing_else(login: Login, tmp_path: Path) -> None:
    board = login.board
    old, new = (write_bundle(tmp_path / "lab" / name, versions={"name": name}) for name in ("old", "new"))
    for bundle in (old, new):
        done = login.deploy(bundle)
        assert done.returncode == 0, done.stdout + done.stderr + (tmp_path / "sshd.log").read_text()
        assert "files sent by ssh" in done.stdout, "rsync would need another command"
    calls = board.path("/var/log/systemctl.calls").read_text().splitlines()
    assert calls == ["reset-failed rdedge@press.service", "restart rdedge@press.service"] * 2
    back = login.deploy("--rollback")
    assert back.returncode == 0, back.stderr
    status = json.loads(login.deploy("--status").stdout)
    assert (status["current"], status["is_proved"], status["health"]["is_turning"]) == (version_of(old), True, True)
    assert status["bundle"]["contract_sha256"] == open_bundle(old).contract.contract_sha256
    owner = board.run("stat", "-c", "%U", "/var/lib/rdedge/press/versions").stdout.strip()
    assert owner == "rdedge", "the line can build engines there after an update"

    no_rights(login, new)
    no_other_commands(login)
    no_root_but_for_lines(board)
    assert board.path("/var/lib/rdedge/press/current").readlink() == Path("versions") / version_of(old)


def no_rights(login: Login, bundle: Path) -> None:
    """What an order could ask for beyond a deploy."""
    before = login.board.path("/var/log/systemctl.calls").read_text()
    for options in (["--restart", "touch /tmp/broken"], ["--selftest", "touch /tmp/broken"]):
        assert_refused(login.deploy(bundle, *options), f"this login may not give {options[0]}; leave that out")
    login.board.path("/tmp/mine.toml").write_text(login.board.path("/etc/rdedge/press.toml").read_text())
    words = [str(bundle), "rdedge@127.0.0.1", "--line", "/tmp/mine.toml", "--ssh", " ".join(login.ssh())]
    by_path = subprocess.run([sys.executable, "-m", "rdedge", "deploy", *words], capture_output=True, text=True)
    assert_refused(by_path, "this login may not give --line with a path")
    order = Order(protocol=1, action="deploy", owner="me", line="press", version=version_of(bundle), size_bytes=10)
    for name, size_bytes, said in (
        ("../../../.ssh/authorized_keys", 5, b"leaves the bundle"),
        ("/etc/passwd", 5, b"leaves the bundle"),
        ("filler", 11, b"more was sent than was announced"),
        ("contract.json", 10, b"JSON is malformed"),
    ):
        data = msgspec_json(name, size_bytes) + b"x" * size_bytes + GO
        done = login.tell(data=encode(order) + data)
        assert done.returncode == 2 and said in done.stdout, (name, done)
    assert not login.board.path("/var/lib/rdedge/.ssh").exists()
    assert not login.board.path("/tmp/broken").exists()
    assert login.board.path("/var/log/systemctl.calls").read_text() == before


def msgspec_json(name: str, size_bytes: int) -> bytes:
    """A file's announcement that our own end would not make."""
    return encode(File(name="x", size_bytes=size_bytes)).replace(b'"x"', json.dumps(name).encode())


def no_other_commands(login: Login) -> None:
    """Whatever is asked of ssh, `rdedge receive` answers, or nobody."""
    for command in ("id", "rsync --server . /", "cat /etc/rdedge/press.toml", "sh -c id", None):
        done = login.tell(command=command, data=b"id\n")
        assert done.returncode == 2 and b"not an order of `rdedge deploy`" in done.stdout, (command, done)
    sftp = login.tell("-s", command="sftp", data=b"id\n")
    assert sftp.returncode == 2 and b"not an order of `rdedge deploy`" in sftp.stdout
    terminal = login.tell("-tt", data=b"id\n")
    assert b"uid=" not in terminal.stdout
    forward = login.tell("-o", "ExitOnForwardFailure=yes", "-R", "0:127.0.0.1:1", data=b"id\n")
    assert forward.returncode == 255 and b"remote port forwarding failed" in forward.stderr
    tunnel = login.tell("-W", f"127.0.0.1:{login.port}")
    assert tunnel.returncode != 0 and b"SSH-2.0" not in tunnel.stdout
    assert login.tell(to="root@127.0.0.1", command="id").returncode == 255, "the key is rdedge's alone"

    own = new_key(login.folder, "other")
    assert login.tell(key="other").returncode == 255
    home = login.board.path("/var/lib/rdedge/.ssh")
    home.mkdir(mode=0o700)
    (home / "authorized_keys").write_text(own)
    login.board.run("chown", "-R", "rdedge:", "/var/lib/rdedge/.ssh")
    assert login.tell(key="other").returncode == 255, "nothing that runs as rdedge can let others in"
    shutil.rmtree(home)


def no_root_but_for_lines(board: Any) -> None:
    """As rdedge itself, were it taken over: sudo restarts lines and does nothing else."""
    sudo = ["/usr/bin/sudo", "-n"]
    for command in (["/bin/sh", "-c", "id"], ["/usr/bin/systemctl", "restart", "rdedge@press"], ["-u", "nobody", "id"]):
        done = board.run(*sudo, *command, user="rdedge:rdedge")
        assert done.returncode == 1 and "a password is required" in done.stderr, done
    before = board.path("/var/log/systemctl.calls").read_text()
    odd = (
        ["press", "ssh.service"],
        ["press ssh"],
        ["../rdedge/press"],
        ["*"],
        ["-H"],
        ["absent"],
        [""],
        [],
        ["press\n"],
    )
    for words in odd:
        done = board.run(*sudo, "/opt/rdedge/restart_line", *words, user="rdedge:rdedge")
        assert done.returncode == 2 and "no line's name" in done.stderr, (words, done)
    walled = ["setpriv", "--no-new-privs", *sudo, "/opt/rdedge/restart_line", "press"]  # as the services are
    done = board.run(*walled, user="rdedge:rdedge")
    assert done.returncode == 1 and "no new privileges" in done.stderr, done
    assert board.path("/var/log/systemctl.calls").read_text() == before
    for path in ("/opt/rdedge/restart_line", SUDOERS, DROP_IN, KEYS):
        done = board.run("sh", "-c", f": >>{path}", user="rdedge:rdedge")
        assert done.returncode != 0, f"{path} can be written by rdedge"


@pytest.mark.slow
def test_install_again_another_key_and_uninstall(board: Any, tmp_path: Path) -> None:
    def shell() -> str:
        return str(board.run("getent", "passwd", "rdedge").stdout.strip().rpartition(":")[2])

    def mode(path: str) -> str:
        return str(board.run("stat", "-c", "%a %U", path).stdout.strip())

    assert {path for path in OURS if board.path(path).exists()} == OURS
    assert (mode(SUDOERS), mode(KEYS), mode("/opt/rdedge/restart_line")) == ("440 root", "644 root", "755 root")
    assert board.run("visudo", "-c").returncode == 0 and shell() == "/bin/sh"
    settings = board.run("sshd", "-T", "-C", "user=root,host=localhost,addr=127.0.0.1").stdout
    assert "forcecommand none" in settings and "authorizedkeysfile .ssh/authorized_keys" in settings, (
        "others are as before"
    )

    board.install()
    assert board.path(KEYS).read_text() == (tmp_path / "plant.pub").read_text(), "without the option all stays"
    board.path("/root/keys.pub").write_text(new_key(tmp_path, "other"))
    board.install("--deploy-key", "/root/keys.pub")
    assert board.path(KEYS).read_text() == (tmp_path / "other.pub").read_text()

    board.install("--uninstall", "--dry-run")
    assert {path for path in OURS if board.path(path).exists()} == OURS
    board.install("--uninstall")
    assert not {path for path in OURS if board.path(path).exists()}
    assert shell() == "/usr/sbin/nologin"
    settings = board.run("sshd", "-T", "-C", "user=rdedge,host=localhost,addr=127.0.0.1").stdout
    assert "forcecommand none" in settings


@pytest.mark.slow
def test_an_sshd_that_does_not_read_our_file_gets_no_key(
    make_board: MakeBoard, wheels: Path, driver: Path, tmp_path: Path
) -> None:
    board = make_board(wheels=wheels, driver=driver / "lib/libcuda.so.1")
    board.path("/root/keys.pub").write_text(new_key(tmp_path, "plant"))
    config = board.path("/etc/ssh/sshd_config")
    config.write_text(config.read_text().replace("Include", "# Include"))
    done = board.run("bash", str(ROOT / "jetson/install.sh"), "--wheels", str(wheels), "--deploy-key", "/root/keys.pub")
    assert done.returncode == 2 and "sshd does not keep the user rdedge to deploys; see" in done.stderr
    assert not board.path(KEYS).exists() and not board.path(DROP_IN).exists()
    assert board.run("getent", "passwd", "rdedge").stdout.strip().endswith("/usr/sbin/nologin")


def test_a_plan_with_a_key(make_board: MakeBoard, tmp_path: Path) -> None:
    board = make_board()
    board.path("/etc/plant.pub").write_text(new_key(tmp_path, "plant"))
    before = board.changes()
    command = ["bash", str(ROOT / "jetson/install.sh"), "--dry-run", "--deploy-key"]
    done = board.run(*command, "/etc/plant.pub", user="nobody:nogroup")
    assert done.returncode == 0, done.stderr
    order = [
        "step 5",
        "step 6: deploys over ssh",
        "would run: visudo -cq -f ",
        SUDOERS,
        DROP_IN,
        KEYS,
        "usermod --shell /bin/sh",
        "done:",
    ]
    places = [done.stdout.find(text) for text in order]
    assert places == sorted(places) and -1 not in places, list(zip(order, places, strict=True))
    assert board.changes() == before
    assert "step 6" not in board.run(*command[:-1]).stdout


@pytest.mark.parametrize("kind", ["private", "no key", "empty", "absent"])
def test_what_is_no_public_key_changes_nothing(make_board: MakeBoard, tmp_path: Path, kind: str) -> None:
    board = make_board()
    new_key(tmp_path, "plant")
    texts = {"private": (tmp_path / "plant").read_text(), "no key": "ssh-ed25519 AAAA\n", "empty": ""}
    if kind in texts:
        board.path("/root/plant.pub").write_text(texts[kind])
    before = board.changes("/var/log/rdedge-install.log")
    done = board.run("bash", str(ROOT / "jetson/install.sh"), "--deploy-key", "/root/plant.pub")
    assert done.returncode == 2
    if kind in ("private", "no key"):
        assert "/root/plant.pub holds no public keys of ssh; give a .pub file" in done.stderr
    else:
        assert done.stderr.startswith("usage: ")
    assert board.changes("/var/log/rdedge-install.log") == before
