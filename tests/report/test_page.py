import re
from html.parser import HTMLParser

import pytest

from hermitcrab.report.gather import gather
from hermitcrab.report.page import curve, render, write_page

VOID = {"meta", "line", "circle", "polyline", "br", "link", "img", "input", "hr"}
LOADS = {"src", "href", "srcset", "data", "action", "poster", "xlink:href", "background"}


class Reader(HTMLParser):
    """Checks that tags close in order; collects text and everything that could load something or run."""

    def __init__(self, page):
        super().__init__()
        self.open, self.said, self.tags, self.loads = [], [], set(), []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.loads += [(name, value) for name, value in attributes if name in LOADS or name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.said.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.said).split())


def test_the_page_is_whole_and_loads_nothing(sample):
    page = render(gather(*sample().run()))
    reader = Reader(page)
    assert not reader.loads
    assert not reader.tags & {"script", "link", "img", "iframe", "object", "embed", "form", "a", "base"}
    assert not re.search(r"url\(|@import|https?:", page)
    assert "default-src 'none'" in page
    assert "prefers-color-scheme: dark" in page


WORDS = [
    "Better against base", "No evidence of added value against base (4-shot, calibrated)", "134,515,008", "Q4_1 × 210",
    "4,884,480", "sha256:" + "2" * 64, "CC0-1.0", "3 stands in test", "no readable energy counter", "0.061 s",
    "crab verify package --key", "McNemar", "4 share a run of 8 words", "bfloat16", "torch 2.9.0", "gguf Q4_0 90.0 MiB of 256.0 MiB",
    "accuracy -0.005 (-0.020 to +0.010) 8 of 400 (+3 / −5) 0.012 97.5%",
]  # fmt: skip


def test_every_figure_of_every_model_stands_on_the_page(sample):
    facts = gather(*sample().run())
    text = Reader(render(facts)).text
    value = facts["value"]
    for row in value["models"]:
        assert row["model"] in text
        for figure in row["figures"].values():
            assert f"{figure['value']:.3f}" in text
            assert f"{figure['low']:.3f}–{figure['high']:.3f}" in text
    for pair in value["pairs"]:
        assert f"{pair['difference']:+.3f}" in text
        assert f"{pair['low']:+.3f} to {pair['high']:+.3f}" in text
    for row in value["gained"] + value["lost"]:
        assert row in text
    assert value["sentence"].removeprefix("Better: a") in text  # the verdict stands above it
    for word in WORDS:
        assert word in text


HOSTILE = '</td></table><script>alert(1)</script><img src=x onerror="alert(2)">{{ 7*7 }}\x1b[2J\u202e&lt;'


def test_hostile_text_stays_text(sample):
    made = sample(show_text=True, text=lambda i: HOSTILE, uri="javascript:" + HOSTILE)
    page = render(gather(*made.run()))
    reader = Reader(page)
    assert not reader.tags & {"script", "img"}
    assert not reader.loads
    assert '<script>alert(1)</script><img src=x onerror="alert(2)">{{ 7*7 }}\\u001b[2J\\u202e&lt;' in "".join(
        reader.said
    )
    assert "\x1b" not in page
    assert "\u202e" not in page


def test_texts_are_masked_and_only_shown_when_asked(sample):
    def private(i):
        return f"I am {i}, a.b@example.com, +44 20 7946 0958"

    assert "I am" not in render(gather(*sample("hidden", text=private).run()))
    shown = render(gather(*sample("shown", text=private, show_text=True).run()))
    assert "[email], [phone]" in shown
    assert "example.com" not in shown
    assert "7946" not in shown


def test_an_unsigned_package_is_told_as_such(sample):
    record, artifacts = sample().run()
    record["recipe"]["package"]["sign"] = False
    text = Reader(render(gather(record, artifacts))).text
    assert "not signed" in text
    assert "model_signing" not in text


@pytest.mark.parametrize(
    "stages", [[], ["collect"], ["collect", "prepare", "train"], ["collect", "prepare", "train", "evaluate"]]
)
def test_a_run_in_the_making_has_a_page(sample, stages):
    made = sample()
    for stage in stages:
        getattr(made, stage)()
    text = Reader(render(gather(made.record(), made.artifacts))).text
    assert ("What was added" in text) == ("train" in stages)
    assert ("Did it add anything?" in text) == ("evaluate" in stages)
    assert "Compressed" not in text


def test_the_page_is_written_whole_or_not_at_all(sample, tmp_path):
    facts = gather(*sample().run())
    path = tmp_path / "runs" / "report.html"
    write_page(facts, path)
    before = path.read_bytes()
    with pytest.raises(KeyError):
        write_page({**facts, "value": {}, "base": {"license": {}}}, path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_a_long_curve_is_averaged_and_stays_in_its_box():
    drawn = curve({"train": [[i, 3 - i / 5000] for i in range(1, 5001)], "validation": [[5000, 2.5]]})
    points = [tuple(map(float, p.split(","))) for p in drawn["train"].split()] + drawn["validation"]
    assert len(points) <= 241
    assert drawn["every"] == 21
    assert all(drawn["left"] <= x <= drawn["right"] and 0 <= y <= drawn["floor"] for x, y in points)
    assert points[0][1] < points[-2][1]  # a falling loss goes down


def test_one_step_draws_no_curve():
    assert curve({"train": [[1, 2.0]], "validation": []}) is None
    assert curve({"train": [], "validation": []}) is None
