"""The data card of a small set that really went through `prepare`, with every filter of one text."""

import json

import pytest
from test_browser import CHROMIUM, DRIVER, browser, see  # noqa: F401 - the fixture is used by name

from hermitcrab.data.card import croissant, data_facts
from hermitcrab.data.tables import row_id, schema, write_rows
from hermitcrab.digest import digest_json
from hermitcrab.recipe import Split
from hermitcrab.recipe.clean import Clean
from hermitcrab.report.data import render_data, write_data_page
from hermitcrab.stages import Job
from hermitcrab.stages.prepare import STAGE, Prepare
from hermitcrab.store import Store

pytest.importorskip("pycld2", reason="needs the extra [data]")
pytest.importorskip("ftfy", reason="needs the extra [data]")
SECRET = "someone.private@example.com"
CLEAN: Clean = ["unicode", {"language": {"keep": ["en", "zh"]}}, {"quality": {"rules": ["ratios"]}}, {"personal": {"policy": "mask"}},
                "exact-dedup", "decontaminate"]  # fmt: skip


def texts():
    for i in range(30):
        yield f"Row {'abcdefghij'[i % 10]}{'klm'[i // 10]} of this set says in plain English what the crab has found."
        yield f"这一行用中文说明寄居蟹在海边找到了什么东西，编号是{'甲乙丙丁戊己庚辛壬癸'[i % 10]}{'子丑寅'[i // 10]}。"
    yield f"Please write to {SECRET} about the shell, she would like to know."
    yield "Cette ligne est écrite en français et ne devrait pas rester dans ces données."
    yield "1234567890 1234567890 and 1234567890 digits"
    yield "Il a payÃ© le cafÃ©, et il est parti sans rien dire à personne."


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    store, found = Store(tmp_path_factory.mktemp("store") / "store"), list(texts())
    asked = {"inputs": [], "slice": {"rows": digest_json(found)}}
    with store.draft("collect", digest_json(asked), asked) as draft:
        rows = [
            {"row_id": row_id("sha256:x", i), "source": "s", "document": None, "text": text}
            for i, text in enumerate(found)
        ]
        write_rows(draft.payload / "train.parquet", rows, schema("text"))
        source = {"uri": "a/long/path/" * 8 + "crabs.txt",
                  "split": "train", "sha256": "sha256:" + "ab" * 32, "size": 1, "license": "CC-BY-SA-4.0",
                  "type": "lines", "format": "text", "rows_read": len(rows), "rows_kept": len(rows)}  # fmt: skip
        draft.write("sources.json", [source, {**source, "uri": "b.txt", "license": "LicenseRef-Llama-3.1"}])
        collect = store.seal(draft)
    part = Prepare(clean=CLEAN, normalize="NFC", split=Split(validation=5, test=5), take=None, format="text")
    asked = {"inputs": [collect.digest], "slice": part.model_dump(mode="json")}
    with store.draft("prepare", digest_json(asked), asked) as draft:
        STAGE.run(Job(part, {"collect": collect}, draft, {}))
        prepare = store.seal(draft)
    return data_facts("crabs", collect, prepare), prepare


def test_facts_are_those_of_the_rows(facts):
    found, _ = facts
    assert sum(split["rows"] for split in found["splits"].values()) == 61
    languages = {name: sum(s["languages"].get(name, 0) for s in found["splits"].values()) for name in ("en", "zh")}
    assert languages == {"en": 31, "zh": 30}
    reasons = {reason for split in found["dropped"].values() for reason in split}
    assert reasons == {"language is fr", "ratios: too many digits"}
    assert found["obligations"]["share-alike"] == ["CC-BY-SA-4.0"]
    assert found["obligations"]["`Built with Llama` is shown"] == ["LicenseRef-Llama-3.1"]
    assert {entry["name"]: entry["found"] for entry in found["filters"]}["personal"] == {"e-mail": 1}


def test_croissant_is_valid_and_gives_the_rows_back(facts):
    mlcroissant = pytest.importorskip("mlcroissant", reason="needs the extra [data]")
    found, prepare = facts
    path = prepare.payload.parent / "croissant.json"
    path.write_text(json.dumps(croissant(found)), encoding="utf-8")
    for split in ("train", "validation", "test"):
        (path.parent / f"{split}.parquet").write_bytes((prepare.payload / f"{split}.parquet").read_bytes())
    dataset = mlcroissant.Dataset(jsonld=path)
    assert dataset.metadata.ctx.issues.errors == set()
    rows = list(dataset.records("validation"))
    assert len(rows) == found["splits"]["validation"]["rows"]
    assert set(rows[0]) == {f"validation/{column}" for column in ("row_id", "source", "document", "text")}


def test_neither_form_holds_a_text_or_a_value(facts):
    found, _ = facts
    whole = json.dumps(croissant(found)) + render_data(found)
    assert SECRET not in whole
    assert not any(text[:30] in whole for text in texts())


@pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium")
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_the_page_is_legible(browser, facts, tmp_path, scheme, width):  # noqa: F811
    found = see(browser, tmp_path, render_data(facts[0]), scheme, width)
    assert found["width"] == [width, width]
    assert found["contrast"] == []
    assert found["outside"] == []
    assert found["overlaps"] == []
    assert found["asked"] == {found["self"]}
    assert found["console"] == []
    assert found["sections"] == ["data", "sources", "ledger"]
    write_data_page(facts[0], tmp_path / "data.html")
    assert (tmp_path / "data.html").stat().st_size > 5000
