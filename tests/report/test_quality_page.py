"""The page of a quality control."""

import re

from fedsam_pipeline.report.quality_page import quality_page
from fedsam_pipeline.specs.quality import QualityRow, QualityTable


def make_row(case: str, severity: float, **changes: object) -> QualityRow:
    values = {
        "case": case,
        "mask": f"{case}.nii.gz",
        "severity": severity,
        "flags": ("spacing z 5 mm, planned for 1 mm",) if severity > 1 else (),
        "spacing": (5.0, 1.0, 1.0),
        "extent": (50.0, 40.0, 40.0),
        "foreground_voxels": 1234,
        "outside": {"T1": 0.25, "T2": None},
        "folds_dice": {"organ": 0.9, "lesion": 0.4},
        "mirrors_dice": {},
    }
    return QualityRow.model_validate(values | changes)


def test_the_page_holds_the_table_and_fetches_nothing() -> None:
    rows = (make_row("worst", 3.0), make_row("<b>&'quoted\"", 0.5))
    page = quality_page(QualityTable(limits={"min_agreement": 0.7}, cases=rows), "masks <of> Monday")
    assert not re.search(r"https?://|\bsrc=|\bhref=|@import|url\(", page)
    assert page.index("worst") < page.index("&lt;b&gt;&amp;&#x27;quoted&quot;")
    assert "<b>&" not in page and "masks &lt;of&gt; Monday" in page
    lines = re.findall(r"<tr.*?</tr>", page)
    heads, cells = re.findall(r"<th .*?</th>", lines[0]), re.findall(r"<td data-label='(.*?)' data-value='(.*?)'>(.*?)</td>", lines[1])
    assert len(heads) == len(cells) == 10
    shown = {label: (value, text) for label, value, text in cells}
    assert shown["Dice between folds"] == ("0.4", "0.40")
    assert shown["Dice between mirrored images"] == ("", "-")  # empty, not zero
    assert shown["T1 intensities not covered"] == ("0.25", "25.0%")
    assert shown["T2 intensities not covered"] == ("", "-")
    assert shown["flags"] == ("1", "<ul><li>spacing z 5 mm, planned for 1 mm</li></ul>")
    assert "min_agreement 0.7" in page
    assert lines[1].startswith("<tr class=flagged>") and lines[2].startswith("<tr><td")


def test_a_table_without_cases_is_a_page() -> None:
    assert "<tbody>\n\n</tbody>" in quality_page(QualityTable(limits={}, cases=()), "masks")
