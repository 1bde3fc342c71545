"""The live page in a real browser: what a person sees of running rollouts, and that it never lies about being live."""

import pytest

from tests.browser import WIDTHS, Tab, until
from tests.live_page import card, counts, is_painted, jpeg, names, page_server, rollout

pytestmark = pytest.mark.browser

HOSTILE = '<img src=x onerror="alert(1)">'
RISING = [n / 40 for n in range(20)]
STALLED = [0.3] * 20
FALLEN = [*RISING, 0.2, 0.2]


@pytest.fixture
def server():
    with page_server() as server:
        yield server


@pytest.fixture
def tab(chromium, server):
    tab = Tab(chromium, offline=False)
    yield tab
    assert tab.complaints == []
    assert outside(tab, server) == []
    tab.context.close()


def outside(tab, server) -> list[str]:
    return [url for url in tab.requests if not url.startswith("data:") and url.partition("#")[0] != server.url]


def fill(server) -> None:
    server.push(
        rollout("arm-1", *RISING, age_s=50, num_dropped=3),
        rollout("arm-2", *STALLED, age_s=40, task=HOSTILE),
        rollout("arm-10", *FALLEN, age_s=30),
    )
    over = {"connected": False, "ended": True}
    server.push(
        rollout("arm-3", *RISING, 0.98, age_s=20, **over, outcome="success"),
        rollout("arm-4", *RISING, 0.97, 0.97, 0.97, age_s=10),
        replica="r1",
    )


def opened(server, tab, fragment: str = ""):
    return tab.open(server.url, fragment, ready=".link[data-state=live]")


def texts(page, name: str, part: str) -> str:
    return card(page, name).locator(part).inner_text()


def test_cards_say_how_each_rollout_is(tab, server):
    fill(server)
    page = opened(server, tab)
    card(page, "arm-1").wait_for()
    assert names(page) == ["arm-10", "arm-2", "arm-1", "arm-4", "arm-3"]
    assert counts(page) == ["4", "1", "1", "1"]
    assert page.locator(".tile.frames .tile-more").inner_text() == "3 dropped"
    assert [texts(page, "arm-1", part) for part in (".card-final", ".stage-text", ".sure", ".shot-time", ".chip-mark")] == [
        "0.47", "grasp", "93%", "0:09", "",
    ]  # fmt: skip
    assert texts(page, "arm-2", ".chip-mark").startswith("stalled ")
    assert texts(page, "arm-10", ".chip-mark") == "regressing"
    assert texts(page, "arm-4", ".chip-mark") == "done"
    assert texts(page, "arm-3", ".chip-mark") == "success"
    assert texts(page, "arm-2", ".card-task") == HOSTILE
    assert page.locator("img:not(.shot-image)").count() == 0
    for name in names(page):
        until(page, f"document.querySelector('[data-session=\"{name}\"] img').naturalWidth === 64")
        assert is_painted(page, name)
    assert card(page, "arm-10").get_attribute("aria-label") == "arm-10, progress 0.20, reach, regressing"


def test_a_rollout_grows_and_goes(tab, server):
    page = opened(server, tab)
    page.locator("#empty").wait_for()
    server.push(rollout("arm-1", 0.1, 0.2))
    card(page, "arm-1").wait_for()
    page.evaluate("window.first = document.querySelector('.card')")
    for n in range(2, 8):
        server.push(rollout("arm-1", n / 10, first=n, thumbnail=jpeg((250, 0, 0)) if n == 7 else None))
        until(page, f"document.querySelector('.card-final').textContent === '0.{n}0'")
    assert page.evaluate("window.first === document.querySelector('.card')")  # changed, not built anew
    colour = """() => {
      const image = document.querySelector(".shot-image");
      const pen = new OffscreenCanvas(1, 1).getContext("2d");
      pen.drawImage(image, 0, 0);
      return pen.getImageData(0, 0, 1, 1).data[0] > 200;
    }"""
    until(page, f"({colour})()")
    until(page, "Number(document.querySelector('.tile.frames .figure').textContent) > 0")
    assert page.locator("#empty").is_hidden()
    server.push(rollout("arm-1", 0.8, first=8, ended=True, connected=False))
    until(page, "document.querySelector('.card').dataset.mark === 'ended'")
    server.ahead_s = 601.0
    page.locator("#empty").wait_for()
    assert names(page) == []


def test_it_is_sorted_and_filtered(tab, server):
    fill(server)
    page = opened(server, tab)
    card(page, "arm-1").wait_for()
    for sort, expected in {
        "newest": ["arm-4", "arm-3", "arm-10", "arm-2", "arm-1"],
        "name": ["arm-1", "arm-2", "arm-3", "arm-4", "arm-10"],
        "progress": ["arm-3", "arm-4", "arm-1", "arm-2", "arm-10"],
    }.items():
        page.select_option("#sort", sort)
        until(
            page,
            f"[...document.querySelectorAll('.card')].map((card) => card.dataset.session).join() === '{','.join(expected)}'",
        )
    for query, expected in {
        "ONERROR": 1,
        "grasp": 2,
        "r1": 2,
        "success": 1,
        "arm place": 2,
        "nothing at all": 0,
    }.items():
        page.fill("#search", query)
        until(page, f"document.querySelectorAll('.card').length === {expected}")
    assert page.inner_text("#count") == "0 of 5 rollouts"
    page.get_by_role("button", name="Clear filters").click()
    until(page, "document.querySelectorAll('.card').length === 5")
    page.get_by_role("button", name="Stalled").click()
    until(page, "document.querySelectorAll('.card').length === 1")
    assert names(page) == ["arm-2"]


def test_a_press_opens_a_large_view_and_back_closes_it(tab, server):
    fill(server)
    page = opened(server, tab)
    card(page, "arm-1").click()
    page.locator("#viewer[open]").wait_for()
    assert page.url.endswith("#s=arm-1")
    assert page.inner_text("#viewer-title") == "arm-1"
    assert page.locator("#viewer .figure").inner_text() == "0.47"
    assert page.locator("#viewer .odds-name").all_inner_texts() == ["reach", "grasp", "carry", "place"]
    numbers = dict(zip(page.locator("dt").all_inner_texts(), page.locator("dd").all_inner_texts(), strict=True))
    assert (numbers["Dropped"], numbers["Latency"], numbers["Scored at"], numbers["Replica"]) == (
        "3",
        "14.5 ms",
        "10 Hz",
        "r0",
    )
    before = page.locator("#chart .line").get_attribute("d")
    server.push(rollout("arm-1", 0.6, first=20))
    until(page, "document.querySelector('#viewer .figure').textContent === '0.60'")
    assert page.locator("#chart .line").get_attribute("d") != before
    box = page.locator("#chart").bounding_box()
    page.mouse.move(box["x"] + 34, box["y"] + 100)
    until(page, "readout.textContent.includes('0.0 s') && readout.textContent.includes('reach')")
    page.keyboard.press("ArrowRight")
    until(page, "document.querySelector('#viewer-title').firstChild.textContent !== 'arm-1'")
    page.go_back()
    until(page, "!viewer.open")
    assert "s=" not in page.url
    card(page, "arm-2").click()
    page.locator("#viewer[open]").wait_for()
    assert page.locator("#viewer .task").inner_text() == HOSTILE
    page.keyboard.press("Escape")
    until(page, "!viewer.open && !location.hash.includes('s=')")
    assert page.evaluate("document.activeElement.dataset.session") == "arm-2"


def test_a_link_opens_a_rollout_even_one_that_is_not_there_yet(tab, server):
    page = opened(server, tab, "#s=late")
    page.locator("#viewer .notice").wait_for()
    server.push(rollout("late", *RISING))
    until(page, "document.querySelector('#viewer .figure').textContent === '0.47'")
    assert page.locator("#viewer .notice").is_hidden()
    page.get_by_role("button", name="Close").click()
    until(page, "!viewer.open && !location.hash.includes('s=')")


def test_it_comes_back_by_itself_and_says_so(chromium, server):
    tab = Tab(chromium, offline=False)
    fill(server)
    page = opened(server, tab)
    card(page, "arm-1").wait_for()
    server.stop()
    page.locator(".link[data-state=waiting]").wait_for()
    assert "no connection; next try in" in page.inner_text("#link")
    assert names(page) != []  # what was seen last stays, and is no longer shown as live
    assert page.evaluate("document.documentElement.classList.contains('stale')")
    with page_server(port=server.port) as again:
        again.push(rollout("arm-1", *RISING, 0.9), rollout("new", 0.1))
        page.locator(".link[data-state=live]").wait_for()
        until(page, "document.querySelectorAll('.card').length === 2")
        assert sorted(names(page)) == ["arm-1", "new"]
        assert texts(page, "arm-1", ".card-final") == "0.90"
    assert all("WebSocket" in said for said in tab.complaints)
    tab.context.close()


def test_a_token_is_asked_for_and_kept_by_the_tab_alone(chromium):
    with page_server(token="sesame") as server:
        server.push(rollout("arm-1", *RISING))
        tab = Tab(chromium, offline=False)
        page = tab.open(server.url, ready="#ask:not([hidden])")
        assert page.locator(".card").count() == 0
        page.fill("#token", "guess")
        page.keyboard.press("Enter")
        page.locator(".ask.refused").wait_for()
        assert page.locator(".card").count() == 0
        page.fill("#token", "sesame")
        page.get_by_role("button", name="Watch").click()
        card(page, "arm-1").wait_for()
        assert page.locator("#ask").is_hidden()
        page.reload()
        card(page, "arm-1").wait_for()
        assert page.evaluate("[sessionStorage.length, localStorage.length, document.cookie]") == [1, 0, ""]
        assert tab.complaints == []
        tab.context.close()
        tab = Tab(chromium, offline=False)
        page = tab.open(server.url, "#token=sesame&s=arm-1", ready="#viewer[open]")
        until(page, "document.querySelector('#viewer .figure').textContent === '0.47'")
        assert "sesame" not in page.url
        assert "sesame" not in page.content()
        assert outside(tab, server) == []
        tab.context.close()


def test_a_newcomer_is_shown_how_to_begin(tab, server):
    page = opened(server, tab)
    page.locator("#empty").wait_for()
    example = page.inner_text("#example")
    assert example.startswith("from sarm_ray.client import LiveScorer\n")
    assert f'LiveScorer("ws://127.0.0.1:{server.port}"' in example
    assert len(example.splitlines()) == 5
    compile(example, "example", "exec")
    assert page.inner_text("footer") == "A progress meter, not a safety system."


def test_a_hundred_are_laid_out_once_per_message(tab, server):
    many = [f"arm-{n}" for n in range(100)]
    server.push(*(rollout(name, *RISING) for name in many))
    page = opened(server, tab)
    until(page, "document.querySelectorAll('.card').length === 100")
    page.evaluate("window.first = [...document.querySelectorAll('.card')]")
    page.wait_for_timeout(1000)
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")

    def layouts() -> float:
        found = session.send("Performance.getMetrics")["metrics"]
        return next(each["value"] for each in found if each["name"] == "LayoutCount")

    before = layouts()
    for n in range(20, 40):
        server.push(*(rollout(name, n / 50, first=n) for name in many))
        until(page, f"document.querySelector('.card-final').textContent === '{n / 50:.2f}'")
    assert layouts() - before < 20 * 8  # one by one, the cards in sight would take some hundreds
    assert page.evaluate("window.first.every((card) => card.isConnected)")
    assert page.locator(".link").get_attribute("data-state") == "live"


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_sticks_out_at_any_width(chromium, server, width, scheme):
    fill(server)
    server.push(rollout("x" * 64, *RISING, task="w" * 300, stages=["y" * 80, "z" * 80, "a", "b"]))
    tab = Tab(chromium, WIDTHS[width], touch=width == "phone", offline=False)
    tab.page.emulate_media(color_scheme=scheme)
    page = opened(server, tab)
    card(page, "arm-1").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == WIDTHS[width][0]
    card(page, "x" * 64).click()
    page.locator("#viewer[open] .line").wait_for()
    assert page.evaluate("viewer.scrollWidth <= viewer.clientWidth")
    assert page.evaluate(
        "[...document.querySelectorAll('button, select, input')].every(e => e.labels?.length || e.ariaLabel || e.innerText)"
    )
    assert tab.complaints == []
    tab.context.close()
