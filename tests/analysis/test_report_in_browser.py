"""The report in a real browser: phone and desktop, light and dark, without network or errors."""

from __future__ import annotations

import json
import shutil

import pytest
from synthetic import rank_sweep
from synthetic_paper import write_paper

from elas_lightning.analysis.paper.report import write_paper_report
from elas_lightning.analysis.report import write_report

webdriver = pytest.importorskip("selenium.webdriver", reason="runs where selenium is installed")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="runs where chromium (or google-chrome) and chromedriver are on the PATH"
)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report with every part: unfinished, with losses and a plot that was not drawn."""
    plots = [
        {"kind": "metric_by", "x": "rank", "series": "method", "log_x": True},
        {"kind": "curves", "series": "rank", "style": "method"},
        {"kind": "heatmap", "x": "rank", "y": "method"},
        {"kind": "importance"},
    ]
    folder = tmp_path_factory.mktemp("browser") / "rank_ablation"
    return write_report(rank_sweep(folder, plots=plots, states={0: "diverged"}, stop_after=22))


@pytest.fixture(scope="module")
def paper(tmp_path_factory):
    """The document on a paper, its widest tables included."""
    return write_paper_report(write_paper(tmp_path_factory.mktemp("paper")))


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def open_report(browser, report, width, scheme):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    for log in ("browser", "performance"):
        browser.get_log(log)  # what an earlier page left
    browser.get(report.as_uri())


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1280])
def test_report_fits_and_is_silent(browser, report, width, scheme):
    open_report(browser, report, width, scheme)
    assert browser.execute_script("return window.innerWidth") == width
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    sizes = browser.execute_script(
        "return [...document.images].map(i => [i.complete, i.naturalWidth, i.clientWidth, i.clientHeight])"
    )
    assert len(sizes) == 3
    for complete, natural, shown, height in sizes:
        assert complete
        assert natural > 0
        assert shown > 300
        assert height > 100
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert asked[0] == report.as_uri()
    assert [url for url in asked[1:] if not url.startswith("data:")] == []


@pytest.mark.parametrize("width", [375, 1280])
def test_the_document_on_a_paper_fits_and_its_links_work(browser, paper, width):
    open_report(browser, paper, width, "dark")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.execute_script("return [...document.images].every(i => i.complete && i.naturalWidth > 0)")
    lost = "return [...document.querySelectorAll('a')].filter(a => !document.querySelector(a.hash)).length"
    assert browser.execute_script(lost) == 0
    assert browser.get_log("browser") == []


def luminance(colour):
    """Relative luminance of ``rgb(r, g, b)`` by WCAG 2."""
    parts = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_the_contrast_that_wcag_asks(browser, report, scheme):
    open_report(browser, report, 1280, scheme)
    pairs = browser.execute_script(
        """
        const behind = e => { for (; e; e = e.parentElement) {
          const c = getComputedStyle(e).backgroundColor; if (!c.endsWith(', 0)')) return c; } };
        return ['h1', 'figcaption', '.note', '.name', 'dt', 'td', 'thead th', '.answer p', 'pre code']
          .map(s => document.querySelector(s))
          .map(e => [e.className || e.tagName, getComputedStyle(e).color, behind(e)]);
        """
    )
    for name, *colours in pairs:
        dark, light = sorted(luminance(colour) for colour in colours)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, name


def test_wide_tables_scroll_in_their_own_box_on_a_phone(browser, report):
    open_report(browser, report, 375, "light")
    boxes = browser.execute_script(
        "return [...document.querySelectorAll('.scroll')].map(b => [b.clientWidth, b.scrollWidth, b.tabIndex])"
    )
    assert len(boxes) == 3
    assert any(inner > outer for outer, inner, _ in boxes)
    assert all(outer <= 375 and tab == 0 for outer, _, tab in boxes)
