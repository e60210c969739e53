"""The status page in chromium, as a person uses it: with eyes, a keyboard, and a narrow screen."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from orchestrator.config.serving import ServeConfig
from orchestrator.serve.control.table import VersionSpec
from orchestrator.serve.guards.keys import digest_key
from orchestrator.serve.routes.shared import GatewaySettings
from tests.serve.live import Live, live_server
from tests.serve.serving import SHAPE, encode, make_run, make_text_run

selenium = pytest.importorskip("selenium", reason="selenium is not installed")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="there is no chromium with chromedriver"),
]

KEY = "k" * 24
EVIL = "<img src=x onerror=document.title='owned'>"
LABELS = (EVIL, "boot & shoe", "coat")
PLAIN = ServeConfig(executor="torch")
PNG = encode(Image.fromarray(np.random.default_rng(0).integers(0, 256, SHAPE[1:], dtype=np.uint8)))
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextlib.contextmanager
def chromium(width: int = 1280, height: int = 900) -> Iterator[Any]:
    """A browser with a fresh profile, and a window of that size."""
    from selenium import webdriver

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = str(CHROMIUM)
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        service = webdriver.ChromeService(str(DRIVER))
        browser = webdriver.Chrome(options=options, service=service)
        try:
            resize(browser, width, height)
            yield browser
        finally:
            browser.quit()


def resize(browser: Any, width: int, height: int) -> None:
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def until(browser: Any, what: Any) -> Any:
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 120).until(what)


def by_id(browser: Any, name: str) -> Any:
    return browser.find_element("id", name)


def script(browser: Any, text: str) -> Any:
    return browser.execute_script(f"return {text}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    (folder / "shoe.png").write_bytes(PNG)
    return folder


@pytest.fixture(scope="module")
def live(folder) -> Iterator[Live]:
    specs = [
        VersionSpec("shoes", "1", str(make_run(folder / "1", label_names=LABELS))),
        VersionSpec("shoes", "2", str(make_run(folder / "2", seed=1, label_names=LABELS))),
        VersionSpec("mail", "1", str(make_text_run(folder / "mail"))),
    ]
    with live_server(specs, config=PLAIN) as server:
        for _ in range(3):
            server.client.post("/predict/shoes", content=PNG)
        yield server


@pytest.fixture(scope="module")
def browser(live) -> Iterator[Any]:
    with chromium() as one:
        yield one


@pytest.fixture
def shown(browser, live) -> Any:
    """The page once it shows the models."""
    resize(browser, 1280, 900)
    browser.get(live.url)
    until(browser, lambda b: b.find_elements("css selector", "#models table"))
    return browser


def tried(browser: Any, folder: Path) -> None:
    """Sends the image, and waits for its explanation."""
    by_id(browser, "try-image").send_keys(str(folder / "shoe.png"))
    by_id(browser, "try-go").click()
    until(browser, lambda b: by_id(b, "seen").is_displayed())


def errors(browser: Any) -> list[str]:
    return [one["message"] for one in browser.get_log("browser") if one["level"] == "SEVERE"]


def test_it_shows_models_versions_and_numbers(shown):
    text = by_id(shown, "main").text
    assert "shoes" in text and "mail" in text and "texts of 8 tokens" in text
    rows = shown.find_elements("css selector", "#models section:first-child tbody tr")
    assert [row.find_element("tag name", "th").text for row in rows] == ["1", "2"]
    cells = [cell.text for cell in rows[1].find_elements("tag name", "td")]
    assert cells[0] == "100 %" and cells[2] == "3" and "ms" in cells[4]
    assert "no reference" in cells[-1]
    assert "live" in by_id(shown, "live").text
    assert errors(shown) == []


def test_an_image_is_predicted_and_explained(shown, live, folder):
    tried(shown, folder)
    expected = live.client.post("/predict/shoes", content=PNG).json()["predictions"]
    rows = shown.find_elements("css selector", "#classes button")
    labels = [row.find_element("css selector", ".l").text for row in rows]
    assert labels == [one["label"] for one in expected]
    shown_percent = rows[0].find_elements("tag name", "span")[1].text
    assert shown_percent == f"{expected[0]['probability'] * 100:.1f} %"
    assert [row.get_attribute("aria-pressed") for row in rows] == ["true", "false", "false"]
    assert script(shown, "[pixels.width, pixels.height]") == [12, 12]
    # What is drawn is the image itself, and a map over it that is not the same everywhere.
    drawn = script(
        shown,
        "[...pixels.getContext('2d').getImageData(0, 0, 12, 12).data]",
    )
    assert drawn[::4] == np.asarray(Image.open(folder / "shoe.png")).ravel().tolist()
    # Another label's map, by its button.
    rows[1].click()
    until(shown, lambda b: labels[1] in by_id(b, "seen-hint").text)
    assert rows[1].get_attribute("aria-pressed") == "true"
    assert errors(shown) == []


def test_names_never_become_markup(shown, folder):
    tried(shown, folder)
    assert EVIL in by_id(shown, "classes").text
    assert shown.find_elements("css selector", "img") == []
    assert shown.title == "orch · status"


def test_a_text_is_predicted(shown):
    script(shown, "(document.getElementById('try-model').value = 'mail', 1)")
    script(shown, "document.getElementById('try-model').dispatchEvent(new Event('change'))")
    assert not by_id(shown, "try-image").is_displayed()
    by_id(shown, "try-text").send_keys("free money")
    by_id(shown, "try-go").click()
    until(shown, lambda b: "ham" in by_id(b, "classes").text)
    assert "spam" in by_id(shown, "classes").text and not by_id(shown, "seen").is_displayed()


def test_a_wrong_file_is_explained(shown, folder):
    (folder / "note.png").write_text("no image")
    by_id(shown, "try-image").send_keys(str(folder / "note.png"))
    by_id(shown, "try-go").click()
    until(shown, lambda b: "PNG or JPEG" in by_id(b, "try-error").text)
    assert by_id(shown, "try-error").get_attribute("role") == "alert"


def test_everything_is_reached_by_the_keyboard(shown, folder):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    tried(shown, folder)
    reached = set()
    shown.find_element("css selector", "body").send_keys(Keys.HOME)
    script(shown, "document.activeElement.blur()")
    for _ in range(40):
        ActionChains(shown).send_keys(Keys.TAB).perform()
        reached.add(script(shown, "document.activeElement.id || document.activeElement.tagName"))
    assert {"try-model", "try-version", "try-image", "try-go", "opacity"} <= reached
    assert {"SUMMARY", "BUTTON", "A"} <= reached
    # A version's details open by a key, and stay open while the numbers change.
    summary = shown.find_elements("css selector", "summary")[-1]
    summary.send_keys(Keys.ENTER)
    opened = "[...document.querySelectorAll('details')].at(-1).open"
    assert script(shown, opened)
    before = by_id(shown, "tiles").text
    until(shown, lambda b: by_id(b, "tiles").text != before)
    assert script(shown, opened)
    assert script(shown, "document.activeElement.tagName") == "SUMMARY"


@pytest.mark.parametrize("width", [390, 820, 1280])
def test_it_fits_the_screen(shown, folder, width):
    resize(shown, width, 844)
    tried(shown, folder)
    assert script(shown, "document.documentElement.scrollWidth") <= width
    small = """[...document.querySelectorAll('button, select, input')]
        .filter((one) => one.offsetParent && one.getBoundingClientRect().height < 16).length"""
    assert script(shown, small) == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_in_both_colours(shown, scheme):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    shown.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    colours = script(
        shown,
        """['--ink', '--soft', '--accent', '--good', '--warn', '--bad'].map((name) => {
            const of = (one) => { document.body.style.color = `var(${one})`;
                const found = getComputedStyle(document.body).color; document.body.style.color = '';
                return found.match(/\\d+/g).slice(0, 3).map(Number); };
            return [of(name), of('--panel')]; })""",
    )
    for ink, paper in colours:
        # WCAG 2.2, success criterion 1.4.3.
        high, low = sorted((luminance(ink), luminance(paper)), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, paper)
    shown.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def luminance(colour: list[int]) -> float:
    """Relative luminance of sRGB 0..255, as WCAG defines it."""
    parts = [one / 255 for one in colour]
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in parts]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def test_a_version_that_comes_and_goes_is_shown(shown, live, folder):
    extra = VersionSpec("shoes", "3", str(make_run(folder / "3", seed=2, label_names=LABELS)))
    live.call(live.operator.load(extra))
    until(shown, lambda b: "Version 3" in by_id(b, "models").text)
    live.call(live.operator.unload("shoes", "3"))
    until(shown, lambda b: "Version 3" not in by_id(b, "models").text)


def test_the_key_is_asked_for_and_kept_in_memory_only(folder):
    specs = [VersionSpec("shoes", "1", str(make_run(folder / "guarded")))]
    settings = GatewaySettings(key_digests=(digest_key(KEY),))
    with live_server(specs, config=PLAIN, settings=settings) as live, chromium() as browser:
        browser.get(live.url)
        until(browser, lambda b: by_id(b, "key-form").is_displayed())
        assert "shoes" not in browser.page_source
        by_id(browser, "key").send_keys("wrong" * 5 + "\n")
        until(browser, lambda b: "not one of" in by_id(b, "key-error").text)
        by_id(browser, "key").send_keys(KEY + "\n")
        until(browser, lambda b: b.find_elements("css selector", "#models table"))
        tried(browser, folder)
        assert not by_id(browser, "key-form").is_displayed()
        assert script(browser, "localStorage.length + sessionStorage.length") == 0
        assert KEY not in str(browser.get_cookies()) + browser.page_source + browser.current_url
        browser.refresh()
        until(browser, lambda b: by_id(b, "key-form").is_displayed())
