"""Students of real small models: the loss as its formula has it, answers of the teacher asked once, whole runs and refusals."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hermitcrab.compress import depth, learning, teaching
from hermitcrab.compress.distill import Distill, smaller
from hermitcrab.compress.lessons import Lessons
from hermitcrab.compress.teaching import Taught
from hermitcrab.data.ledger import Ledger
from hermitcrab.errors import HermitcrabError
from hermitcrab.evaluate.asking import load


def lesson(source: Any, **settings: Any) -> tuple[Taught, Any, Any]:
    """A taught task, another model to teach, and examples."""
    task, teacher = load(source.task, source.start, source.train, "float32")
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(0.5)
    task.attach(student)
    taught = Taught(task, teacher, settings.get("temperature", 2.0), settings.get("alpha", 0.5))
    examples, _ = task.examples(source.calibration, Ledger(task.counts))
    return taught, student, examples


@pytest.mark.parametrize("name", ["text", "image"])
def test_the_loss_is_the_mixture_of_its_formula(name: str, request: Any) -> None:
    taught, student, examples = lesson(request.getfixturevalue(name), temperature=3.0, alpha=0.25)
    rows = np.arange(min(4, len(examples)))
    found = taught.loss(student, taught.batch(examples, rows))
    plain = taught.task
    s_NV, label_N = plain.decisions(student, plain.batch(examples, rows))
    t_NV, _ = plain.decisions(taught.teacher, plain.batch(examples, rows))
    p_NV, q_NV = (t_NV.double() / 3).softmax(-1), (s_NV.double() / 3).softmax(-1)
    kl = (p_NV * (p_NV.log() - q_NV.log())).sum()
    hard = -s_NV.double().log_softmax(-1).gather(1, label_N[:, None]).sum()
    assert float(found.sum.detach()) == pytest.approx(float((0.25 * hard + 0.75 * 9 * kl).detach()), rel=1e-4)
    assert found.count == len(label_N) == taught.count(taught.batch(examples, rows))


def test_alpha_of_one_is_the_plain_loss_and_a_teacher_of_itself_costs_nothing(image: Any) -> None:
    taught, student, examples = lesson(image, alpha=1.0)
    batch = taught.batch(examples, np.arange(8))
    assert float(taught.loss(student, batch).sum) == pytest.approx(float(taught.task.loss(student, batch.batch).sum))
    own, _, examples = lesson(image, alpha=0.0)
    assert float(own.loss(own.teacher, own.batch(examples, np.arange(8))).sum) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("name", ["text", "image"])
def test_answers_that_are_kept_are_those_that_would_be_given(name: str, request: Any) -> None:
    taught, student, examples = lesson(request.getfixturevalue(name))
    rows = np.array([2, 0, 1])
    fresh = taught.loss(student, taught.batch(examples, rows))
    told = taught.remember(examples, seen=2 * len(examples))
    assert told["teacher_asked"] == "once about every example"
    calls: list[int] = []
    taught.teacher.register_forward_hook(lambda *_: calls.append(1))
    kept = taught.loss(student, taught.batch(examples, rows))
    assert calls == []
    assert float(kept.sum) == pytest.approx(float(fresh.sum), rel=1e-5)
    other, _ = taught.task.examples(request.getfixturevalue(name).calibration, Ledger("rows"))
    taught.loss(student, taught.batch(other, rows))  # of other examples, as those of validation rows
    assert calls == [1]


def test_the_teacher_is_asked_at_every_batch_where_that_costs_less(image: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    taught, _, examples = lesson(image)
    assert "no example comes twice" in taught.remember(examples, seen=len(examples))["teacher_asked"]
    monkeypatch.setattr(teaching, "ROOM", 100)
    assert "over 100 bytes" in taught.remember(examples, seen=2 * len(examples))["teacher_asked"]
    assert taught.known is None


def test_another_number_of_classes_is_no_student(image: Any) -> None:
    taught, student, examples = lesson(image)
    student.classifier = torch.nn.Linear(32, 4)
    with pytest.raises(HermitcrabError, match="the teacher decides among 3, the student among 4"):
        taught.loss(student, taught.batch(examples, np.arange(2)))


# The form


def asked(source: Any, **distill: Any) -> Any:
    settings = {"start": "new", "temperature": 2.0, "alpha": 0.5, "epochs": 1.0, "steps": 12, "learning_rate": 3e-3,
                "batch_size": 8, "architecture": {}}  # fmt: skip
    found = copy.copy(source)
    found.compress = SimpleNamespace(distill=SimpleNamespace(**{**settings, **distill}))
    return found


@pytest.mark.parametrize(
    ("name", "settings"),
    [("image", {"architecture": {"hidden_sizes": [12]}}), ("text", {"architecture": {"num_hidden_layers": 2, "intermediate_size": 32}}),
     ("text", {"start": "depth", "architecture": {"num_hidden_layers": 3}})],
)  # fmt: skip
def test_a_student_is_a_model_of_its_own(name: str, settings: dict[str, Any], tmp_path: Path, request: Any) -> None:
    source = asked(request.getfixturevalue(name), **settings)
    form = Distill(source)
    made = form.make("student", tmp_path)
    start = form.start("student", tmp_path, made)
    task, model = load(source.task, start, source.train, "float32")
    teacher_task, teacher = load(source.task, source.start, source.train, "float32")
    assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in teacher.parameters())
    assert task.probe_logits(model, task.probes()).shape == teacher_task.probe_logits(teacher, task.probes()).shape
    assert task.inputs(source.calibration) == teacher_task.inputs(source.calibration)
    said = form.said(tmp_path / made.files[0])
    assert said["teacher"] == made.told["teacher"]["digest"]
    assert made.told["learnt"]["steps"] == 12
    assert ("init_commitment" in made.told) == (settings.get("start") != "depth")
    again = Distill(source).make("student", tmp_path)
    assert again == made


def test_the_seed_of_a_new_student_is_committed_to_and_kept_apart(image: Any, tmp_path: Path) -> None:
    import hashlib

    source = asked(image, architecture={"hidden_sizes": [12]}, steps=1)
    made = Distill(source).make("student", tmp_path)
    seed = made.facts["init"]
    wanted = hashlib.sha256(f"{seed['seed']}|{seed['nonce']}".encode()).hexdigest()
    assert made.told["init_commitment"] == f"sha256:{wanted}"
    assert str(seed["seed"]) not in str(made.told)
    source.init_seed = 7
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, two = (Distill(source).make("student", tmp_path / name) for name in "ab")
    assert (tmp_path / "a" / one.files[0]).read_bytes() == (tmp_path / "b" / two.files[0]).read_bytes()
    assert one.told["init_commitment"] == "sha256:" + hashlib.sha256(b"7|").hexdigest()


def test_a_killed_distillation_gives_the_same_bytes(
    image: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hermitcrab.train.loop import Fit

    source = asked(image, architecture={"hidden_sizes": [12]}, steps=40)
    source.train = image.train.model_copy(update={"checkpoint_every": 9})
    source.init_seed = 3
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    straight = Distill(source).make("student", tmp_path / "a")
    step = Fit._step

    def die(self: Fit, number: int, tell: bool) -> Any:
        if number == 31:
            raise KeyboardInterrupt
        return step(self, number, tell)

    monkeypatch.setattr(Fit, "_step", die)
    with pytest.raises(KeyboardInterrupt):
        Distill(source).make("student", tmp_path / "b")
    monkeypatch.setattr(Fit, "_step", step)
    resumed = Distill(source).make("student", tmp_path / "b")
    assert resumed.told == straight.told
    assert (tmp_path / "a" / straight.files[0]).read_bytes() == (tmp_path / "b" / resumed.files[0]).read_bytes()


@pytest.mark.parametrize(
    ("architecture", "says"),
    [
        ({"hidden_size": [4]}, "has no `hidden_size`; did you mean `hidden_sizes`"),
        ({"id2label": {}}, "id2label is what student and teacher have in common"),
        ({}, "would have its teacher's shape"),
        ({"hidden_sizes": [128, 64]}, "would have its teacher's shape"),
    ],
)
def test_a_shape_that_cannot_be_meant_is_refused(architecture: dict[str, Any], says: str) -> None:
    config = {"model_type": "mlp", "hidden_sizes": [128, 64], "activation": "relu", "id2label": {"0": "a"}}
    with pytest.raises(HermitcrabError, match=says):
        smaller(config, architecture)


def test_a_student_of_layers_needs_layers(image: Any, text: Any) -> None:
    part = asked(text, start="depth", architecture={"num_hidden_layers": 5, "intermediate_size": 8}).compress
    with pytest.raises(HermitcrabError, match="has num_hidden_layers of its own, from 1 to 5, and nothing else"):
        Distill.check(part, text.base, text.model)
    part = asked(image, start="depth", architecture={"hidden_sizes": [4]}).compress
    with pytest.raises(HermitcrabError, match="mlp has no one list of layers"):
        Distill.check(part, image.base, Path())
    part = asked(image, architecture={"hidden_sizes": [4]}).compress
    Distill.check(part, image.base, Path())


def test_a_teacher_helps_layers_that_were_cut_out_of_it(text: Any, tmp_path: Path) -> None:
    """The student ends nearer to its teacher's distributions than the same student that learns from the labels alone."""
    from hermitcrab.train.parity import compare

    task, model = load(text.task, text.start, text.train, "float32")
    wanted = task.probe_logits(model, task.probes())
    depth.cut(model, [0, 3, 5])
    learning.saved(task, model, tmp_path / "cut")
    start, found = learning.start_of(text, tmp_path / "cut"), []
    for name, temperature in (("taught", 2.0), ("alone", None)):
        lessons = Lessons(30, 2e-3, 8, temperature=temperature, alpha=0.0)
        learning.learn(text, start, lessons, tmp_path / f"{name}-work", tmp_path / name, "here")
        _, made = load(text.task, learning.start_of(text, tmp_path / name), text.train, "float32")
        found.append(compare(wanted, task.probe_logits(made, task.probes()))["mean_kl"])
    assert found[0] < found[1]


def test_a_student_with_new_weights_leaves_no_trace_of_its_teacher(text: Any, tmp_path: Path) -> None:
    import hermitcrab

    source = asked(text, architecture={"num_hidden_layers": 5}, steps=30)
    source.init_seed = 11
    made = Distill(source).make("student", tmp_path)
    (result,) = hermitcrab.trace(tmp_path / "student", text.model).results
    assert result.verdict in ("no-evidence", "cannot-tell")
    assert made.told["teacher"]["digest"] == Distill.said(tmp_path / made.files[0])["teacher"]
