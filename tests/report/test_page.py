import re
from html.parser import HTMLParser

import pytest

from hermitcrab.report.gather import gather
from hermitcrab.report.page import render, write_page
from hermitcrab.report.summary import summary

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
    "accuracy -0.005 (-0.020 to +0.010) not shown within 0.01 8 of 400 (+3 / −5) 0.012 97.5%",
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


def test_a_run_from_scratch_says_that_it_was_built_on_nothing(from_scratch):
    text = Reader(render(gather(*from_scratch().run()))).text
    for said in (
        "Better against logistic-regression on the same rows", "nothing: trained from scratch", "committed seed",
        "sha256:" + "7" * 64, "all 109,386 parameters on 300 rows", "right with derived, wrong with logistic-regression",
        "layers [784, 128, 64, 10]", "train rows (600)",
    ):  # fmt: skip
        assert said in text
    assert "parity" not in text
    assert "None" not in text.partition("The whole recipe")[0]


def test_the_lines_to_paste_are_few_and_hold_what_matters(sample, from_scratch):
    facts = gather(*sample().run())
    told = [f"{name} {text}".strip() for name, text in summary(facts)]
    assert told == [line.strip() for line in told if "\n" not in line]
    assert len(told) <= 9
    assert told[1] == facts["value"]["sentence"]
    assert told[2].startswith(
        "Built on: Some Base 135M (134,515,008 parameters, Apache-2.0), pypi:some-base==1.0/model.gguf"
    )
    assert told[-1] == "Verify: crab verify package --key publisher.pub.pem"
    assert ("Built on:", "nothing; initial weights drawn from a committed seed (sha256 777777777777)") in summary(
        gather(*from_scratch().run())
    )
