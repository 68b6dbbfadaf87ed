"""The command, and its page in a real browser."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from twelve_in_one.demo import __main__ as command

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)


def needed(found, what):
    """Skips without what a test needs; a failure where all of it should be."""
    if not found and os.environ.get("CI") == "true":
        pytest.fail(f"no {what}: CI must run with it")
    if not found:
        pytest.skip(f"no {what}")


def importable(name):
    return importlib.util.find_spec(name) is not None


@pytest.fixture(scope="module")
def address(model_path, pictures):
    """Of the page, served by the command."""
    needed(importable("gradio"), "gradio: pip install 'twelve_in_one[demo]'")
    run = [sys.executable, "-m", "twelve_in_one.demo", "--model", str(model_path), "--examples"]
    server = subprocess.Popen(
        [*run, *map(str, pictures)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"},
    )
    said = []
    try:
        for line in server.stdout:
            said.append(line)
            found = re.search(r"http://127\.0\.0\.1:\d+", line)
            if found:
                yield found[0]
                break
        else:
            pytest.fail("".join(said))
    finally:
        server.terminate()
        server.communicate(timeout=30)


@pytest.fixture
def page(address):
    """The page in headless Chromium, which may talk to no other machine."""
    needed(importable("playwright"), "playwright: pip install 'twelve_in_one[dev]'")
    needed(CHROMIUM, "Chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        elsewhere = []
        page.on("request", lambda r: None if is_local(r.url, address) else elsewhere.append(r.url))
        page.goto(address)
        yield page
        folder = os.environ.get("SCREENSHOTS")
        if folder:
            page.screenshot(path=Path(folder) / "demo.png", full_page=True)
        browser.close()
        assert not elsewhere


def is_local(url, address):
    return url.startswith((address, "data:", "blob:"))


def test_a_question_about_an_uploaded_picture(page, pictures):
    page.set_default_timeout(120_000)
    page.set_input_files("#answer-image-0 input[type=file]", str(pictures[0]))
    page.fill("#answer-text textarea", "word1 word2")
    page.click("#answer-ask")
    page.wait_for_selector("#answer-picture img")
    words = page.input_value("#answer-words textarea")
    assert re.fullmatch(r"(yes|no|two|red) \(0\.\d\d\)", words)
    assert len(page.input_value("#answer-details textarea").splitlines()) == 4


def test_boxes_are_found_chosen_and_drawn(page, pictures):
    page.set_default_timeout(120_000)
    page.get_by_role("tab", name="Point").click()
    page.set_input_files("#point-image-0 input[type=file]", str(pictures[1]))
    page.fill("#point-text textarea", "word3")
    page.click("#point-ask")
    page.wait_for_function(
        "document.querySelector('#point-words textarea').value.startsWith('Not answered: give box')"
    )
    page.wait_for_selector("#point-image-0 img")
    page.click("#point-find")
    page.wait_for_function("document.querySelector('#point-boxes textarea').value.includes(',')")
    page.check("#point-attention input")
    page.click("#point-ask")
    page.wait_for_selector("#point-picture img")
    words = page.input_value("#point-words textarea")
    assert re.match(r"box \d \[", words)
    assert "Traceback" not in page.content()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nowhere"], "nowhere: holds no trained model"),
        (["--model", "MODEL", "--examples", "nowhere"], "--examples nowhere: there is none"),
        (["--model", "MODEL", "--examples", "."], "--examples: no picture in ."),
    ],
)
def test_what_cannot_be_served(arguments, message, model_path, tmp_path, monkeypatch, capsys):
    needed(importable("gradio"), "gradio: pip install 'twelve_in_one[demo]'")
    monkeypatch.chdir(tmp_path)
    assert command.main([str(model_path) if x == "MODEL" else x for x in arguments]) == 1
    assert message in capsys.readouterr().err


def test_without_gradio(model_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert command.main(["--model", str(model_path)]) == 1
    assert "pip install 'twelve_in_one[data,demo]'" in capsys.readouterr().err
