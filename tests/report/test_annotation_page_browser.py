"""The page on which annotations are checked, in a real browser: playing, correcting, and the CSV that comes out."""

import csv
import io
import json

import numpy as np
import pytest

from sarm_ray.data.lerobot import open_dataset
from sarm_ray.report.annotation_page import write_annotation_page
from tests.browser import WIDTHS, Tab, until
from tests.datasets import CAMERA, DENSE_STAGES, SPARSE_STAGES, write_dataset

pytestmark = pytest.mark.browser

FPS = 30
LENGTHS = (90, 60, 75, 45, 50)
HOSTILE = '</script><img src=x onerror="alert(1)">, "so"'
TASKS = ("push the block", HOSTILE)
NOTED = 2
LEFT_OUT = 3


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A page of four of five episodes; episode 1 has no dense subtasks, and a sparse one with a name that bites."""
    root = write_dataset(
        tmp_path_factory.mktemp("review") / "toy", "v2.1", LENGTHS, fps=FPS, tasks=TASKS, annotated=True
    )
    path = root / "meta/episodes.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[1] |= {key: None for key in rows[1] if key.startswith("dense_")}
    rows[1]["sparse_subtask_names"][1] = HOSTILE
    rows[4] |= {"sparse_subtask_start_frames": [0, 17, 33], "sparse_subtask_end_frames": [17, 33, 50]}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = open_dataset(str(root))
    notes = {NOTED: ("asked 3 times", "repeats allowed")}
    output = str(root / "review.html")
    return write_annotation_page(
        output, dataset, np.arange(5), ("sparse", "dense"), CAMERA, notes=notes, max_episodes=4, quiet=True
    )


@pytest.fixture
def tab(chromium, site):
    tab = Tab(chromium)
    tab.open(site.output, ready=".review")
    yield tab
    assert tab.complaints == []
    assert tab.outside(site.output) == []
    tab.context.close()


def card(page, number: int):
    return page.locator(f'.review[data-episode="{number}"]')


def shown(page) -> list[int]:
    return [int(each.get_attribute("data-episode")) for each in page.query_selector_all(".review:not([hidden])")]


def video_of(number: int) -> str:
    return f"document.querySelector('.review[data-episode=\"{number}\"] video')"


def wait_for_video(page, number: int) -> None:
    card(page, number).scroll_into_view_if_needed()
    until(page, f"{video_of(number)}?.readyState >= 2")


def frame_of(page, number: int) -> int:
    return int(card(page, number).locator(".lanes").get_attribute("aria-valuenow"))


def wait_for_frame(page, number: int, frame: int) -> None:
    lanes = f"document.querySelector('.review[data-episode=\"{number}\"] .lanes')"
    until(page, f"!{video_of(number)}.seeking && {lanes}.getAttribute('aria-valuenow') === '{frame}'")


def rows_of(page, number: int, kind: str) -> list[list[str]]:
    """Name, start, end, first and last frame of each subtask, as they are on screen."""
    table = page.get_by_role("region", name=f"{kind} subtasks of episode {number}")
    found = []
    for row in table.locator("tbody tr").all():
        field = row.locator("input")
        start = field.input_value() if field.count() else row.locator(".start").inner_text()
        found.append([row.locator(".go").inner_text(), start, *row.locator("td:not(.start)").all_inner_texts()])
    return found


def field(page, number: int, name: str):
    return card(page, number).get_by_label(f"Start of {name} in seconds", exact=True)


def press_timeline(page, number: int, frame: float) -> None:
    lanes = card(page, number).locator(".lanes")
    lanes.scroll_into_view_if_needed()
    box = lanes.bounding_box()
    page.mouse.click(box["x"] + box["width"] * frame / LENGTHS[number], box["y"] + 30)


def download(page) -> str:
    with page.expect_download() as started:
        page.click("#download")
    assert started.value.suggested_filename == "segments.csv"
    return open(started.value.path(), newline="", encoding="utf-8").read()


def expected_csv(changes: dict[tuple[int, str, int], int]) -> str:
    """The CSV by the dataset's own numbers, with other start frames: (episode, kind, place) -> frame."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["episode_index", "kind", "name", "start_s", "end_s", "start_frame", "end_frame"])
    for number, length in enumerate(LENGTHS):
        for kind, stages in (("sparse", SPARSE_STAGES), ("dense", DENSE_STAGES)):
            if number == LEFT_OUT or (number, kind) == (1, "dense"):
                continue
            names = [HOSTILE if (number, kind, n) == (1, "sparse", 1) else name for n, name in enumerate(stages)]
            starts = np.rint(np.cumsum([0, *stages.values()]) * length).astype(int).tolist()[:-1]
            if (number, kind) == (4, "sparse"):
                starts = [0, 17, 33]
            starts = [changes.get((number, kind, n), start) for n, start in enumerate(starts)]
            for name, start, end in zip(names, starts, [*starts[1:], length - 1], strict=True):
                times = [f"{frame / FPS:.6f}".rstrip("0").rstrip(".") for frame in (start, end)]
                writer.writerow([number, kind, name, *times, start, end])
    return text.getvalue()


def test_it_opens_with_what_should_be_looked_at_first(tab):
    page = tab.page
    assert page.title() == "toy: annotations"
    assert page.inner_text("h1") == "toy"
    assert page.inner_text("#facts").split("\n") == ["4 episodes", "3 with notes", "sparse and dense", "30 fps", CAMERA]
    assert page.inner_text("#more") == "1 more episode is not on this page."
    assert page.inner_text("#about-csv").endswith("filtered or not, corrected or not, and not the other one.")
    assert page.inner_text("#command").endswith("/toy --from segments.csv")
    assert shown(page) == [2, 1, 4, 0]
    assert card(page, NOTED).locator(".flag").all_inner_texts() == ["asked 3 times", "repeats allowed"]
    assert card(page, 1).locator(".flag").all_inner_texts() == ["dense: not annotated"]
    assert card(page, 4).locator(".flag").all_inner_texts() == ["sparse: uniform split"]
    assert rows_of(page, 0, "sparse") == [
        ["approach", "0.00", "0.90", "0", "27"],
        ["push", "0.90", "2.40", "27", "72"],
        ["retract", "2.40", "2.97", "72", "89"],
    ]
    assert rows_of(page, 1, "sparse")[1][0] == HOSTILE
    assert page.query_selector_all("img") == []


def test_it_is_filtered_and_sorted(tab):
    page = tab.page
    page.select_option("#sort", "number")
    assert shown(page) == [0, 1, 2, 4]
    page.select_option("#sort", "length")
    assert shown(page) == [0, 2, 1, 4]
    page.fill("#search", "uniform")
    assert shown(page) == [4]
    assert page.inner_text("#count") == "1 of 4 episodes"
    page.fill("#search", "2")
    assert shown(page) == [2]
    page.fill("#search", "no such thing")
    assert shown(page) == []
    page.get_by_role("button", name="Clear filters").click()
    page.get_by_role("button", name="with notes (3)").click()
    assert shown(page) == [2, 1, 4]


def test_it_plays_and_the_cursor_follows(tab):
    page = tab.page
    wait_for_video(page, 0)
    assert page.evaluate(f"{video_of(0)}.duration") == pytest.approx(3, abs=1 / FPS)
    card(page, 0).get_by_role("button", name="Play").click()
    until(page, f"{video_of(0)}.currentTime > 0.5")
    page.evaluate(f"{video_of(0)}.pause()")
    card(page, 0).get_by_role("button", name="Play").wait_for()
    moment = page.evaluate(f"{video_of(0)}.currentTime")
    wait_for_frame(page, 0, int(moment * FPS + 0.02))
    cursor = float(card(page, 0).locator(".playhead").evaluate("each => parseFloat(each.style.left)"))
    assert cursor == pytest.approx(min(moment * FPS / LENGTHS[0], 1) * 100, abs=0.1)
    names = card(page, 0).locator("tr.now .go").all_inner_texts()
    said = card(page, 0).locator(".readout").inner_text()
    assert said.endswith(f"sparse: {names[0]}\ndense: {names[1]}")


def test_one_plays_at_a_time(tab):
    page = tab.page
    wait_for_video(page, 1)
    wait_for_video(page, 2)
    page.evaluate(f"{video_of(1)}.loop = {video_of(2)}.loop = true")
    card(page, 1).get_by_role("button", name="Play").click()
    until(page, f"!{video_of(1)}.paused")
    card(page, 2).get_by_role("button", name="Play").click()
    until(page, f"!{video_of(2)}.paused && {video_of(1)}.paused")


def test_timelines_and_names_seek(tab):
    page = tab.page
    wait_for_video(page, 0)
    for frame in (70, 3, 89, 0):
        press_timeline(page, 0, frame + 0.5)
        wait_for_frame(page, 0, frame)
    table = page.get_by_role("region", name="dense subtasks of episode 0")
    table.get_by_role("button", name="push forward", exact=True).click()
    wait_for_frame(page, 0, 27)
    assert table.locator("tr.now .go").inner_text() == "push forward"


def test_the_keyboard_plays_and_steps(tab):
    page = tab.page
    wait_for_video(page, 0)
    press_timeline(page, 0, 40.5)
    wait_for_frame(page, 0, 40)
    page.keyboard.press("ArrowRight")
    wait_for_frame(page, 0, 41)
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    wait_for_frame(page, 0, 39)
    page.keyboard.press("Home")
    wait_for_frame(page, 0, 0)
    page.keyboard.press("Space")
    until(page, f"{video_of(0)}.currentTime > 0.2")
    page.keyboard.press("Space")
    until(page, f"{video_of(0)}.paused || {video_of(0)}.ended")
    page.keyboard.press("p")
    until(page, "document.querySelector('.review.active').dataset.episode === '4'")


def test_a_start_moves_the_end_before_it_and_no_more(tab):
    page = tab.page
    dense = rows_of(page, 0, "dense")
    field(page, 0, "push").fill("1.1")
    field(page, 0, "push").press("Enter")
    assert rows_of(page, 0, "sparse") == [
        ["approach", "0.00", "1.10", "0", "33"],
        ["push", "1.10", "2.40", "33", "72"],
        ["retract", "2.40", "2.97", "72", "89"],
    ]
    assert rows_of(page, 0, "dense") == dense
    wait_for_video(page, 0)
    wait_for_frame(page, 0, 33)  # the first frame of the subtask is on screen
    left = card(page, 0).locator(".piece").nth(1).evaluate("each => parseFloat(each.style.left)")
    assert left == pytest.approx(33 / 90 * 100, abs=0.01)
    assert page.inner_text("#changes") == "1 correction in 1 episode"
    assert card(page, 0).locator(".edited").is_visible()
    field(page, 0, "push").press("ArrowUp")
    assert field(page, 0, "push").input_value() == "1.13"
    press_timeline(page, 0, 60.5)
    wait_for_frame(page, 0, 60)
    card(page, 0).get_by_role("button", name="Set the start of retract to the frame that is shown").click()
    assert rows_of(page, 0, "sparse")[1:] == [
        ["push", "1.13", "2.00", "34", "60"],
        ["retract", "2.00", "2.97", "60", "89"],
    ]
    card(page, 0).get_by_role("button", name="Undo all corrections of the sparse subtasks of episode 0").click()
    assert rows_of(page, 0, "sparse")[1] == ["push", "0.90", "2.40", "27", "72"]
    assert page.inner_text("#changes") == "Nothing corrected yet"
    assert not card(page, 0).locator(".edited").is_visible()


@pytest.mark.parametrize(
    ("typed", "objection"),
    [
        (
            "2.4",
            "would cross “retract”, which starts at 2.40 s; there is room from 0.03 to 2.37 s. It stays at 0.90 s.",
        ),
        ("0", "would cross “approach”, which starts at 0.00 s; there is room from 0.03 to 2.37 s. It stays at 0.90 s."),
        ("-5", "“push” cannot start at -5.00 s: that would cross “approach”"),
        ("", "The start of “push” must be a time in seconds. It stays at 0.90 s."),
    ],
)
def test_what_would_cross_is_refused(tab, typed, objection):
    page = tab.page
    before = rows_of(page, 0, "sparse")
    field(page, 0, "push").fill(typed)
    field(page, 0, "push").press("Enter")
    told = page.get_by_role("region", name="sparse subtasks of episode 0").get_by_role("alert")
    assert objection in told.inner_text()
    assert told.is_visible()
    assert rows_of(page, 0, "sparse") == before
    assert page.inner_text("#changes") == "Nothing corrected yet"
    field(page, 0, "push").fill("2.37")
    field(page, 0, "push").press("Enter")
    assert rows_of(page, 0, "sparse")[1] == ["push", "2.37", "2.40", "71", "72"]
    assert told.inner_text() == ""


def test_the_csv_has_every_subtask_of_the_page(tab):
    page = tab.page
    assert download(page) == expected_csv({})
    field(page, 0, "push").fill("1.1")
    field(page, 0, "push").press("Enter")
    field(page, 1, HOSTILE).fill("0.5")
    field(page, 1, HOSTILE).press("Enter")
    field(page, 4, "go home").fill("1.5")
    field(page, 4, "go home").press("Enter")
    page.fill("#search", "uniform")  # what is filtered out is in it all the same
    text = download(page)
    assert text == expected_csv({(0, "sparse", 1): 33, (1, "sparse", 1): 15, (4, "dense", 4): 45})
    assert page.inner_text("#changes") == "3 corrections in 3 episodes, downloaded"
    rows = list(csv.DictReader(io.StringIO(text)))
    assert all(round(float(row["start_s"]) * FPS) == int(row["start_frame"]) for row in rows)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_sticks_out_at_any_width(chromium, site, width, scheme):
    tab = Tab(chromium, WIDTHS[width], touch=width == "phone")
    tab.page.emulate_media(color_scheme=scheme)
    page = tab.open(site.output, ready=".review")
    assert page.evaluate("document.documentElement.scrollWidth") == WIDTHS[width][0]
    box = page.locator("#download").bounding_box()
    assert box["x"] + box["width"] <= WIDTHS[width][0]
    assert page.evaluate(
        "[...document.querySelectorAll('button, select, input')].every(e => e.labels?.length || e.ariaLabel || e.innerText)"
    )
    assert tab.complaints == []
    tab.context.close()
