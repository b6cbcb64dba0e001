"""The page as a real browser shows it: a conversation that streams, images with their labels, the lineage; dark and light, narrow
and wide, English and Chinese; nothing is asked of anybody but the server."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from pathlib import Path

import pytest

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium, which drives chromium")
pytest.importorskip("fastapi")
pytest.importorskip("torch")
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait
from serving import KEY, PATIENCE, Server, serve
from tiny import stripes

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs chromium: apt-get install chromium chromium-driver"
)
LOOK = (Path(__file__).parents[1] / "report" / "look.js").read_text(encoding="utf-8")
GOOD = "寄居蟹🦀住在壳里。"  # what conftest has it learn
ASKED = "the weather is good at 6"
SCREENS = [("light", 1280), ("dark", 1280), ("light", 360), ("dark", 390)]


@pytest.fixture(scope="module")
def server(project: Path):
    made = serve(project, "speaks", "shapes", "base", "--unverified", "--slots", "2")
    yield made
    assert made.stop() == 0


@pytest.fixture(scope="module", params=["en-US", "zh-CN"])
def browser(request):
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    options.add_experimental_option("prefs", {"intl.accept_languages": request.param})
    for argument in (
        "--headless=new",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        f"--lang={request.param}",
    ):
        options.add_argument(argument)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # chromium refuses to run as root with it, and the page is our own
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.execute_cdp_cmd("Emulation.setLocaleOverride", {"locale": request.param})
    driver.chinese = request.param == "zh-CN"
    yield driver
    driver.quit()


def show(browser, server: Server, scheme: str = "light", width: int = 1280, model: str = "speaks") -> None:
    for log in ("browser", "performance"):
        browser.get_log(log)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    browser.get(f"{server.url}/")
    until(browser, "return document.querySelectorAll('#model option').length > 0 && !!lineage")
    browser.execute_script("at('model').value = arguments[0]; at('model').dispatchEvent(new Event('change'))", model)
    until(browser, "return lineage && lineage.model === arguments[0]", model)


def until(browser, script: str, *arguments: object) -> None:
    WebDriverWait(browser, PATIENCE).until(lambda driver: driver.execute_script(script, *arguments))


def at(browser, id: str):
    return browser.find_element(By.ID, id)


def say(browser, text: str) -> str:
    """Asks, and waits for the end of the answer."""
    at(browser, "question").send_keys(text, Keys.ENTER)
    until(browser, "return !running && document.querySelector('#messages .assistant:last-child small')")
    return browser.execute_script("return document.querySelector('#messages .assistant:last-child').firstChild.data")


def quiet(browser, server: Server) -> None:
    """Nothing was said on the console, and nobody but the server was asked."""
    told = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {m["params"]["request"]["url"] for m in told if m["method"] == "Network.requestWillBeSent"}
    assert {url for url in asked if not url.startswith((f"{server.url}/", "blob:"))} == set()
    assert [e["message"] for e in browser.get_log("browser") if "favicon" not in e["message"]] == []


def images(folder: Path) -> list[str]:
    found = []
    for i, pixels in enumerate(stripes(3, 77)[0]):
        Image.fromarray(pixels).save(folder / f"{i}.png")
        found.append(str(folder / f"{i}.png"))
    return found


@pytest.mark.parametrize(("scheme", "width"), SCREENS)
def test_a_conversation_is_legible(browser, server, scheme, width):
    show(browser, server, scheme, width)
    assert say(browser, ASKED) == GOOD
    assert ("个词元" if browser.chinese else "tokens") in browser.execute_script(
        "return document.querySelector('.assistant small').textContent"
    )
    legible(browser, width)
    assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") == (
        "rgb(22, 24, 27)" if scheme == "dark" else "rgb(251, 250, 248)"
    )
    facts = at(browser, "facts").text
    digest = next(model["digest"] for model in server.models if model["name"] == "speaks")
    assert digest in facts
    assert "intact" in facts
    quiet(browser, server)


def legible(browser, width: int) -> None:
    found = browser.execute_script(LOOK)
    assert found["contrast"] == []
    assert found["outside"] == []
    assert found["overlaps"] == []
    assert found["scrolls"] == []
    assert browser.execute_script("return [innerWidth, document.documentElement.scrollWidth]") == [width, width]


@pytest.mark.parametrize(("scheme", "width"), SCREENS[1:3])
def test_images_are_answered_with_label_and_probabilities(browser, server, tmp_path, scheme, width):
    show(browser, server, scheme, width, "shapes")
    assert not at(browser, "talk").is_displayed()
    at(browser, "files").send_keys("\n".join(images(tmp_path)))
    until(browser, "return document.querySelectorAll('#answers figure').length === 3")
    told = server_answers(server, tmp_path)
    assert (
        browser.execute_script("return [...document.querySelectorAll('#answers b')].map((b) => b.textContent)") == told
    )
    first = browser.execute_script(
        "return [...document.querySelectorAll('#answers figure')].map((f) => f.querySelector('.scores span').textContent)"
    )
    assert first == told  # the likeliest stands first
    shares = browser.execute_script(
        "return [...document.querySelectorAll('#answers figure:first-child meter')].map((m) => m.value)"
    )
    assert sum(shares) == pytest.approx(1, abs=1e-3)
    until(
        browser,
        "return [...document.querySelectorAll('#answers img')].every((i) => i.complete && i.naturalWidth === 8)",
    )
    legible(browser, width)
    quiet(browser, server)


def server_answers(server: Server, folder: Path) -> list[str]:
    import httpx

    files = [("input", (path.name, path.read_bytes())) for path in sorted(folder.glob("*.png"))]
    return httpx.post(f"{server.url}/v2/models/shapes/infer", files=files, timeout=PATIENCE).json()["outputs"][0][
        "data"
    ]


def test_an_answer_can_be_stopped_and_the_language_changed(browser, server):
    show(browser, server, model="base")  # random weights never come to an end
    at(browser, "question").send_keys("the weather is", Keys.ENTER)
    until(browser, "return document.querySelector('#messages .assistant')?.firstChild.data.length > 0")
    at(browser, "stop").click()
    until(browser, "return !running")
    assert browser.execute_script("return document.querySelector('.assistant small').textContent") == (
        "已停止" if browser.chinese else "stopped"
    )
    server.until_idle()
    before = at(browser, "send").text
    at(browser, "language").click()
    assert {before, at(browser, "send").text} == {"Send", "发送"}
    lang = browser.execute_script("return document.documentElement.lang")
    assert lang == ("en" if browser.chinese else "zh-CN")
    facts = browser.execute_script("return at('facts').textContent")
    assert ("nothing vouches" if browser.chinese else "没有任何东西") in facts


def test_what_is_wrong_is_told_and_no_markup_of_an_answer_is_markup(browser, server):
    show(browser, server)
    at(browser, "question").send_keys("a " * 1500, Keys.ENTER)
    until(browser, "return !at('state').hidden && !running")
    assert "has room for" in at(browser, "state").text
    browser.execute_script("bubble('assistant', '<img src=x onerror=alert(1)>')")
    assert browser.execute_script("return document.querySelectorAll('#messages img').length") == 0
    page = server.raw("GET", "/")
    policy = page[2]["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(rb'(src|href)="|style="|\son[a-z]+="', page[1])


def test_a_server_with_keys_asks_for_one(browser, project):
    server = serve(project, "plain", "--unverified", key=KEY)
    try:
        browser.get(f"{server.url}/")
        until(browser, "return !at('keys').hidden")
        at(browser, "key").send_keys("wrong", Keys.ENTER)
        until(browser, "return at('state').textContent === say('wrong')")
        at(browser, "key").clear()
        at(browser, "key").send_keys(KEY, Keys.ENTER)
        until(browser, "return lineage && lineage.model === 'plain'")
        assert not at(browser, "state").is_displayed()
    finally:
        server.stop()


@pytest.mark.parametrize("screen", ["chat", "images"])
def test_it_can_be_photographed(browser, server, tmp_path, screen):
    """For people to look at: CRAB_SHOTS names a folder that keeps the pictures."""
    folder = Path(os.environ.get("CRAB_SHOTS", tmp_path))
    for scheme, width in SCREENS:
        show(browser, server, scheme, width, "speaks" if screen == "chat" else "shapes")
        if screen == "chat":
            say(browser, ASKED)
            say(browser, "the weather is bad at 3")
        else:
            at(browser, "files").send_keys("\n".join(images(tmp_path)))
            until(browser, "return document.querySelectorAll('#answers figure').length === 3")
        browser.execute_script("at('lineage').open = true")
        path = folder / f"{screen}-{'zh' if browser.chinese else 'en'}-{scheme}-{width}.png"
        browser.get_screenshot_as_file(str(path))
        assert Image.open(io.BytesIO(path.read_bytes())).width == width
