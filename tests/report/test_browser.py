"""The page as a real browser shows it: Debian's chromium, driven through its own chromium-driver, without a network."""

import functools
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from hermitcrab.report.gather import gather
from hermitcrab.report.page import render

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium, which drives chromium")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs chromium: apt-get install chromium chromium-driver"
)
LOOK = (Path(__file__).parent / "look.js").read_text(encoding="utf-8")
SCREENS = [*((scheme, width) for scheme in ("light", "dark") for width in (1280, 390)), ("light", 768), ("dark", 360)]
CHINESE = "寄居蟹套壳"
# Two of the longest things that a page is given: a sentence without a space, and a reference without a break.
SENTENCE = "这只寄居蟹住在别的动物留下的壳里，没有人因此责怪它；人们想知道的是，它在壳里加了什么，又值多少。" * 4
REFERENCE = "pypi:a-base-model-with-a-long-name==1.0/" + "very_long_folder_name/" * 8 + "model.Q4_1.gguf"


@pytest.fixture(scope="module")
def browser():
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    for argument in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # chromium refuses to run as root with it, and the page is our own
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def pages(kinds, tmp_path_factory):
    """Facts of a run, by what is unusual about it; each is made once."""

    @functools.cache
    def facts(which):
        root = tmp_path_factory.mktemp("store") / "store"
        if which == "on a base":
            run = kinds["sample"](root, show_text=True, text=lambda i: f"{i} {SENTENCE}", uri=REFERENCE)
            return gather(*run.run())
        run = kinds["from scratch"](root, show_text=True)
        if which == "from scratch, some answers no label":
            run.unparsed = 3
        if which == "from scratch, labels in Chinese":
            run.labels = [f"{a}{b}" for a in CHINESE for b in "衣鞋"]
        if which == "from scratch, many labels":
            run.labels = [f"a label with a longer name {i}" for i in range(40)]
        return gather(*run.run())

    return facts


def see(browser, tmp_path, page, scheme, width, media="screen"):
    """Shows the page so; returns what is wrong with it, what it asked for, and what the console said."""
    path = tmp_path / "report.html"
    path.write_text(page, encoding="utf-8")
    for log in ("browser", "performance"):
        browser.get_log(log)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
    size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(path.as_uri())
    found = browser.execute_script(LOOK)
    told = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    found["asked"] = {m["params"]["request"]["url"] for m in told if m["method"] == "Network.requestWillBeSent"}
    found["refused"] = [m["params"].get("blockedReason") for m in told if m["method"] == "Network.loadingFailed"]
    found["console"] = [entry["message"] for entry in browser.get_log("browser")]
    found["self"] = path.as_uri()
    return found


WHICH = [
    "on a base",
    "from scratch, some answers no label",
    "from scratch, labels in Chinese",
    "from scratch, many labels",
]


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize(("scheme", "width"), SCREENS)
def test_the_page_is_legible(browser, pages, tmp_path, which, scheme, width):
    facts = pages(which)
    found = see(browser, tmp_path, render(facts), scheme, width)
    assert found["width"] == [width, width]
    assert found["contrast"] == []
    assert found["outside"] == []
    assert found["overlaps"] == []
    assert found["drawings"] == []
    assert set(found["scrolls"]) <= (
        {"scrolls wide"} if width < 800 else set()
    )  # seven metrics on a phone, nothing else
    assert found["asked"] == {found["self"]}
    assert found["console"] == []
    shown = {name for name in ("value", "base", "added", "compressed", "ledger") if facts[name]}
    assert set(found["sections"]) >= shown | {"cost", "verify"}
    assert found["hidden"] == []
    assert found["lines"] > 200


@pytest.mark.parametrize("which", WHICH[:3])
def test_the_page_fits_on_paper_in_dark_ink(browser, pages, tmp_path, which):
    """A4 with chromium's margins is 718 pixels wide; nothing scrolls on paper, so nothing may stick out."""
    found = see(browser, tmp_path, render(pages(which)), "dark", 718, media="print")
    assert found["width"] == [718, 718]
    assert found["contrast"] == found["outside"] == found["overlaps"] == found["scrolls"] == []
    assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_what_is_copied_from_the_top_is_plain_lines(browser, pages, tmp_path):
    facts = pages("on a base")
    see(browser, tmp_path, render(facts), "light", 1280)
    text = browser.execute_script(
        "const s = getSelection(); s.selectAllChildren(document.querySelector('.paste')); return s.toString()"
    )
    lines = text.strip().splitlines()
    assert lines[0] == "demo (text-generation, Apache-2.0)"
    assert lines[1] == facts["value"]["sentence"]
    assert lines[-1] == "Verify: crab verify package --key publisher.pub.pem"
    assert len(lines) == 9  # one of them is of the search


def test_chinese_shows_as_characters_and_not_as_boxes(browser, pages, tmp_path):
    if not shutil.which("fc-list") or not subprocess.run(["fc-list", ":lang=zh"], capture_output=True).stdout:
        pytest.skip("needs a Chinese font for chromium: apt-get install fontconfig fonts-wqy-microhei")
    found = see(browser, tmp_path, render(pages("from scratch, labels in Chinese")), "light", 390)
    assert found["outside"] == []
    drawn = browser.execute_script(
        """const context = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
        context.font = "24px " + getComputedStyle(document.body).fontFamily;
        return [...arguments[0]].map((character) => {
          context.clearRect(0, 0, 40, 40);
          context.fillText(character, 4, 30);
          return context.getImageData(0, 0, 40, 40).data.filter((_, i) => i % 4 === 3).join();
        })""",
        CHINESE,
    )
    assert len(set(drawn)) == len(CHINESE)  # a missing character is the same box as any other
    assert browser.execute_script("return document.body.innerText.includes('寄衣')")


def test_nothing_could_be_fetched_even_if_a_page_asked(browser, pages, tmp_path):
    """What the checks above see: an image that asks to be loaded is refused by the page's own policy, aloud."""
    image = "http://127.0.0.1:9/seen.png"
    page = render(pages("on a base")).replace("<main>", f'<main><img src="{image}" alt="">')
    found = see(browser, tmp_path, page, "light", 1280)
    assert found["asked"] == {found["self"], image}
    assert found["refused"] == ["csp"]
    assert any("Content Security Policy" in line for line in found["console"])


def test_what_is_wrong_is_seen(browser, pages, tmp_path):
    """Faint, overlapping and overflowing text in a page is found: the checks above can fail."""
    wrong = (
        '<main><p style="color: #999">faint words</p><p style="white-space: nowrap">' + "wide " * 400 + "</p>"
        '<p>one over</p><p style="margin-top: -2.2em">the other</p>'
    )
    found = see(browser, tmp_path, render(pages("on a base")).replace("<main>", wrong), "light", 1280)
    assert found["width"][0] > 1280
    assert any("faint words" in line for line in found["contrast"])
    assert any("wide wide" in line for line in found["outside"])
    assert any("one over" in line for line in found["overlaps"])
