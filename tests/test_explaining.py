"""Explanations: exact where the right answer is known, changed by other weights, the same from the command line and as a page."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("captum")

import torch
from tiny import crab, stripes, working_in, write_image_project, write_model

from hermitcrab.explaining import METHODS, attribute, values_of
from hermitcrab.models.base import describe
from hermitcrab.recipe import Base
from hermitcrab.references import Resolved
from hermitcrab.tasks import Asking
from hermitcrab.tasks.encoding import load_encoder
from hermitcrab.tasks.explained import Question, of_image, of_prompt


def line(weight: list[float], given: list[float], plain: list[float], part: list[int]) -> Question:
    w = torch.tensor(weight)
    return Question("row", torch.tensor([given]), torch.tensor([plain]), torch.tensor([part]), ["a", "b"],
                    lambda x: (x * w).sum(1), "yes", "a sum")  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_of_a_sum_each_part_has_its_summand(method):
    told = attribute(line([1.0, 2.0, -3.0, 10.0], [1.0, 1.0, 2.0, 5.0], [0.0, 0.5, 0.0, 4.0], [0, 0, 1, -1]), method)
    assert [p["contribution"] for p in told["parts"]] == pytest.approx([2.0, -6.0], abs=1e-4)
    assert (told["score"], told["plain_score"]) == pytest.approx((47.0, 41.0))
    assert not told["rough"]


class Half(torch.nn.Module):
    """Sees the left half of an image and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, pixels: torch.Tensor, return_dict: bool = True) -> tuple[torch.Tensor]:
        seen = (self.weight * pixels[:, :, :, :7]).sum((1, 2, 3))
        return (torch.stack([seen, -seen], 1),)


@pytest.mark.parametrize("method", METHODS)
def test_what_a_model_does_not_see_contributes_nothing(method):
    pixels = torch.rand(1, 14, 14)
    told = attribute(of_image(Half(), pixels, np.zeros((14, 14, 1), np.uint8), ["left", "right"]), method)
    heat = np.array(told["heat"])
    assert told["prediction"] == "left"
    assert np.abs(heat[:, 8:]).max() == pytest.approx(0, abs=1e-6)
    assert np.abs(heat[:, :6]).max() > 1e-3 or told["score"] == pytest.approx(0, abs=1e-3)


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    from transformers import AutoModelForCausalLM

    folder = write_model(tmp_path_factory.mktemp("base"))
    base = describe(folder, Resolved("base", "base", "", folder, None, "folder"), Base(path="base"), True)
    return load_encoder(base, folder, "auto"), AutoModelForCausalLM.from_pretrained(folder).float().eval()


@pytest.mark.parametrize("choices", [["yes", "no"], []])
def test_the_parts_of_a_prompt_are_the_tokens_of_its_text(language, choices):
    encoder, model = language
    question = of_prompt(encoder, model, "the weather is good", Asking(choices, False, 4))
    assert "".join(question.names) == "the weather is good"
    told = attribute(question, "integrated-gradients")
    total = sum(p["contribution"] for p in told["parts"])
    assert total == pytest.approx(told["score"] - told["plain_score"], abs=told["left_over"] + 1e-4)
    assert any(p["contribution"] for p in told["parts"])


def test_leaving_a_token_out_gives_the_fall_of_the_score(language):
    encoder, model = language
    question = of_prompt(encoder, model, "the weather is bad", Asking(["yes", "no"], False, 4))
    told = attribute(question, "occlusion")
    without = torch.where(question.part == 1, question.plain, question.given)
    with torch.no_grad():
        fall = float(question.score(question.given)[0] - question.score(without)[0])
    assert told["parts"][1]["contribution"] == pytest.approx(fall, abs=1e-4)


def test_a_score_that_is_no_number_is_refused():
    from hermitcrab.errors import HermitcrabError

    broken = replace(line([1.0], [1.0], [0.0], [0]), names=["a"], score=lambda x: x.sum(1) * float("nan"))
    with pytest.raises(HermitcrabError, match="not a number"):
        attribute(broken, "integrated-gradients")


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    from hermitcrab import run

    folder = write_image_project(tmp_path_factory.mktemp("project")).parent
    with working_in(folder):
        run("shapes.yaml")
    return folder


@pytest.fixture
def image(package, tmp_path, monkeypatch):
    from PIL import Image

    for name in ("runs", ".crab"):
        shutil.copytree(package / name, tmp_path / name)
    pixels, _ = stripes(1, seed=9)
    Image.fromarray(np.asarray(pixels[0], np.uint8)).save(tmp_path / "one.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "one.png"


def test_an_image_is_explained_from_the_command_line(image, capsys):
    status, out, err = crab(
        "explain", "runs/shapes/package", "one.png", "--html", "why.html", "--sanity", "--json", capsys=capsys
    )
    assert status == 0, err
    (told,) = json.loads(out)["explanations"]
    status, out, _ = crab("predict", "runs/shapes/package", "one.png", "--json", capsys=capsys)
    assert told["prediction"] == json.loads(out)["answers"][0]["prediction"]
    assert np.array(told["heat"]).shape == (8, 8)
    assert values_of(told).sum() == pytest.approx(told["score"] - told["plain_score"], abs=told["left_over"] + 1e-2)
    # Other weights, other reasons (Adebayo et al. 2018): an edge detector would give about the same picture twice.
    assert told["randomized_correlation"] is None or told["randomized_correlation"] < 0.8
    page = (image.parent / "why.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_what_cannot_be_explained_is_one_sentence(image, capsys):
    status, _, err = crab("explain", "runs/shapes/package", "two.png", capsys=capsys)
    assert status == 2
    assert "two.png: no such file" in err
