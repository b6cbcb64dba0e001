"""The loop on a real tiny llama: exact accumulation, several processes, resume, packing against no packing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

torch = pytest.importorskip("torch")

from tiny import question_rows, read_log, write_model

from hermitcrab.data.ledger import Ledger
from hermitcrab.errors import Diverged, HermitcrabError, UsageError
from hermitcrab.models.base import describe
from hermitcrab.recipe import Base, Train
from hermitcrab.references import resolve
from hermitcrab.store import Store, write_json
from hermitcrab.tasks import Start, make_task
from hermitcrab.train import checkpoint
from hermitcrab.train.adapters import learnt
from hermitcrab.train.loop import Fit
from hermitcrab.train.session import Session, launch


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def rows() -> pa.Table:
    return question_rows(48)


def open_session(folder: Path, model: Path, rows: pa.Table, validation: int = 0, **settings: Any) -> Session:
    usual = {
        "method": "full", "sequence_length": 64, "batch_size": 4, "learning_rate": 1e-3, "checkpoint_every": 3,
        "precision": "float32", "attention": "sdpa", "compile": "off",
    }  # fmt: skip
    part = Train.model_validate({**usual, **settings})
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, folder / "train.parquet")
    pq.write_table(question_rows(validation, 1000), folder / "validation.parquet")
    base = describe(model, resolve(str(model), None, Store(folder / "store")), Base(path=str(model)))
    write_json(folder / "job.json", {"task": "text-generation", "part": part.model_dump(mode="json"), "base": base,
                                     "path": str(model), "rows": str(folder), "seed": None})  # fmt: skip
    return Session.open(folder)


def fit(session: Session) -> tuple[Any, Fit]:
    plan, model = session.plan(1)
    trained = session.ready(model, plan)
    made = Fit(session.task, trained, session.part, plan, session.folder, session.examples, session.validation)
    made.run()
    return trained, made


def tensors(model: Any) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in learnt(model).items()}


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert torch.equal(tensor, b[name]), name


def test_loss_falls(tmp_path, tiny, rows):
    _, made = fit(open_session(tmp_path, tiny, rows, epochs=8.0))
    assert made.state.loss_last < 0.7 * made.state.loss_first


@pytest.mark.parametrize("settings", [{}, {"method": "lora", "lora": {"rank": 4, "alpha": 8.0, "dropout": 0.1}},
                                      {"precision": "bfloat16", "attention": "matmul"}], ids=["full", "lora", "bf16"])  # fmt: skip
def test_k_steps_and_a_kill_and_a_resume_are_n_steps_bit_for_bit(tmp_path, tiny, rows, settings):
    straight, made = fit(open_session(tmp_path / "a", tiny, rows, steps=10, validation=6, validate_every=2, **settings))
    wanted, log = tensors(straight), read_log(tmp_path / "a" / "log.jsonl")

    session = open_session(tmp_path / "b", tiny, rows, steps=10, validation=6, validate_every=2, **settings)
    plan, model = session.plan(1)
    half = Fit(
        session.task,
        session.ready(model, plan),
        session.part,
        plan,
        session.folder,
        session.examples,
        session.validation,
    )
    original = half._step

    def die(step: int, tell: bool) -> Any:
        if step == 7:
            raise KeyboardInterrupt
        return original(step, tell)

    half._step = die  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        half.run()
    resumed, again = fit(Session.open(tmp_path / "b"))
    assert_equal(wanted, tensors(resumed))
    assert again.state == made.state
    assert read_log(tmp_path / "b" / "log.jsonl") == log


def test_a_line_of_the_log_is_the_mean_of_the_steps_since_the_last_one(tmp_path, tiny, rows, monkeypatch):
    fit(open_session(tmp_path / "each", tiny, rows, steps=11, batch_size=1))
    monkeypatch.setattr("hermitcrab.train.loop.LOGGED", 4)
    _, made = fit(open_session(tmp_path / "few", tiny, rows, steps=11, batch_size=1))
    assert made.log_every == 3
    each, few = read_log(tmp_path / "each" / "log.jsonl"), read_log(tmp_path / "few" / "log.jsonl")
    assert [line["step"] for line in few] == [3, 6, 9, 11]
    for line, start in zip(few, (0, 3, 6, 9), strict=True):
        steps = each[start : line["step"]]
        assert line["labels"] == sum(s["labels"] for s in steps)
        assert line["loss"] == pytest.approx(sum(s["loss"] * s["labels"] for s in steps) / line["labels"])


def test_a_frozen_plan_is_read_again_not_probed_again(tmp_path, tiny, rows):
    session = open_session(tmp_path, tiny, rows, precision="auto", attention="auto", steps=2)
    first, _ = session.plan(1)
    frozen = (tmp_path / "plan.json").read_bytes()
    second, _ = Session.open(tmp_path).plan(7)
    assert first == second
    assert (tmp_path / "plan.json").read_bytes() == frozen
    assert "GFLOP/s" in first.why["precision"]
    assert "ms" in first.why["attention"]


def one_step(folder: Path, tiny: Path, rows: pa.Table, **settings: Any) -> dict[str, torch.Tensor]:
    trained, _ = fit(open_session(folder, tiny, rows, steps=1, clip_norm=None, warmup=0.0, **settings))
    return tensors(trained)


def test_accumulation_is_the_large_batch(tmp_path, tiny, rows):
    """Weighted by tokens: micro-batches with few and many labels count as they should."""
    session = open_session(tmp_path / "x", tiny, rows)
    _, model = session.plan(1)
    task, examples = session.task, session.examples
    task.attach(model)

    def gradient(groups: list[np.ndarray]) -> dict[str, torch.Tensor]:
        model.zero_grad()
        batches = [task.batch(examples, g) for g in groups]
        total = sum(task.count(b) for b in batches)
        for b in batches:
            (task.loss(model, b).sum / total).backward()
        return {n: p.grad.clone() for n, p in model.named_parameters()}

    everything = np.arange(len(examples))
    large, split = gradient([everything]), gradient([everything[:1], everything[1:4], everything[4:]])
    for name, value in large.items():
        assert torch.allclose(value, split[name], atol=1e-6), name
    one = one_step(tmp_path / "a", tiny, rows, batch_size=4, accumulate=1)
    four = one_step(tmp_path / "b", tiny, rows, batch_size=1, accumulate=4)
    for name, value in one.items():
        assert torch.allclose(value, four[name], atol=2e-5), name


@pytest.mark.parametrize(("architecture", "more"), [
    ("llama", {}), ("qwen2", {}), ("gemma2", {"head_dim": 8, "final_logit_softcapping": 5.0, "query_pre_attn_scalar": 8}),
    ("mistral", {"sliding_window": 8}), ("gpt_neox", {}),
])  # fmt: skip
@pytest.mark.parametrize("kernel", ["sdpa", "eager", "matmul"])
def test_packed_and_unpacked_loss_agree_per_document(tmp_path, rows, architecture, more, kernel):
    """The oracle: every document alone in its row, through the model's own labels and its own head."""
    folder = write_model(tmp_path / "model", architecture, **more)
    session = open_session(tmp_path / "work", folder, rows, attention=kernel)
    if (architecture, kernel) in {("gemma2", "sdpa"), ("gemma2", "matmul")}:
        with pytest.raises(UsageError, match="leaves out what gemma2 does"):
            session.plan(1)
        return
    plan, model = session.plan(1)
    task, packed = session.task, session.examples.packed
    model = session.ready(model, plan)
    model.eval()
    reference = task.model(torch.float32).eval()
    by_id = {d.row_id: d for d in task.documents(rows)}
    with torch.no_grad():
        for row in range(len(packed)):
            ours = task.loss(model, task.batch(session.examples, np.array([row])))
            theirs, count = 0.0, 0
            for name in packed.rows[row]:
                document = by_id[name]
                labels = torch.tensor(np.where(document.learn, document.ids, -100))[None].long()
                ids = torch.from_numpy(document.ids)[None].long()
                n = int((labels[:, 1:] >= 0).sum())
                theirs += float(reference(input_ids=ids, labels=labels).loss) * n
                count += n
            assert ours.count == count
            assert float(ours.sum) == pytest.approx(theirs, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_two_processes_agree_with_one(tmp_path, tiny, rows, method):
    """Under torchrun over gloo, with an odd number of rows a step, so that one rank has a turn with nothing to learn."""
    settings: dict[str, Any] = {"steps": 4, "batch_size": 1, "accumulate": 3, "method": method, "lora": {"rank": 4}}
    alone, _ = fit(open_session(tmp_path / "one", tiny, rows, **settings))
    session = open_session(tmp_path / "two", tiny, rows, **settings)
    plan, _ = session.plan(2)
    assert plan.processes == 2
    launch(tmp_path / "two", 2)
    together, _ = fit(Session.open(tmp_path / "two"))
    for name, value in tensors(alone).items():
        assert torch.allclose(value, tensors(together)[name], atol=1e-5), name
    one, two = read_log(tmp_path / "one" / "log.jsonl"), read_log(tmp_path / "two" / "log.jsonl")
    assert [line["labels"] for line in one] == [line["labels"] for line in two]
    assert [line["loss"] for line in one] == pytest.approx([line["loss"] for line in two], rel=1e-5)


def test_a_failing_process_is_told_in_its_own_words(tmp_path, tiny, rows):
    session = open_session(tmp_path, tiny, rows, steps=4, learning_rate=1e30, clip_norm=None, warmup=0.0)
    session.plan(2)
    with pytest.raises(Diverged, match=r"step \d+, micro-batch 1: (loss|gradient norm) is"):
        launch(tmp_path, 2)


def test_a_loss_that_is_not_finite_names_its_rows(tmp_path, tiny, rows):
    with pytest.raises(Diverged, match=r"step \d+, micro-batch \d: .* is (nan|inf).*Its rows are [0-9a-f]{16}"):
        fit(open_session(tmp_path, tiny, rows, steps=20, learning_rate=1e30, clip_norm=None, warmup=0.0))


def test_early_stop_keeps_the_best_weights(tmp_path, tiny, rows):
    session = open_session(
        tmp_path, tiny, rows, validation=6, epochs=60.0, learning_rate=0.05, validate_every=1, patience=3, warmup=0.0
    )
    _, made = fit(session)
    state = made.state
    assert state.stopped == "early"
    assert state.step < made.plan.steps
    assert state.step - state.best_step == 3
    made.model.eval()
    assert made._validate() == pytest.approx(state.best_loss, rel=1e-6)


def test_no_trainable_token_is_an_error_that_says_what_to_do(tmp_path, tiny, rows):
    with pytest.raises(
        HermitcrabError, match=r"no trainable token: of 48 examples none fits sequence_length=8.*the longest has \d+"
    ):
        open_session(tmp_path, tiny, rows, sequence_length=8)


@pytest.mark.parametrize("truncate", ["drop", "left", "right"])
def test_the_token_ledger_balances_and_tells_what_was_cut(tiny, rows, truncate):
    base = describe(tiny, resolve(str(tiny), None, Store(tiny / "store")), Base(path=str(tiny)))
    part = Train(truncate=truncate, sequence_length=38)
    task = make_task("text-generation", Start(base, tiny), part)
    ledger = Ledger("tokens")
    packed, told = task.examples(rows, ledger)
    found = ledger.as_json()  # raises unless it balances
    assert found["taken"] == sum(len(d.ids) for d in task.documents(rows))
    assert sum(found["dropped"].values()) > 0
    assert told["learnt"] == int((packed.packed.labels_RL >= 0).sum())
    assert told["end_learnt_share"] == (1.0 if truncate != "right" else pytest.approx(told["end_learnt_share"]))
    assert told["padding"] + found["kept"] == packed.packed.ids_RL.size


def test_a_killed_training_process_goes_on_from_its_checkpoint(tmp_path, tiny, rows):
    """A real process, a real SIGKILL at some moment after its first checkpoint, and the same bits in the end."""
    straight, _ = fit(open_session(tmp_path / "a", tiny, rows, steps=40, checkpoint_every=2))
    session = open_session(tmp_path / "b", tiny, rows, steps=40, checkpoint_every=2)
    session.plan(1)
    script = (
        "import sys, pathlib; from hermitcrab.train.session import Session\n"
        "s = Session.open(pathlib.Path(sys.argv[1])); plan, model = s.plan(1); s.fit(s.ready(model, plan), plan)"
    )
    worker = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "b")])
    while not list((tmp_path / "b" / "checkpoints").glob("step-*")) and worker.poll() is None:
        time.sleep(0.01)
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    resumed, _ = fit(Session.open(tmp_path / "b"))
    assert_equal(tensors(straight), tensors(resumed))


def test_two_killed_processes_leave_nobody_behind_and_resume(tmp_path, tiny, rows):
    """SIGKILL to the one that started them; the kernel takes torchrun and its workers with it."""
    settings: dict[str, Any] = {"steps": 30, "batch_size": 1, "accumulate": 2, "checkpoint_every": 2}
    calm = open_session(tmp_path / "a", tiny, rows, **settings)
    calm.plan(2)
    launch(tmp_path / "a", 2)
    session = open_session(tmp_path / "b", tiny, rows, **settings)
    session.plan(2)
    script = "import sys, pathlib; from hermitcrab.train.session import launch; launch(pathlib.Path(sys.argv[1]), 2)"
    starter = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "b")], stderr=subprocess.DEVNULL)
    while not list((tmp_path / "b" / "checkpoints").glob("step-*")) and starter.poll() is None:
        time.sleep(0.01)
    starter.kill()
    starter.wait()
    deadline = time.monotonic() + 30
    while left := processes_about(tmp_path / "b"):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    launch(tmp_path / "b", 2)
    assert_equal(tensors(fit(Session.open(tmp_path / "a"))[0]), tensors(fit(Session.open(tmp_path / "b"))[0]))


def processes_about(folder: Path) -> list[str]:
    """Command lines of living processes that name `folder`."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = place.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if str(folder) in words and place.parent.name != str(os.getpid()):
            found.append(words)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
def test_compiled_layers_train_as_eager_ones_do(tmp_path, tiny, rows, method):
    settings = {"steps": 3, "method": method, "lora": {"rank": 4}}
    eager, _ = fit(open_session(tmp_path / "eager", tiny, rows, **settings))
    session = open_session(tmp_path / "compiled", tiny, rows, compile="on", **settings)
    plan, _ = session.plan(1)
    assert plan.compile, plan.why
    assert plan.first_batch_seconds > 0
    compiled, _ = fit(Session.open(tmp_path / "compiled"))
    for name, value in tensors(eager).items():
        assert torch.allclose(value, tensors(compiled)[name], atol=1e-4), name


def test_where_compiling_fails_the_layers_run_as_they_are(tmp_path, rows):
    """GPT-2 keeps its layers elsewhere: compiling them fails here, and training goes on without, told in the plan."""
    folder = write_model(tmp_path / "gpt2", "gpt2", n_embd=32, n_layer=2, n_head=4, n_positions=256)
    session = open_session(tmp_path / "work", folder, rows, steps=2, compile="on")
    plan, _ = session.plan(1)
    assert not plan.compile
    assert "it failed: " in plan.why["compile"]
    fit(Session.open(tmp_path / "work"))


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, tiny, rows, capsys):
    straight, _ = fit(open_session(tmp_path / "a", tiny, rows, steps=6))
    fit(open_session(tmp_path / "b", tiny, rows, steps=6))
    newest = sorted((tmp_path / "b" / "checkpoints").glob("step-*"))[-1] / "learnt.safetensors"
    newest.write_bytes(newest.read_bytes()[:100])
    again, _ = fit(Session.open(tmp_path / "b"))
    assert "is damaged" in capsys.readouterr().err
    assert_equal(tensors(straight), tensors(again))


def test_a_full_disk_at_a_checkpoint_is_one_sentence(tmp_path, tiny, rows):
    """On a real file system of 64 KiB."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        session = open_session(tmp_path / "work", tiny, rows, steps=3)
        plan, model = session.plan(1)
        made = Fit(session.task, session.ready(model, plan), session.part, plan, small, session.examples, None)
        made.optimizer.step()
        with pytest.raises(HermitcrabError, match="the disk is full"):
            checkpoint.save(small / "checkpoints", made.module, made.optimizer, made.state.as_json())
        assert not checkpoint.found(small / "checkpoints")
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_checkpoint_of_another_model_is_refused(tmp_path, tiny, rows):
    fit(open_session(tmp_path, tiny, rows, steps=3))
    (tmp_path / "plan.json").unlink()
    session = open_session(tmp_path, tiny, rows, steps=3, method="lora")
    with pytest.raises(HermitcrabError, match="checkpoint is of another model"):
        fit(session)
