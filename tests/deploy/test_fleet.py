"""The fleet's files: Ansible deploys over real ssh, and what Prometheus and Grafana ask for is what lines expose."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from boards import WAIT_S, BoardSite

from rdedge.deploy.store import version_of
from rdedge.line.announcer import Announcer
from rdedge.line.metrics import render

MakeBundle = Callable[..., Path]
FLEET = Path(__file__).parents[2] / "jetson" / "fleet"
ANSIBLE = Path(sys.executable).with_name("ansible-playbook")


def play(name: str, inventory: Path, **variables: object) -> subprocess.CompletedProcess[str]:
    """A playbook, with its caches in the inventory's folder."""
    folder = inventory.parent
    environment = os.environ | {
        "ANSIBLE_LOCAL_TEMP": f"{folder}/ansible",
        "ANSIBLE_HOME": f"{folder}/ansible",
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_DEVEL_WARNING": "0",
        "LC_ALL": "C.UTF-8",
    }
    command = [str(ANSIBLE), "-i", str(inventory), "-e", json.dumps(variables), str(FLEET / name)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=WAIT_S * 4)


@pytest.fixture
def inventory(board: BoardSite, tmp_path: Path) -> Path:
    """One board that is there, one that is not."""
    (tmp_path / "rdedge-here").write_text(f'#!/bin/sh\nexec {sys.executable} -m rdedge "$@"\n')
    (tmp_path / "rdedge-here").chmod(0o755)
    user, _, address = board.host.address.partition("@")
    known = f"-F none -o UserKnownHostsFile={board.host.folder}/known_hosts -o LogLevel=ERROR"
    there = {
        "ansible_host": address,
        "ansible_user": user,
        "ansible_port": board.host.port,
        "ansible_ssh_private_key_file": str(board.host.folder / "user_key"),
        "ansible_ssh_common_args": known,
        "rdedge_program": str(tmp_path / "rdedge-here"),
        "rdedge_board_program": str(board.host.bin / "rdedge"),
        "rdedge_line": str(board.line_file),
        "rdedge_restart": board.restart,
    }
    away = there | {"ansible_port": 1}
    path = tmp_path / "inventory.json"
    path.write_text(json.dumps({"all": {"children": {"boards": {"hosts": {"a-press": there, "b-away": away}}}}}))
    return path


@pytest.mark.slow
def test_ansible_deploys_gathers_and_stops_at_the_first_failure(
    board: BoardSite, inventory: Path, make_bundle: MakeBundle, tmp_path: Path
) -> None:
    old, new = make_bundle("old"), make_bundle("new")
    board.lay(old)
    done = play("deploy.yml", inventory, rdedge_bundle=str(new), rdedge_watch_s=1)
    assert re.search(r"a-press +: ok=1 +changed=1 ", done.stdout), done.stdout + done.stderr
    assert done.returncode != 0 and re.search(r"b-away +: ok=0 .* failed=1 ", done.stdout), done.stdout
    assert board.store.current == version_of(new)

    report = tmp_path / "report"
    done = play("gather.yml", inventory, rdedge_report=str(report))
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(report.with_suffix(".json").read_text())
    assert told["a-press"]["current"] == version_of(new) and told["a-press"]["health"]["is_turning"] is True
    assert "ssh" in told["b-away"]["problem"]
    heading, *rows = report.with_suffix(".txt").read_text().splitlines()
    assert heading.split()[:4] == ["board", "line", "rdedge", "bundle"]
    assert rows[0].split()[:2] == ["a-press", "press"] and version_of(new) in rows[0] and "cameras up: top" in rows[0]
    assert rows[1].startswith("b-away ") and len(rows) == 2

    done = play("deploy.yml", inventory, rdedge_rollback=True, rdedge_watch_s=1)
    assert re.search(r"a-press +: ok=1 +changed=1 ", done.stdout), done.stdout + done.stderr
    assert board.store.current == version_of(old)


def test_the_example_inventory_is_one() -> None:
    command = [str(ANSIBLE.with_name("ansible-inventory")), "-i", str(FLEET / "inventory.example.yml"), "--list"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=WAIT_S, env=os.environ | {"LC_ALL": "C.UTF-8"}
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["boards"]["hosts"] == ["press-1", "press-2", "oven"]
    variables = told["_meta"]["hostvars"]["oven"]
    assert {"rdedge_line", "rdedge_ssh", "rdedge_address"} <= set(variables)


def exposed() -> dict[str, str]:
    """Every metric of a line and its kind."""
    return dict(re.findall(r"^# TYPE (rdedge_\w+) (\w+)$", render([], Announcer(), 0.0), flags=re.M))


def asked_for(text: str) -> set[str]:
    return set(re.findall(r"\brdedge_\w+", text)) - {"rdedge_lines"}


@pytest.mark.parametrize("name", ["grafana-dashboard.json", "rdedge.rules.yml"])
def test_every_metric_asked_for_is_exposed(name: str) -> None:
    metrics = exposed()
    names = set(metrics) - {name for name, kind in metrics.items() if kind == "histogram"}
    for histogram in set(metrics) - names:
        names |= {f"{histogram}_{part}" for part in ("bucket", "sum", "count")}
    asked = asked_for((FLEET / name).read_text())
    assert len(asked) > 5 and asked <= names, asked - names


def test_the_dashboard_is_whole() -> None:
    dashboard = json.loads((FLEET / "grafana-dashboard.json").read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    places = [panel["gridPos"] for panel in panels]
    assert len({(place["x"], place["y"]) for place in places}) == len(places)
    assert all(place["x"] + place["w"] <= 24 for place in places)
    assert all(target["expr"] for panel in panels for target in panel["targets"])


def promtool(*arguments: object) -> subprocess.CompletedProcess[str]:
    if shutil.which("promtool") is None:
        pytest.skip("needs prometheus")
    return subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, timeout=WAIT_S)


def test_prometheus_takes_its_files() -> None:
    done = promtool("check", "config", FLEET / "prometheus.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_takes_the_dashboard_s_expressions(tmp_path: Path) -> None:
    dashboard = json.loads((FLEET / "grafana-dashboard.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    rules = [{"record": f"panel:{i}", "expr": text.replace("$line", ".*")} for i, text in enumerate(expressions)]
    path = tmp_path / "rules.json"  # YAML is a superset
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = promtool("check", "rules", path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_alert_for_many_rejects_fires_for_many_alone(tmp_path: Path) -> None:
    """Prometheus itself computes it: 1 of 2 parts rejected on one camera, 1 of 20 on another."""
    series = [
        {"series": f'rdedge_frames_{kind}_total{{camera="{camera}",line="a",job="rdedge"}}', "values": f"0+{step}x60"}
        for camera, kind, step in (
            ("top", "judged", 20),
            ("top", "rejected", 10),
            ("side", "judged", 20),
            ("side", "rejected", 1),
        )
    ]
    alert = {"exp_labels": {"camera": "top", "line": "a", "job": "rdedge"}}
    alert["exp_annotations"] = {"summary": "a: top rejects more than one part in five"}
    test = {
        "rule_files": [str(FLEET / "rdedge.rules.yml")],
        "tests": [
            {
                "interval": "1m",
                "input_series": series,
                "alert_rule_test": [{"eval_time": "40m", "alertname": "ManyRejects", "exp_alerts": [alert]}],
            }
        ],
    }
    path = tmp_path / "test.json"
    path.write_text(json.dumps(test))
    done = promtool("test", "rules", path)
    assert done.returncode == 0, done.stdout + done.stderr
