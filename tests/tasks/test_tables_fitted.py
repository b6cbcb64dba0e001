"""Columns of a table: fitted on training rows alone, missing and unknown cells, what is refused, and both nets."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

torch = pytest.importorskip("torch")

from hermitcrab.errors import HermitcrabError
from hermitcrab.models.architectures import complete
from hermitcrab.tasks import tables
from hermitcrab.tasks.tabular_classification import TabularClassification


def rows(*records: dict[str, object]) -> pa.Table:
    return pa.table({"row_id": [f"{i:016x}" for i in range(len(records))], "record": [json.dumps(r) for r in records]})


MIXED = rows(
    *({"age": i, "home": "own" if i % 2 else "租", "mixed": i if i % 3 else "x"} for i in range(10)), {"age": None}
)


def test_a_column_of_numbers_is_one_and_every_other_has_categories():
    columns = tables.fit(MIXED)
    assert [(c["name"], "knots" in c) for c in columns] == [("age", True), ("home", False), ("mixed", False)]
    assert columns[1]["values"] == ["own", "租"]
    assert "1" in columns[2]["values"]
    tables.check(columns, "here")


def test_numbers_lie_on_a_normal_scale_whatever_their_unit():
    draw = np.random.default_rng(0).lognormal(3, 2, 2000)
    table = rows(*({"x": float(v), "constant": 4} for v in draw))
    columns = tables.fit(table)
    cells = tables.encode(table, columns)
    assert cells.number[:, 1].mean() == pytest.approx(0, abs=0.02)
    assert cells.number[:, 1].std() == pytest.approx(1, abs=0.03)
    assert not cells.number[:, 0].any()
    far = tables.encode(rows({"x": 1e12}), columns).number[0, 1]
    assert far == pytest.approx(columns[1]["at"][-1], abs=1e-5)


def test_missing_and_unknown_cells_are_marked_and_counted():
    columns = tables.fit(MIXED)
    cells = tables.encode(rows({"age": None, "home": "tent"}, {"age": 5, "home": "own", "mixed": 1}), columns)
    assert cells.missing.tolist() == [[1.0], [0.0]]
    assert cells.category[0].tolist() == [0, 0]
    assert (cells.category[1] > 0).all()
    assert cells.unseen == 1
    raw, codes = tables.plain(rows({"home": "tent"}), columns)
    assert np.isnan(raw).all()
    assert codes == [1, 2]


def test_what_tells_nothing_or_cannot_be_read_is_refused():
    with pytest.raises(HermitcrabError, match="column `id` has 200 values in 200 rows, so it names rows"):
        tables.fit(rows(*({"id": f"customer {i}"} for i in range(200))))
    with pytest.raises(
        HermitcrabError,
        match=r"row 0000000000000000: column `age`: expected a number, as in all training rows. Received: 'old'",
    ):
        tables.encode(rows({"age": "old"}), tables.fit(MIXED))
    with pytest.raises(HermitcrabError, match="no columns but the target"):
        tables.fit(rows({}))


@pytest.mark.parametrize("change", [
    [], None, [{"name": "a"}], [{"name": "a", "values": ["b", "a"]}], [{"name": "a", "values": [1]}], [{"name": 1, "values": []}],
    [{"name": "a", "knots": [1, 2], "at": [0]}], [{"name": "a", "knots": [2, 1], "at": [0, 1]}],
    [{"name": "a", "knots": [1], "at": [float("nan")]}], [{"name": "a", "knots": list(range(500)), "at": list(range(500))}],
], ids=str)  # fmt: skip
def test_a_strangers_record_cannot_say_what_fitting_could_not(change):
    with pytest.raises(HermitcrabError, match="columns are not as they are fitted"):
        tables.check(change, "here")


def test_probes_are_records_of_nobody_and_differ():
    found = tables.probes(tables.fit(MIXED), 16)
    assert len({json.dumps(record) for record in found}) == 16
    assert tables.encode(rows(*found), tables.fit(MIXED)).unseen == 0


@pytest.mark.parametrize("model_type", ["mlp", "ft-transformer"])
def test_both_nets_read_a_table_and_two_labels_are_a_sigmoid(model_type):
    fitted = {"labels": ["a", "b"], "columns": tables.fit(MIXED)}
    config = complete({"model_type": model_type}, "here")
    model = TabularClassification.drawn(config, fitted, 1)
    again = TabularClassification.drawn(config, fitted, 1)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    cells = tables.encode(MIXED, fitted["columns"])
    batch = {name: torch.from_numpy(getattr(cells, name)) for name in ("number", "missing", "category")}
    task = TabularClassification.__new__(TabularClassification)
    logits = task.outputs(model, batch)
    assert logits.shape == (11, 2)
    assert not logits[:, 0].any()
    label = torch.tensor([0, 1] * 5 + [0])
    binary = torch.nn.functional.binary_cross_entropy_with_logits(logits[:, 1], label.float(), reduction="sum")
    assert float(torch.nn.functional.cross_entropy(logits, label, reduction="sum")) == pytest.approx(
        float(binary), rel=1e-5
    )


@pytest.mark.parametrize(("change", "said"), [
    ({"hidden_siz": 8}, "did you mean `hidden_size`"), ({"hidden_size": 0}, "hidden_size: expected a number from 1"),
    ({"hidden_size": 10, "num_attention_heads": 4}, "must be a multiple"), ({"dropout": 1}, "dropout: expected a share"),
])  # fmt: skip
def test_a_configuration_that_cannot_be_is_refused(change, said):
    with pytest.raises(HermitcrabError, match=said):
        complete({"model_type": "ft-transformer", **change}, "base.architecture")


def test_the_attention_of_the_first_block_has_no_norm_and_columns_can_be_told_apart():
    from hermitcrab.models.architectures.ft_transformer import FTTransformer

    torch.manual_seed(0)
    model = FTTransformer(complete({"model_type": "ft-transformer"}, ""), 2, [3], 1).eval()
    assert isinstance(model.blocks[0].before_attention, torch.nn.Identity)
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    missing = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    found = model(x, missing, torch.zeros(3, 1, dtype=torch.int64))
    assert len({round(float(v), 6) for v in found[:, 0]}) == 3
