"""The quality control of a prediction on disk: a small file a case, and the tables that are made of them."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from fedsam_pipeline.files import locked_folder, make_folder, write_text
from fedsam_pipeline.planning.thresholds import load_thresholds
from fedsam_pipeline.report.quality_page import quality_page
from fedsam_pipeline.specs.quality import QualityRow, QualityTable, lowest, worst_first

FOLDER = "qc"
"""beside the masks: ``CASE.json`` of every case, so that processes that share the cases do not write into each other's files"""
TABLE_FILE, CSV_FILE, PAGE_FILE = "qc.json", "qc.csv", "qc.html"


def row_path(mask: Path, case: str) -> Path:
    """The file of one case, given the path of its mask."""
    return mask.parent / FOLDER / f"{case}.json"


def remove_tables(folder: Path) -> None:
    """What was made of the rows of another prediction."""
    for name in (TABLE_FILE, CSV_FILE, PAGE_FILE):
        (folder / name).unlink(missing_ok=True)


def write_tables(folder: Path) -> QualityTable:
    """Makes ``qc.json``, ``qc.csv`` and ``qc.html`` of the rows of all cases whose masks lie in a folder, whoever predicted them.

    Says how many are flagged, if any are. Each file is written atomically; processes wait for each other, so that the last one's tables
    hold the rows of all.

    Args:
        folder: of the masks.

    Raises:
        FedsamError: a row is broken, or the folder cannot be written to.
    """
    make_folder(folder / FOLDER)
    with locked_folder(folder / FOLDER):
        paths = sorted(path for path in (folder / FOLDER).glob("*.json") if not path.name.startswith("."))  # those are being written
        rows = [QualityRow.load(path, fix="delete it, and predict that case again") for path in paths]
        rows = sorted((row for row in rows if (folder / row.mask).is_file()), key=worst_first)
        table = QualityTable(limits=load_thresholds().quality.model_dump(), cases=tuple(rows))
        table.save(folder / TABLE_FILE)
        write_text(folder / CSV_FILE, quality_csv(rows))
        write_text(folder / PAGE_FILE, quality_page(table, folder.resolve().name))
    if flagged := sum(bool(row.flags) for row in rows):
        print(f"quality control: {flagged} of {len(rows)} case(s) flagged, the worst first in {folder / PAGE_FILE}")
    return table


def quality_csv(rows: Sequence[QualityRow]) -> str:
    """One line a case, in the order given; what is not known is empty."""
    channels, folds, mirrors = (_names(rows, field) for field in ("outside", "folds_dice", "mirrors_dice"))
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        [
            *("case", "mask", "severity", "flags"),
            *(f"{what}_{axis}_mm" for what in ("spacing", "extent") for axis in "zyx"),
            "foreground_voxels",
            *(f"outside_{name}" for name in channels),
            *("folds_dice", "mirrors_dice"),
            *(f"folds_dice_{name}" for name in folds),
            *(f"mirrors_dice_{name}" for name in mirrors),
        ]
    )
    for row in rows:
        values = [
            *(row.severity, *row.spacing, *row.extent, row.foreground_voxels, *(row.outside.get(name) for name in channels)),
            *(lowest(row.folds_dice), lowest(row.mirrors_dice)),
            *(row.folds_dice.get(name) for name in folds),
            *(row.mirrors_dice.get(name) for name in mirrors),
        ]
        severity, *others = ("" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value) for value in values)
        writer.writerow([row.case, row.mask, severity, "; ".join(row.flags), *others])
    return stream.getvalue()


def _names(rows: Sequence[QualityRow], field: str) -> list[str]:
    """The channels or classes of any row, in their order."""
    return list(dict.fromkeys(name for row in rows for name in getattr(row, field)))
