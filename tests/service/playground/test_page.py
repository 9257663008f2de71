"""The pages in a real browser: what a user clicks works, nothing fails unseen, and no other server is asked."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

from tests.service import onnx_models
from tests.service.api.clients import BIDIR, LSTM, TOKENS, write_repository
from tests.service.api.processes import ROOT, Served, serve

expect.set_options(timeout=30_000)  # what a busy machine takes

CHROMIUM = shutil.which("chromium") or ""
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs chromium: make test as root on Debian installs it")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = write_repository(tmp_path_factory.mktemp("repository"))
    shutil.copytree(ROOT / "model_repository" / "kjv", repository / "kjv")
    onnx_models.token_counts(repository, "token-ids", spelled=False, kind="probability")
    onnx_models.running_sum(repository, "whole-numbers", features=2, dtype="int64")
    return repository


@pytest.fixture(scope="module")
def served(repository: Path) -> Iterator[Served]:
    with serve(repository) as served:
        yield served


@pytest.fixture
def page(browser: Browser, served: Served) -> Iterator[Page]:
    """A page that must come through without an error in its console or a call to elsewhere."""
    troubles: list[str] = []
    page = browser.new_page()
    page.set_default_timeout(20_000)
    page.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("request", lambda r: None if r.url.startswith((served.address, "data:")) else troubles.append(r.url))
    yield page
    page.close()
    assert troubles == []


def painted(page: Page, canvas: str) -> bool:
    """Is anything drawn on it?"""
    script = "c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some((v, n) => n % 4 == 3 && v)"
    return bool(page.locator(canvas).evaluate(script))


def test_a_sequence_is_stepped_and_its_last_call_can_be_repeated_by_hand(page: Page, served: Served) -> None:
    inputs = [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6], [0.7, 0.8, 0.9]]
    page.goto(f"{served.address}/?model={LSTM}")
    expect(page.locator("#status")).to_have_text("A new sequence begins with the first step.")
    page.fill("#text", json.dumps(inputs))
    assert not painted(page, "#heat")
    page.click("#step")
    expect(page.locator("#status")).to_contain_text("stands at step 1 of 3")
    page.click("#run")
    expect(page.locator("#status")).to_contain_text("Every step of the input has run")
    answer = httpx.post(f"{served.address}/v1/models/{LSTM}/predict", json={"sequences": [{"inputs": inputs}]})
    last = answer.json()["sequences"][0]["outputs"][-1]
    shown = re.findall(r"output \d+ (\S+?)(?:,|$)", page.locator("#latest").inner_text())
    assert [float(value) for value in shown] == pytest.approx(last, rel=1e-3)
    assert painted(page, "#heat")
    assert painted(page, "#outputs")
    curl = shlex.split(page.locator("#calls pre").first.inner_text())
    url, body = next(part for part in curl if part.startswith("http")), curl[curl.index("-d") + 1]
    assert httpx.post(url, content=body).json()["replayed"] is True


def test_text_goes_in_as_tokens_and_logits_come_out_as_probabilities(page: Page, served: Served) -> None:
    page.goto(f"{served.address}/?model=kjv")
    expect(page.locator("#status")).to_have_text("16 steps.")
    page.fill("#text", "X")
    expect(page.locator("#status")).to_have_text('The vocabulary has no "X".')
    page.fill("#text", "In the beginning")
    page.click("#run")
    expect(page.locator("#status")).to_contain_text("Every step of the input has run")
    shown = re.findall(r"(\S+) (\S+) %", page.locator("#latest").inner_text())
    assert shown[0][0] == "space"
    assert 90 < sum(float(percent) for _, percent in shown) <= 100.5


def test_ids_go_in_where_there_is_no_vocabulary(page: Page, served: Served) -> None:
    page.goto(f"{served.address}/?model=token-ids")
    expect(page.locator("#text-label")).to_have_text("Token ids: whole numbers from 0 to 4")
    expect(page.locator("#status")).to_have_text("16 steps.")
    expect(page.locator("#draw-tools")).to_be_hidden()
    for text, wrong in (("3 5", "5"), ("1, 2.5", "2.5"), ("one", "one"), ("[-1]", "-1")):
        page.fill("#text", text)
        expect(page.locator("#status")).to_have_text(f"Expected token ids, whole numbers from 0 to 4, got {wrong}.")
    for text in ("4 4 1 4", "[4, 4, 1, 4]"):
        page.fill("#text", text)
        page.click("#reset")
        page.click("#run")
        expect(page.locator("#status")).to_contain_text("Every step of the input has run")
        expect(page.locator("#latest")).to_have_text(
            "Step 4: token 0 0.0 %, token 1 100.0 %, token 2 0.0 %, token 3 0.0 %, token 4 300.0 %"
        )


def test_whole_numbers_are_not_drawn(page: Page, served: Served) -> None:
    page.goto(f"{served.address}/?model=whole-numbers")
    expect(page.locator("#text-label")).to_contain_text("each a list of whole numbers")
    expect(page.locator("#status")).to_have_text("16 steps.")
    expect(page.locator("#draw-tools")).to_be_hidden()
    page.fill("#text", "[[1, 2], [3, 4]]")
    page.click("#run")
    expect(page.locator("#latest")).to_have_text("Step 2: output 1 4, output 2 6")


def test_a_model_that_needs_whole_sequences_runs_in_one_call(page: Page, served: Served) -> None:
    page.goto(f"{served.address}/")
    page.select_option("#model", BIDIR)
    expect(page.locator("#step")).to_be_disabled()
    page.click("#run")
    expect(page.locator("#status")).to_contain_text("answered in one call")
    expect(page.locator("#latest")).to_contain_text("Step 40:")


def test_an_answer_to_the_model_before_is_not_shown_as_the_next_ones(page: Page, served: Served) -> None:
    held: list[Route] = []
    page.route("**/steps", lambda route: held.append(route))
    page.goto(f"{served.address}/?model={LSTM}")
    with page.expect_request("**/steps"):
        page.click("#run")
    page.select_option("#model", TOKENS)
    expect(page.locator("#text")).to_have_value("In the beginning")
    with page.expect_response("**/steps"):
        held[0].continue_()
    page.fill("#text", "ab")  # the page has seen the answer by the time it takes this
    expect(page.locator("#status")).to_have_text("2 steps.")
    expect(page.locator("#latest")).to_have_text("Nothing has run yet.")


def test_a_key_that_is_asked_for_can_be_given(browser: Browser, repository: Path) -> None:
    with serve(repository, CAROUSEL_API_KEYS="alice:alices-key") as served:
        page = browser.new_page()
        page.goto(served.address)
        expect(page.locator("#status")).to_contain_text("Send a key of this server")
        page.click("summary")
        page.fill("#key", "alices-key")
        page.press("#key", "Enter")
        expect(page.locator("#model option")).not_to_have_count(0)
        page.click("#run")
        expect(page.locator("#latest")).to_contain_text("Step 40:")
        assert "alices-key" not in page.locator("#calls").inner_text()
        page.close()


def test_the_reference_lists_the_calls_and_tries_one(page: Page, served: Served) -> None:
    page.goto(f"{served.address}/docs")
    predict = page.locator("[id^=operations-stateless-predict]")
    predict.locator(".opblock-summary-control").click()
    predict.locator("button.execute").click()
    expect(predict.locator(".live-responses-table tbody .response-col_status")).to_contain_text("200")
