"""The live page on the real server: twenty robots on two replicas, watched in a real browser."""

import threading

import pytest

from tests.browser import Tab, until
from tests.live_page import card, counts, is_painted, names
from tests.pipelines.live import FPS, LENGTHS, TOKEN, Robot, live_server

NUM_ROBOTS = 20

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def server(robots, tmp_path_factory):
    with live_server(robots.model, tmp_path_factory.mktemp("server"), num_replicas=2) as running:
        yield running


class Fleet:
    """Robots that live through their episodes again and again, a frame every tenth of a second, until they are stopped."""

    def __init__(self, server, robots):
        self.server, self.robots, self.stop = server, robots, threading.Event()
        self.replicas: dict[str, str] = {}
        self.num_scored: dict[str, int] = {}
        self.threads = [threading.Thread(target=self.live, args=(number,)) for number in range(NUM_ROBOTS)]
        for thread in self.threads:
            thread.start()

    def live(self, number: int) -> None:
        name, episode, frame = f"robot-{number:02}", number % len(LENGTHS), 0
        robot = Robot(self.server, name)
        self.replicas[name] = robot.welcome["replica"]
        while not self.stop.wait(0.1):
            place = frame % LENGTHS[episode]
            robot.show(frame / FPS, self.robots.states[episode][place], self.robots.images[episode][place])
            robot.hear()
            frame += 1
        self.num_scored[name] = robot.close("success" if number % 2 else "failure")["num_scored"]

    def end(self) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()


@pytest.fixture
def fleet(server, robots):
    running = Fleet(server, robots)
    yield running
    running.end()


def test_twenty_robots_on_two_replicas_are_watched_as_they_go(chromium, server, fleet):
    tab = Tab(chromium, offline=False)
    page = tab.open(f"http://{server.address}/", ready="form")
    assert "token" in page.inner_text("body").lower()  # nothing to see without it
    page = tab.open(f"http://{server.address}/", fragment=f"#token={TOKEN}", ready="body")
    page.reload()
    until(page, f"document.querySelectorAll('.card').length === {NUM_ROBOTS}")
    assert sorted(names(page)) == [f"robot-{number:02}" for number in range(NUM_ROBOTS)]
    assert len(set(fleet.replicas.values())) == 2
    until(
        page, "[...document.querySelectorAll('.card img')].filter((picture) => picture.naturalWidth > 0).length >= 20"
    )
    assert counts(page)[0] == str(NUM_ROBOTS)
    assert is_painted(page, "robot-03")

    card(page, "robot-07").click()
    page.locator("#viewer[open]").wait_for()
    shown = dict(zip(page.locator("dt").all_inner_texts(), page.locator("dd").all_inner_texts(), strict=True))
    assert shown["Replica"] == fleet.replicas["robot-07"]
    assert page.locator("#viewer .odds-name").all_inner_texts() == ["reach", "push", "retract"]
    before = page.locator("#chart .line").get_attribute("d")
    until(page, f"document.querySelector('#chart .line').getAttribute('d') !== {before!r}")  # it grows
    page.keyboard.press("Escape")
    until(page, "!viewer.open")

    fleet.end()
    until(page, "[...document.querySelectorAll('.card')].every((card) => card.dataset.mark === 'ended')")
    assert counts(page) == ["0", "0", "0", str(NUM_ROBOTS)]
    page.fill("#search", "failure")
    until(page, f"document.querySelectorAll('.card').length === {NUM_ROBOTS // 2}")
    assert sum(fleet.num_scored.values()) > 5 * NUM_ROBOTS
    assert tab.complaints == []
    assert {url.split("/")[2] for url in tab.requests if not url.startswith(("data:", "blob:"))} == {server.address}
