"""The report in a real browser, opened from disk."""

import shutil
from copy import copy
from dataclasses import replace

import numpy as np
import pytest

from psa_triton.tools.evaluation.case import write_case

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH (apt install chromium)")

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--no-first-run"),
)
READY = "body[data-ready]"


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the Python package playwright")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def report(run_folder):
    return run_folder / "prompt_0000_seed_1" / "report.html"


@pytest.fixture
def open_page(browser):
    """Opens a file; when the test ends nothing may have been fetched, and nothing may have gone wrong."""
    faults = []

    def opened(file, *, width=1100, **settings):
        page = browser.new_page(viewport={"width": width, "height": 800}, **settings)
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: request.url.startswith(("file:", "data:")) or faults.append(request.url))
        page.goto(file.as_uri())
        page.wait_for_selector(READY)
        return page

    yield opened
    for context in browser.contexts:
        context.close()
    assert faults == []


def pixels(page, canvas):
    """What a canvas shows."""
    return page.eval_on_selector(canvas, "canvas => canvas.toDataURL()")


def test_it_plays_and_pauses(open_page, report):
    page = open_page(report)
    before = page.locator("#frame-value").inner_text()
    page.get_by_role("button", name="Play").click()
    page.wait_for_function("before => document.getElementById('frame-value').textContent !== before", arg=before)
    page.get_by_role("button", name="Pause").click()
    stopped = page.locator("#frame-value").inner_text()
    page.wait_for_timeout(400)
    assert page.locator("#frame-value").inner_text() == stopped


def test_every_frame_of_both_videos_is_the_one_that_was_made(open_page, report, comparison):
    page = open_page(report)
    page.get_by_role("slider", name="Frame", exact=True).fill("3")
    page.locator("#divider").press("Home")
    read = "c => [...c.getContext('2d').getImageData(0, 0, 2, 1).data]"
    half, dense = comparison.candidates[0].video.frames, comparison.dense.frames
    for key, frames in (("Home", half), ("End", dense)):
        page.locator("#divider").press(key)
        red, green, blue, _, *_ = page.eval_on_selector("#stage-canvas", read)
        assert [red, green, blue] == (frames[3, 0, 0] * 255).round().astype(int).tolist()


def test_the_divider_is_dragged_and_moved_by_keys(open_page, report):
    page = open_page(report)
    divider = page.get_by_role("slider", name="Divider")
    assert divider.get_attribute("aria-valuenow") == "50"
    start = pixels(page, "#stage-canvas")
    box = page.locator("#stage").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + 20, steps=3)
    page.mouse.up()
    assert divider.get_attribute("aria-valuenow") == "80"
    assert pixels(page, "#stage-canvas") != start
    divider.press("ArrowLeft")
    assert divider.get_attribute("aria-valuenow") == "78"


def test_difference_and_its_scale(open_page, report):
    page = open_page(report)
    page.get_by_role("radio", name="Difference").check()
    assert page.locator("#ramp-high").inner_text() == "32 of 255"
    weak = pixels(page, "#stage-canvas")
    page.get_by_label("Amplified").fill("6")
    assert page.locator("#ramp-high").inner_text() == "4 of 255"
    assert pixels(page, "#stage-canvas") != weak
    page.get_by_role("radio", name="Side by side").check()
    assert page.eval_on_selector("#stage-canvas", "c => c.width") > 2 * 64


def test_a_query_block_is_chosen_by_click_and_by_keys(open_page, report, comparison):
    """The levels told are those that the run recorded of the block that holds the token."""
    page = open_page(report)
    page.get_by_role("slider", name="Frame", exact=True).fill("0")
    box = page.locator("#map").bounding_box()
    # A grid of 8 x 8 tokens: the middle of the token in column 6, row 2 of the first latent frame.
    page.locator("#map").click(position={"x": box["width"] * 6.5 / 8, "y": box["height"] * 2.5 / 8})
    recording = comparison.candidates[0].recording
    position = int(recording.layout["order"].inverse[2 * 8 + 6])
    told = page.locator("#reads-value").inner_text()
    assert told.startswith(f"Query block {position // 64 + 1} of 5 (64 tokens, outlined) reads of 10 key blocks:")
    assert "2 at level 1, 3 at level 2, 5 not at all" in told
    before = pixels(page, "#blocks")
    page.locator("#blocks").press("ArrowDown")
    page.locator("#blocks").press("ArrowUp")
    page.locator("#blocks").press("ArrowUp")
    assert page.locator("#reads-value").inner_text() != told or position // 64 == 0
    page.locator("#blocks").press("ArrowDown")
    page.locator("#blocks").press("ArrowDown")
    assert pixels(page, "#blocks") != before or position // 64 == 4


def test_clusters_are_shown_without_a_place(open_page, case, comparison, described):
    first = comparison.candidates[0]
    recording = copy(first.recording)
    recording.layout = {**recording.layout, "order": None, "in_place": False}
    clustered = replace(comparison, candidates=(replace(first, recording=recording),))
    write_case(case, clustered, described)
    page = open_page(case.folder / "report.html")
    assert page.locator("#blocks").is_visible()
    assert not page.locator("#map").is_visible()
    assert "no fixed place on the frame" in page.locator("#reads-value").inner_text()


def test_layer_head_and_step_are_chosen_in_the_map_of_densities(open_page, report):
    page = open_page(report)
    heat = page.locator("#heat")
    assert page.locator("#heat-value").inner_text() == "Layer 0, head 0, step 1: density 35.0%"
    heat.press("ArrowDown")
    heat.press("ArrowDown")
    assert page.locator("#heat-value").inner_text() == "Layer 1, head 0, step 1: density 35.0%"
    assert page.locator("#layer").input_value() == "1"
    heat.press("ArrowLeft")
    assert page.locator("#heat-value").inner_text() == "Layer 1, head 0, step 0: dense (warm-up)"
    assert page.locator("#reads-none").inner_text().startswith("This layer ran dense in this step (warm-up)")
    assert not page.locator("#reads-body").is_visible()


def test_the_keyboard_reaches_everything_and_focus_is_seen(open_page, report):
    page = open_page(report)
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        name = page.evaluate("document.activeElement.id || document.activeElement.name || ''")
        if name == "copy":
            break
        if name:
            reached.append(name)
            width = page.evaluate(
                "getComputedStyle(document.activeElement.matches('input[type=radio]')"
                " ? document.activeElement.nextElementSibling : document.activeElement).outlineWidth"
            )
            assert width == "3px", f"{name} shows its focus"
    wanted = {"track", "mode", "divider", "play", "frame", "measure", "layer", "head", "step", "map", "blocks", "heat"}
    assert wanted <= set(reached)


def test_it_opens_at_the_worst_frame_and_leads_back_to_it(open_page, report, comparison):
    page = open_page(report)
    best = page.locator("#track").input_value()
    scores = next(c for c in comparison.candidates if c.label == best).fidelity["psnr"].frames
    worst = f"{1 + int(np.argmin(scores))} / {len(scores)}"
    assert page.locator("#frame-value").inner_text().startswith(worst)
    page.get_by_role("slider", name="Frame", exact=True).fill("16")
    page.get_by_role("button", name="Worst frame").click()
    assert page.locator("#frame-value").inner_text().startswith(worst)


def test_without_scripts_it_says_what_is_missing(browser, report):
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto(report.as_uri())
    assert page.locator("h1").inner_text()
    assert "needs JavaScript" in page.locator("noscript").inner_text()
    assert not page.locator("main").is_visible()


def test_a_phone_shows_what_came_out(open_page, report):
    page = open_page(report, width=390)
    page.locator("#table").scroll_into_view_if_needed()
    best, cell = page.locator("#track").input_value(), page.locator("#table thead th").nth(1)
    assert cell.inner_text() == best
    box = cell.bounding_box()
    assert box["x"] + box["width"] <= 390


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_sideways_scrolling(open_page, report, run_folder, scheme):
    for file in (report, run_folder / "report.html"):
        page = open_page(file, width=375, color_scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= 375


def test_the_report_of_a_run_leads_to_those_of_its_cases(open_page, run_folder):
    page = open_page(run_folder / "report.html")
    assert page.locator("#case-table tbody tr").count() == 2
    assert not page.locator("#frames").is_visible()
    page.locator("#case-table a").first.click()
    page.wait_for_selector(READY)
    assert page.locator("#frames").is_visible()


def test_a_case_with_dense_alone_shows_its_numbers(open_page, case, comparison, described):
    write_case(case, replace(comparison, candidates=(), ceiling=None), described)
    page = open_page(case.folder / "report.html")
    assert page.locator("#table").is_visible()
    assert not page.locator("#frames").is_visible()
