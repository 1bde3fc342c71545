"""The page about a log of live rollouts in a real browser."""

import numpy as np
import pytest

from sarm_ray.config.report import ReportConfig
from sarm_ray.data.rollout_log import append_rollouts
from sarm_ray.report.page import report
from tests.browser import WIDTHS, Tab, until
from tests.rollouts import HOSTILE, some_rollouts

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page") / "live"
    append_rollouts(str(folder), some_rollouts())
    return report(ReportConfig(dataset=str(folder)), quiet=True)


@pytest.fixture
def tab(chromium, site):
    tab = Tab(chromium)
    yield tab
    assert tab.complaints == []
    assert tab.outside(site.output) == []
    tab.context.close()


def test_it_shows_rollouts(tab, site):
    page = tab.open(site.output)
    assert "4 rollouts" in page.inner_text("#facts")
    assert "2026-05-02 05:33 to 05:35 UTC" in page.inner_text("#facts")
    assert page.inner_text("#episodes-title") == "Rollouts"
    assert page.query_selector("#weights") is None
    names = [card.inner_text() for card in page.query_selector_all(".card-name")]
    assert names == ["arm-2", "arm-1", "arm-1", HOSTILE[:40]]
    page.fill("#search", "arm-2")
    assert len(page.query_selector_all(".card")) == 1
    assert "2026-05-02 05:34:20 UTC" in page.inner_text(".card")
    assert "20% dropped" in page.inner_text(".card")
    page.fill("#search", "")
    assert page.query_selector_all("img") == []


def test_an_opened_rollout_plays_its_pictures(tab, site):
    page = tab.open(site.output, "#ep=0&t=2")
    page.wait_for_selector("#viewer[open] .stage .picture")
    assert page.inner_text("#viewer-title").startswith("arm-1")
    assert "240 frames, 80 scored, 0 dropped" in page.inner_text(".viewer-facts")
    assert "w: RA-BC weight" not in page.inner_text("#viewer")
    until(page, "readout.innerText.includes('frame 60')")
    said = page.inner_text("#readout").split("\n")
    value = np.linspace(0, 0.95, 60, dtype=np.float32)[20]
    assert said == ["2.00 s", "frame 60", f"progress {value:.2f}", "p: grasp" if value > 1 / 3 else "p: reach"]
    titles = [title.text_content() for title in page.query_selector_all("#chart .lane title")]
    assert titles[:3] == ["predicted: reach", "predicted: grasp", "predicted: lift"]
    before = page.eval_on_selector(".stage .picture", "e => getComputedStyle(e).backgroundPosition")
    page.click("#play")
    until(page, f"getComputedStyle(document.querySelector('.stage .picture')).backgroundPosition !== {before!r}")


def test_a_hole_is_a_gap_in_the_line(tab, site):
    page = tab.open(site.output, "#ep=2")
    page.wait_for_selector("#viewer[open]")
    assert page.get_attribute("#chart .line", "d").count("M") == 2
    assert page.locator("#chart .span.unscored").count() == 1


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_sticks_out_at_any_width(chromium, site, width):
    tab = Tab(chromium, WIDTHS[width], touch=width == "phone")
    page = tab.open(site.output)
    assert page.evaluate("document.documentElement.scrollWidth") == WIDTHS[width][0]
    page.locator(".card").first.click()
    page.wait_for_selector("#viewer[open]")
    assert page.evaluate("viewer.scrollWidth <= viewer.clientWidth")
    assert tab.complaints == []
    tab.context.close()
