"""Several types of parts at once: each run or bundle on its own type's folder, and one table of all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path

import msgspec

from rdedge.contract import CONTRACT_FILE, Precision
from rdedge.errors import DatasetError
from rdedge.report_page import html_table, write_page
from rdedge.text import printable
from rdedge_train.evaluate import Evaluation, evaluate
from rdedge_train.layouts import subfolders
from rdedge_train.subject import RUN_FILE, open_subject

_FIGURES = ("image_auroc", "pixel_auroc", "au_pro", "miss_rate")


class TypesEvaluation(msgspec.Struct, frozen=True, kw_only=True):
    """Figures by type of part, and the mean over types of each figure that all of them have."""

    types: dict[str, Evaluation]
    mean: dict[str, float | None]


def subjects_below(folder: Path) -> list[str]:
    """Names of the runs and bundles in a folder that is none itself; empty where it is one, or holds none."""
    if _is_subject(folder):
        return []
    return [path.name for path in subfolders(folder) if _is_subject(path)]


def evaluate_each(
    folder: Path,
    names: list[str],
    data: Path,
    precision: Precision,
    *,
    skip_bad: bool,
    say: Callable[[str], None],
) -> TypesEvaluation:
    """Every run or bundle ``folder/<name>`` on ``data/<name>``.

    Raises DatasetError before any work if a type has no data, and as ``evaluate`` does.
    """
    missing = [name for name in names if not (data / name).is_dir()]
    if missing:
        raise DatasetError(
            f"{data}: has no folder {printable(missing[0])} for {folder / missing[0]}",
            remedy="name the folder that the runs were trained on with --each",
        )
    types = {}
    for name in names:
        say(f"{printable(name)} ...")
        types[printable(name)] = evaluate(open_subject(folder / name, precision), data / name, skip_bad=skip_bad)[0]
    return TypesEvaluation(types=types, mean=_means(list(types.values())))


def table_rows(
    result: TypesEvaluation, figure: Callable[[float | None], str], percent: Callable[[float | None], str]
) -> list[dict[str, str]]:
    """A row a type, and their mean."""

    def row(name: str, good: int, defective: int, figures: Mapping[str, float | None]) -> dict[str, str]:
        return {
            "Type": name,
            "Good": str(good),
            "Defective": str(defective),
            "Image AUROC": figure(figures["image_auroc"]),
            "Pixel AUROC": figure(figures["pixel_auroc"]),
            "AU-PRO 0.3": figure(figures["au_pro"]),
            "False rejects": percent(figures["false_reject_rate"]),
            "Missed": percent(figures["miss_rate"]),
        }

    rows = [row(name, one.good_parts, one.defective_parts, _figures(one)) for name, one in result.types.items()]
    every = result.types.values()
    return [*rows, row("mean", sum(e.good_parts for e in every), sum(e.defective_parts for e in every), result.mean)]


def write_types_report(path: Path, title: str, rows: list[dict[str, str]]) -> None:
    """One HTML page with the table of all types. Raises OSError."""
    write_page(path, title, f"<h1>{escape(title)}</h1>{html_table(rows)}")


def _is_subject(folder: Path) -> bool:
    return (folder / CONTRACT_FILE).exists() or (folder / RUN_FILE).exists()


def _figures(evaluation: Evaluation) -> dict[str, float | None]:
    overall = evaluation.overall
    return {name: getattr(overall, name) for name in _FIGURES} | {"false_reject_rate": evaluation.false_reject_rate}


def _means(evaluations: list[Evaluation]) -> dict[str, float | None]:
    by_type = [_figures(one) for one in evaluations]
    means: dict[str, float | None] = {}
    for name in by_type[0]:
        values = [value for figures in by_type if (value := figures[name]) is not None]
        means[name] = sum(values) / len(values) if len(values) == len(by_type) else None
    return means
