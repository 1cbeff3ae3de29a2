"""What the documents tell to type exists, and what they point to is there."""

from __future__ import annotations

import argparse
import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest

from rdedge.cli import VERBS

ROOT = Path(__file__).parent.parent.parent
DOCUMENTS = sorted(
    path for path in (*ROOT.glob("*.md"), *(ROOT / "jetson").glob("*.md"), *(ROOT / "benchmarks").glob("*.md"))
)
README = ROOT / "README.md"


def blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(encoding="utf-8"), flags=re.M | re.S)


def commands() -> list[list[str]]:
    """Every command of the documents' shell blocks and of their inline code that begins with one of our programs."""
    lines = [line for document in DOCUMENTS for block in blocks(document, "bash") for line in block.splitlines()]
    inline = [
        code for document in DOCUMENTS for code in re.findall(r"`([^`\n]+)`", document.read_text(encoding="utf-8"))
    ]
    candidates = lines + [code for code in inline if re.match(r"(make|rdedge|torchrun|python|pytest) [a-z-]", code)]
    return [words for text in candidates if (words := shlex.split(text, comments=True))]


def test_the_readme_shows_how_to_begin() -> None:
    assert ["make", "demo"] in commands()
    assert ["make", "test"] in commands()
    assert {"train", "export", "run", "info", "evaluate"} <= {words[1] for words in commands() if words[0] == "rdedge"}


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_exists(words: list[str]) -> None:
    program, *rest = words
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M)
        assert {word for word in rest if "=" not in word} <= set(targets)
        return
    if program == "python":
        source = (ROOT / rest[0]).read_text(encoding="utf-8")
        assert all(f'"{word}"' in source for word in rest if word.startswith("--"))
        return
    if program == "pytest":
        assert all((ROOT / word).exists() for word in rest if word.startswith("tests/"))
        return
    if program == "torchrun":
        rest = rest[rest.index("rdedge") + 1 :]
    elif program != "rdedge":
        assert program in ("git", "cd", "pip"), f"{program} is not checked by this test"
        return
    verb, *arguments = rest
    module = importlib.import_module(VERBS[verb].module)
    parser = argparse.ArgumentParser(exit_on_error=False)
    module.add_arguments(parser)
    if arguments:
        parser.parse_args(arguments)


def test_the_readme_shows_no_figure_that_the_whole_list_has_not() -> None:
    """By what each says and what makes it; the list has links of its own."""
    rows = {
        document: {
            re.sub(r"\]\([^)]*\)", "]", line)
            for line in document.read_text(encoding="utf-8").splitlines()
            if line.startswith("|") and line.count("|") == 4 and "`" in line.rpartition(" | ")[2]
        }
        for document in (README, ROOT / "benchmarks/README.md")
    }
    assert len(rows[README]) >= 10 and rows[README] <= rows[ROOT / "benchmarks/README.md"]


@pytest.mark.parametrize("code", blocks(README, "python"), ids=lambda code: code.splitlines()[-1].strip()[:40])
def test_every_name_in_python_examples_exists(code: str) -> None:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module:
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", document.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://")):
            assert (document.parent / target).exists(), target


def test_the_python_example_runs(
    tiny_bundle: Path, parts_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As printed, with a bundle and a picture under the names it uses."""
    folder = tiny_bundle.parent
    monkeypatch.chdir(folder)
    (folder / "part.png").write_bytes((parts_folder / "test/scratch/000.png").read_bytes())
    assert tiny_bundle.name == "bundle"
    exec(compile(blocks(README, "python")[0], "README.md", "exec"), {})
    assert re.match(r"(True|False) [0-9.]+ \[", capsys.readouterr().out)
