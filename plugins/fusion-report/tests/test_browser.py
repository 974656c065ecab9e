"""Open the page in Chromium at two widths and in both themes: `nox -s browser`."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fusion_core import Progress
from fusion_report.page import render_page
from fusion_report.runs import read_runs

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.browser

WIDTHS, SCHEMES = (1280, 390), ("light", "dark")
#: Counts the texts in charts, and lists those with too little contrast.
SVG_TEXT = """() => {
  const lum = c => { const [r, g, b] = c.map(x => (x /= 255) <= 0.04045 ? x / 12.92
      : ((x + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const rgb = text => { const p = (text.match(/[\\d.]+/g) || []).map(Number);
      return p.length < 3 || p[3] === 0 ? null : p.slice(0, 3); };
  const failures = [];
  let count = 0;
  for (const text of document.querySelectorAll('figure svg text')) {
    if (!text.getClientRects().length) continue;
    text.scrollIntoView({block: 'center'});
    const box = text.getBoundingClientRect();
    const behind = document.elementsFromPoint(box.x + box.width / 2, box.y + box.height / 2)
      .filter(e => e !== text && e.tagName !== 'text' && e.tagName !== 'tspan')
      .map(e => rgb(e instanceof SVGGeometryElement ? getComputedStyle(e).fill
        : getComputedStyle(e).backgroundColor)).find(c => c);
    const ink = rgb(getComputedStyle(text).fill);
    const [low, high] = [lum(ink), lum(behind)].sort((a, b) => a - b);
    count += 1;
    if ((high + 0.05) / (low + 0.05) < 4.5) failures.push([text.textContent, ink, behind]);
  }
  return [count, failures];
}"""
#: Lists the texts that leave their chart or are smaller than 8 px.
MISPLACED = """() => [...document.querySelectorAll('figure svg text')]
  .filter(t => t.getClientRects().length).filter(t => {
    const box = t.getBoundingClientRect(), own = t.closest('svg').getBoundingClientRect();
    const scale = own.width / t.closest('svg').viewBox.baseVal.width;
    return box.left < own.left - 3 || box.right > own.right + 8
      || parseFloat(getComputedStyle(t).fontSize) * scale < 8;
  }).map(t => t.textContent)"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome")
    executable = next(filter(None, map(shutil.which, names)), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of one run, or the page that FUSION_REPORT names."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    runs, _ = read_runs([whole])
    path.write_text(render_page(runs, progress=Progress()), encoding="utf-8")
    return Path(os.environ.get("FUSION_REPORT", path)).resolve().as_uri()


@pytest.fixture(params=[(w, s) for w in WIDTHS for s in SCHEMES], ids=lambda p: f"{p[0]}-{p[1]}")
def shown(request: pytest.FixtureRequest, chromium: Any, address: str) -> Iterator[Any]:
    """The page in a browser; it must request nothing and log nothing."""
    width, scheme = request.param
    size = {"width": width, "height": 900}
    # the page's policy would refuse the script of axe
    context = chromium.new_context(viewport=size, color_scheme=scheme, bypass_csp=True)
    page, messages, requests = context.new_page(), [], []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(address)
    yield page
    assert messages == []
    assert requests == [address]
    context.close()


def test_the_page_requests_nothing_and_fits(shown: Any) -> None:
    width = shown.viewport_size["width"]
    assert shown.evaluate("document.documentElement.scrollWidth") == width
    assert shown.evaluate(MISPLACED) == []


def test_text_in_pictures_has_the_contrast_of_wcag_aa(shown: Any) -> None:
    count, failures = shown.evaluate(SVG_TEXT)
    assert count > 50
    assert failures == []


def test_axe_finds_no_violation(shown: Any) -> None:
    from axe_playwright_python.sync_playwright import Axe

    results = Axe().run(shown)
    assert results.violations_count == 0, results.generate_report()


def test_the_page_prints(chromium: Any, address: str) -> None:
    page = chromium.new_page()
    page.goto(address)
    assert page.pdf(format="A4").count(b"/Type /Page\n") > 1
