"""The page in a real browser: what a person does with it, and that it asks for nothing outside itself."""

import re

import numpy as np
import pyarrow as pa
import pytest

from sarm_ray.config.report import ReportConfig
from sarm_ray.core.rabc import DeltaDistribution, progress_deltas, rabc_weights, summarize_weights
from sarm_ray.data.progress_io import progress_schema, write_progress
from sarm_ray.report import page_media
from sarm_ray.report.page import report
from tests.browser import WIDTHS, Tab, until
from tests.datasets import write_dataset

pytestmark = pytest.mark.browser

FPS = 20
LENGTHS = [80 + 4 * (number % 7) for number in range(30)]
CHUNK = 10
HOSTILE = '<img src=x onerror="alert(1)">'
TASKS = (f"push {HOSTILE} the block", "</script><script>alert(2)</script>", "place the cup")


def curve(number: int, length: int) -> np.ndarray:
    """Rises; every fifth episode falls in the middle, every seventh stops early; no two end alike; one end is not scored."""
    progress = np.linspace(0.02, 0.97 - 0.003 * number, length)
    if number % 5 == 0:
        progress[length // 2 : length // 2 + 14] -= 0.25
    if number % 7 == 3:
        progress = np.minimum(progress, 0.4 + 0.001 * number)
    progress[-1] = np.nan if number == 29 else progress[-1]
    return progress.astype(np.float32)


CURVES = [curve(number, length) for number, length in enumerate(LENGTHS)]
FINALS = [round(float(each[-1]), 4) for each in CURVES]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("page") / "toy"
    write_dataset(root, "v2.1", LENGTHS, fps=FPS, tasks=TASKS, annotated=True)
    (root / "videos/chunk-000/observation.images.base/episode_000004.mp4").write_bytes(b"no video at all")
    columns = {
        "index": np.arange(sum(LENGTHS)),
        "episode_index": np.repeat(np.arange(len(LENGTHS)), LENGTHS),
        "frame_index": np.concatenate([np.arange(length) for length in LENGTHS]),
        "progress_sparse": np.concatenate(CURVES),
    }
    schema = progress_schema(("sparse",), {"reward_model_path": "<b>model</b>"})
    write_progress(str(root / "sarm_progress.parquet"), lambda: iter([pa.table(columns)]), schema)
    return root


@pytest.fixture(scope="module")
def site(dataset):
    """The page with everything inside it."""
    return report(ReportConfig(dataset=str(dataset), chunk_size=CHUNK), quiet=True)


@pytest.fixture
def tab(chromium, site):
    tab = Tab(chromium)
    yield tab
    assert tab.complaints == []
    assert tab.outside(site.output) == []
    tab.context.close()


def shown(page) -> list[int]:
    """Episodes whose cards are on screen, in order."""
    return [int(card.get_attribute("data-episode")) for card in page.query_selector_all(".card")]


def set_kappa(page, edge: int) -> None:
    page.evaluate(
        "edge => { kappa.value = edge; kappa.dispatchEvent(new Event('input', {bubbles: true})); }", int(edge)
    )


def curve_point(page, share: float) -> tuple[float, float]:
    """Where on screen a share of the episode's time is: the plot leaves 34 pixels to the left and 10 to the right."""
    box = page.locator("#chart").bounding_box()
    return box["x"] + 34 + share * (box["width"] - 44), box["y"] + box["height"] / 3


def worst_first() -> list[int]:
    """What is not known comes last."""
    return [*sorted(range(29), key=lambda number: (FINALS[number], number)), 29]


def test_it_opens_with_its_figures(tab, site):
    page = tab.open(site.output)
    assert page.title() == "toy: progress"
    assert page.inner_text("h1") == "toy"
    tiles = page.inner_text("#tiles")
    finals = FINALS[:29]
    assert f"mean final progress\n{np.mean(finals):.2f}\n" in tiles
    above = sum(final > 0.8 for final in finals)
    assert f"end above 0.8\n{above / len(finals):.0%}\n{above} of 29" in tiles
    assert f"flagged\n{site.num_flagged}\nof 30 episodes" in tiles
    assert "model <b>model</b>" in page.inner_text("#source")
    bars = [int(bar.inner_text()) for bar in page.query_selector_all("#final-bars .bar-count")]
    assert bars == [n for n in np.histogram(finals, np.linspace(0, 1, 21))[0].tolist() if n]
    assert page.inner_text("#final-note") == "1 episode without a scored end is not in it."


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_sticks_out_at_any_width(chromium, site, width, scheme):
    tab = Tab(chromium, WIDTHS[width], touch=width == "phone")
    tab.page.emulate_media(color_scheme=scheme)
    page = tab.open(site.output)
    assert page.evaluate("document.documentElement.scrollWidth") == WIDTHS[width][0]
    page.locator(".card").first.click()
    page.wait_for_selector("#viewer[open]")
    assert page.evaluate("viewer.scrollWidth <= viewer.clientWidth")
    assert page.evaluate(
        "[...document.querySelectorAll('button, select, input')].every(e => e.labels?.length || e.ariaLabel || e.innerText)"
    )
    assert tab.complaints == []
    tab.context.close()


def test_episodes_are_sorted_and_paged(tab, site):
    page = tab.open(site.output)
    assert shown(page) == worst_first()[:24]
    page.get_by_role("button", name="Next", exact=True).click()
    assert shown(page) == worst_first()[24:]
    assert page.inner_text("#count") == "25\N{EN DASH}30 of 30 episodes"
    page.get_by_role("button", name="Page 1").click()
    page.click("#direction")
    assert shown(page) == sorted(range(29), key=lambda number: (-FINALS[number], number))[:24]
    page.get_by_role("button", name="Page 2").click()
    assert shown(page)[-1] == 29
    page.select_option("#sort", "number")
    assert shown(page) == list(range(24))
    page.select_option("#sort", "length")
    assert shown(page) == sorted(range(30), key=lambda number: (-LENGTHS[number], number))[:24]
    page.select_option("#sort", "drawdown")
    drawdown = [round(float(np.nanmax(np.fmax.accumulate(each) - each)), 4) for each in CURVES]
    assert shown(page) == sorted(range(30), key=lambda number: (-drawdown[number], number))[:24]


def test_flags_numbers_and_texts_filter(tab, site):
    page = tab.open(site.output)
    page.locator("#filters").get_by_role("button", name="drop").click()
    assert shown(page) == [number for number in worst_first() if number % 5 == 0]
    page.locator("#filters").get_by_role("button", name="clear all").click()
    page.locator("#filters").get_by_role("button", name="never finishes").click()
    assert shown(page) == [number for number in worst_first() if number % 7 == 3]
    page.locator("#filters").get_by_role("button", name="clear all").click()
    page.fill("#search", "12")
    assert shown(page) == [12]
    page.fill("#search", "CUP")
    assert shown(page) == [number for number in worst_first() if number % 3 == 2]
    page.fill("#search", "no such thing")
    assert page.inner_text("#cards") == "No episode is like that. Clear filters"
    page.get_by_role("button", name="Clear filters").click()
    assert len(shown(page)) == 24
    page.locator("#final-bars button:not([disabled])").first.click()
    assert shown(page) == [n for n in worst_first() if 0.4 <= FINALS[n] < 0.45]


def test_an_episode_plays_and_its_cursor_follows(tab, site):
    page = tab.open(site.output)
    page.locator('.card[data-episode="12"]').scroll_into_view_if_needed()
    page.locator('.card[data-episode="12"]').click()
    page.wait_for_selector("#viewer[open]")
    assert page.url.endswith("#ep=12")
    assert page.inner_text("#viewer-title") == "Episode 12"
    until(page, "document.querySelector('#viewer video')?.readyState >= 2")
    duration = page.evaluate("document.querySelector('#viewer video').duration")
    assert duration == pytest.approx(LENGTHS[12] / FPS, abs=1 / FPS)
    before = page.get_attribute("#cursor", "transform")
    assert page.inner_text("#play") == "Play"
    page.click("#play")
    until(page, "document.querySelector('#viewer video').currentTime > 0.5")
    page.evaluate("document.querySelector('#viewer video').pause()")  # where a click may come too late to stop it
    until(page, "play.textContent === 'Play'")
    assert page.get_attribute("#cursor", "transform") != before
    moment = page.evaluate("document.querySelector('#viewer video').currentTime")
    until(page, f"Math.abs(Number(chart.dataset.time) - {moment}) < 1e-6")
    cursor = float(re.search(r"translate\(([\d.]+) 0\)", page.get_attribute("#cursor", "transform"))[1])
    width = page.evaluate("chart.querySelector('svg').viewBox.baseVal.width")
    assert cursor == pytest.approx(34 + moment / ((LENGTHS[12] - 1) / FPS) * (width - 44), abs=1)
    said = page.inner_text("#readout").split("\n")
    frame = int(moment * FPS + 0.02)
    assert said[1] == f"frame {frame}"
    assert said[2] == f"progress {CURVES[12][frame]:.2f}"
    page.keyboard.press("Escape")
    page.wait_for_selector("#viewer:not([open])", state="attached")
    until(page, "!location.hash.includes('ep=')")


def test_a_click_and_a_drag_on_the_curve_seek(tab, site):
    page = tab.open(site.output, "#ep=12")
    until(page, "document.querySelector('#viewer video')?.readyState >= 2")
    last_s = (LENGTHS[12] - 1) / FPS
    for share in (0.7, 0.05, 1.0, 0.0, 0.33):
        page.mouse.click(*curve_point(page, share))
        until(page, "!document.querySelector('#viewer video').seeking")
        moment = page.evaluate("document.querySelector('#viewer video').currentTime")
        assert moment == pytest.approx(share * last_s, abs=1 / FPS)
    page.mouse.move(*curve_point(page, 0.2))
    page.mouse.down()
    page.mouse.move(*curve_point(page, 0.5), steps=4)
    page.mouse.up()
    page.mouse.move(*curve_point(page, 0.9))
    until(page, "!document.querySelector('#viewer video').seeking")
    assert page.evaluate("document.querySelector('#viewer video').currentTime") == pytest.approx(
        0.5 * last_s, abs=1 / FPS
    )
    page.keyboard.press(".")
    until(page, "!document.querySelector('#viewer video').seeking")
    frame = page.inner_text("#readout").split("\n")[1]
    page.keyboard.press(",")
    until(page, f"!readout.innerText.includes({frame!r})")


def test_arrow_keys_turn_the_pages(tab, site):
    page = tab.open(site.output)
    order = worst_first()
    page.locator(".card").first.click()
    until(page, f"document.querySelector('#viewer-title')?.innerText === 'Episode {order[0]}'")
    page.keyboard.press("ArrowRight")
    until(page, f"document.querySelector('#viewer-title')?.innerText === 'Episode {order[1]}'")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    until(page, f"document.querySelector('#viewer-title')?.innerText === 'Episode {order[-1]}'")
    page.keyboard.press("Escape")
    page.wait_for_selector("#viewer:not([open])", state="attached")


def test_a_link_opens_an_episode_at_a_time(tab, site):
    page = tab.open(site.output, "#ep=7&t=1.5")
    until(page, "document.querySelector('#viewer video')?.readyState >= 2")
    until(page, "Math.abs(document.querySelector('#viewer video').currentTime - 1.5) < 0.05")
    page.evaluate("location.hash = '#ep=8'")
    until(page, "document.querySelector('#viewer-title')?.innerText === 'Episode 8'")
    page.evaluate("location.hash = '#ep=999'")
    page.wait_for_selector("#viewer:not([open])", state="attached")


def test_the_slider_gives_the_weights_of_core_rabc(tab, site):
    page = tab.open(site.output)
    lengths, progress = np.array(LENGTHS), np.concatenate(CURVES)
    deltas = progress_deltas(progress, lengths, CHUNK)
    distribution = DeltaDistribution()
    distribution.add(deltas)
    edges = page.evaluate("JSON.parse(data.textContent).weights.edges")
    means = []
    for edge in [0, 1, len(edges) // 3, len(edges) // 2, len(edges) - 1]:
        set_kappa(page, edge)
        summary = summarize_weights(distribution, edges[edge] / 1e6)
        mean = float(page.get_attribute("#mean-weight", "data-value"))
        exact = rabc_weights(deltas, distribution.mean, distribution.std, edges[edge] / 1e6).mean()
        assert mean == pytest.approx(summary.mean_weight, abs=1e-4)
        assert mean == pytest.approx(float(exact), abs=0.005)
        shares = {e.get_attribute("data-share"): e.inner_text() for e in page.query_selector_all("[data-share]")}
        assert shares["zero"] == f"{summary.share_zero:.0%}"
        assert shares["full"] == f"{summary.share_full:.0%}"
        assert page.inner_text("#verdict").startswith("healthy") == summary.is_healthy
        means.append(mean)
    assert means == sorted(means, reverse=True)
    assert means[0] > means[-1]
    page.locator("#presets").get_by_role("button", name="auto").click()
    auto = summarize_weights(distribution, 0.01).auto_kappa
    assert page.inner_text("#flags").endswith(f"--sample_weighting.kappa={auto:g}")
    assert float(page.get_attribute("#mean-weight", "data-value")) == pytest.approx(
        summarize_weights(distribution, auto).mean_weight, abs=1e-4
    )
    page.locator("#kappa").focus()
    before = page.inner_text("#kappa-value")
    page.keyboard.press("ArrowRight")
    until(page, f"document.querySelector('#kappa-value').innerText !== {before!r}")


def test_stretches_that_drop_out_are_listed_and_lead_there(tab, site):
    page = tab.open(site.output)
    expected = []
    for number, (progress, length) in enumerate(zip(CURVES, LENGTHS, strict=True)):
        falls = progress_deltas(progress, np.array([length]), CHUNK) < 0
        edges = np.flatnonzero(np.diff(falls.astype(int), prepend=0, append=0)).reshape(-1, 2)
        expected += [(number, start, stop) for start, stop in edges.tolist()]
    longest = max(stop - start for _, start, stop in expected)
    until(page, f"document.querySelector('#segments-note').innerText.startsWith('{len(expected)} stretch')")
    first = page.locator("#segments a").first
    assert first.locator(".segment-length").inner_text() == f"{longest / FPS:.1f} s"
    name = first.locator(".segment-name").inner_text()
    begin = float(first.locator(".segment-time").inner_text().partition("\N{EN DASH}")[0])
    assert (int(name.split()[1]), round(begin * FPS)) in [(number, start) for number, start, _ in expected]
    first.click()
    page.wait_for_selector("#viewer[open]")
    assert page.inner_text("#viewer-title") == name
    until(page, f"Math.abs(Number(chart.dataset.time) - {begin}) < 0.1")
    assert page.locator(".dropped rect").count() >= 1
    page.keyboard.press("Escape")
    page.locator("#segment-mode").get_by_role("button", name="under ½").click()
    assert int(page.inner_text("#segments-note").split()[0]) >= len(expected)


def test_the_annotation_is_shown_beside_the_curve(tab, site):
    page = tab.open(site.output, "#ep=1")
    page.wait_for_selector("#chart .lane")
    assert [title.text_content() for title in page.query_selector_all("#chart .lane title")] == [
        "annotated: approach",
        "annotated: push",
        "annotated: retract",
    ]
    assert page.get_attribute("#chart .truth", "d").startswith("M34.00 ")


def test_hostile_texts_are_texts(tab, site):
    page = tab.open(site.output)
    tasks = page.inner_text("#cards")
    assert TASKS[0] in tasks
    assert TASKS[1] in tasks
    page.goto(f"file://{site.output}#ep=0")
    page.wait_for_selector("#viewer[open]")
    assert page.inner_text("#viewer .task") == TASKS[0]
    assert page.query_selector_all("img") == []
    page.keyboard.press("Escape")


def test_a_video_that_cannot_be_read_is_a_card_that_says_so(tab, site):
    page = tab.open(site.output, "#ep=4")
    page.wait_for_selector("#viewer[open]")
    assert page.inner_text(".stage .note") == (
        "The video cannot be read: videos/chunk-000/observation.images.base/episode_000004.mp4: "
        "not a readable video (Invalid data found when processing input)"
    )
    page.click("#play")  # the cursor goes its way all the same
    until(page, "Number(chart.dataset.time) > 0.2")
    page.keyboard.press("Escape")
    page.fill("#search", "4")
    assert "no video" in page.locator('.card[data-episode="4"]').inner_text()
    assert "video cannot be read" in page.locator('.card[data-episode="4"]').inner_text()


def test_the_flags_can_be_copied(tab, site):
    page = tab.open(site.output)
    page.click("#copy")
    until(page, "['Copied', 'Press Ctrl+C'].includes(copy.textContent)")
    assert page.inner_text("#flags").split(" \\\n  ")[:3] == [
        "--sample_weighting.type=rabc",
        f"--sample_weighting.progress_path={site.output.removesuffix('report.html')}sarm_progress.parquet",
        "--sample_weighting.head_mode=sparse",
    ]


def test_a_large_report_has_its_pictures_and_videos_beside_it(chromium, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(page_media, "MAX_EMBEDDED_EPISODES", 10)
    output = str(tmp_path / "big report #1.html")
    made = report(ReportConfig(dataset=str(dataset), output=output, max_videos=6, chunk_size=CHUNK), quiet=True)
    folder = tmp_path / "big report #1.files"
    assert sorted(path.name for path in folder.iterdir()) == sorted(made.files)
    assert made.num_videos == 6
    tab = Tab(chromium)
    page = tab.page
    page.goto((tmp_path / "big report #1.html").as_uri())
    page.wait_for_selector(".card")
    with_video = worst_first()[0]
    page.locator(f'.card[data-episode="{with_video}"]').click()
    until(page, "document.querySelector('#viewer video')?.readyState >= 2")
    page.keyboard.press("Escape")
    without = next(n for n in shown(page) if "\nvideo" not in page.locator(f'.card[data-episode="{n}"]').inner_text())
    page.locator(f'.card[data-episode="{without}"]').click()
    page.wait_for_selector("#viewer[open] .stage .picture")
    before = page.eval_on_selector(".stage .picture", "e => getComputedStyle(e).backgroundPosition")
    page.mouse.click(*curve_point(page, 0.9))
    until(page, f"getComputedStyle(document.querySelector('.stage .picture')).backgroundPosition !== {before!r}")
    assert tab.complaints == []
    used = {url.rsplit("/", 1)[-1] for url in tab.requests if "/big%20report%20%231.files/" in url}
    assert len(used) >= 3
    assert used <= set(made.files)
    assert len(tab.requests) == len([url for url in tab.requests if "big%20report%20%231" in url or url[:5] == "data:"])
    tab.context.close()
