"""The page in a real browser: nothing is wider than the window, every picture is decoded, it prints on whole pages.

Chromium is no dependency: without it these tests are skipped, and say so.
"""

import html
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image as pictures
from numpy.typing import NDArray

from fedsam_pipeline.pipeline.report import own_scores
from fedsam_pipeline.report.overlay import overlay_png
from fedsam_pipeline.report.run_files import RunFiles
from fedsam_pipeline.report.run_page import Surroundings, run_page
from fedsam_pipeline.report.score_sections import CasePicture
from fedsam_pipeline.report.tradeoff import RunCost
from tests.report.runs import write_run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine (Debian's package chromium)")
HARNESS = """<!DOCTYPE html><title>waiting</title>
<iframe id="frame" width="{width}" height="900" style="border: 0" srcdoc="{page}"></iframe>
<script>document.getElementById("frame").addEventListener("load", event => {{
  const page = event.target.contentDocument, inner = event.target.contentWindow.innerWidth, pictures = [...page.images];
  const seen = [...page.body.querySelectorAll("*")].filter(each => !each.closest("thead") || inner > 720);  // hidden where rows are blocks
  const wide = seen.filter(each => each.getBoundingClientRect().right > inner + 1).length;
  const decoded = pictures.filter(each => each.complete && each.naturalWidth > 50).length;
  document.title = ["measured", inner, page.documentElement.scrollWidth, wide, pictures.length, decoded].join(" ");
}})</script>"""
"""The page itself has no script. A window is never narrower than 500 pixels; a frame is."""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with everything, long names and all."""
    root = tmp_path_factory.mktemp("page")
    sites = {f"hospital_of_the_university_{at}": 6 for at in range(5)}
    files = RunFiles.load(write_run(root, sites=sites))
    image = np.random.default_rng(0).normal(size=(6, 40, 30)).astype(np.float32)
    labels = np.zeros(image.shape, np.uint8)
    labels[3, 10:30, 8:20] = 1
    png = overlay_png(image, labels, np.roll(labels, 2, 1), class_names=["organ", "lesion"])
    scores = own_scores(files)
    drawn = [CasePicture("worst", each, png) for each in scores[0].cases[:3]]
    others = [RunCost("a_recipe_with_a_very_long_name__plans__main/federated__fedavg-int4__seed0", 0.7, 4, 90_000_000)]
    path = root / "page.html"
    path.write_text(run_page(files, Surroundings(scores, "", drawn, ["a note"], others), made_with="0.1.0"), encoding="utf-8")
    return path


def chromium(page: Path, *flags: str) -> str:
    """Runs it headless and offline; returns what it prints."""
    command = [str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={page.parent / 'profile'}", *flags, page.as_uri()]
    return subprocess.run(command, check=True, capture_output=True, encoding="utf-8", timeout=120).stdout


@pytest.mark.parametrize("width", [1280, 1024, 390])
def test_nothing_is_wider_than_the_window_and_every_picture_is_there(page: Path, width: int) -> None:
    harness = page.with_name(f"harness_{width}.html")
    harness.write_text(HARNESS.format(width=width, page=html.escape(page.read_text(encoding="utf-8"))), encoding="utf-8")
    found = re.search(r"<title>measured (\d+) (\d+) (\d+) (\d+) (\d+)</title>", chromium(harness, "--dump-dom", "--window-size=1400,1000"))
    assert found is not None
    inner, scroll, wide, images, decoded = map(int, found.groups())
    assert (inner, wide) == (width, 0) and scroll <= width
    assert images == decoded > 6


def _shot(page: Path, width: int) -> NDArray[np.float64]:
    path = page.with_name(f"shot_{width}.png")
    chromium(page, f"--window-size={width},1200", f"--screenshot={path}")
    return np.asarray(pictures.imread(path), dtype=np.float64)[..., :3]


@pytest.mark.parametrize("width", [1280, 390])
def test_it_is_dark_on_light_and_full(page: Path, width: int) -> None:
    shot = _shot(page, width)
    assert shot.shape[1] == width
    dark, light = (shot.max(axis=-1) < 0.3).mean(), (shot.min(axis=-1) > 0.9).mean()
    assert light > 0.7 and 0.005 < dark < 0.2


def test_it_prints(page: Path) -> None:
    path = page.with_name("page.pdf")
    chromium(page, "--no-pdf-header-footer", f"--print-to-pdf={path}")
    content = path.read_bytes()
    assert content.startswith(b"%PDF")
    assert 4 <= len(re.findall(rb"/Type\s*/Page\b(?!s)", content)) <= 14
