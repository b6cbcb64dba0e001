import json

import pytest
from google.protobuf import json_format
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement
from lineage_artifacts import INPUTS, ORDER, chain, packaged

from hermitcrab.digest import canonical_json, digest_json
from hermitcrab.errors import HermitcrabError
from hermitcrab.lineage.statements import dependencies_of, files_of, stage_of, statement
from hermitcrab.store import Store


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("statements")
    store = Store(folder / "store")
    return packaged(store, chain(store, folder))


@pytest.fixture(scope="module")
def claims(made):
    return {name: statement(made[name], [made[i] for i in INPUTS[name]]) for name in ORDER}


def test_statements_are_in_toto_v1_with_slsa_provenance_v1(claims):
    for stage, claim in claims.items():
        Statement.copy_from_pb(json_format.ParseDict(claim, statement_pb2.Statement())).validate()
        provenance = json_format.ParseDict(claim["predicate"], provenance_pb2.Provenance())
        assert provenance.build_definition.build_type == f"urn:hermitcrab:stage:{stage}:v1"
        assert provenance.run_details.metadata.started_on.seconds > 1_700_000_000
        assert stage_of(claim) == stage


def test_the_digest_of_an_artifact_follows_from_the_subjects_of_its_statement(made, claims):
    for stage, claim in claims.items():
        assert digest_json(files_of(claim)) == made[stage].digest


def test_inputs_are_named_by_the_digests_of_what_earlier_stages_left(made, claims):
    for stage, claim in claims.items():
        found = {d["name"]: "sha256:" + d["digest"]["sha256"] for d in dependencies_of(claim, "artifact")}
        assert found == {name: made[name].digest for name in INPUTS[stage]}


def test_collect_names_base_and_data_with_digest_uri_and_license(made, claims):
    base, sources = made["collect"].read("base.json"), made["collect"].read("sources.json")
    (whole,) = dependencies_of(claims["collect"], "base")
    assert ("sha256:" + whole["digest"]["sha256"], whole["uri"]) == (base["digest"], base["uri"])
    assert whole["annotations"]["license"] == "Apache-2.0"
    assert [d["name"] for d in dependencies_of(claims["collect"], "base file")] == ["base.safetensors"]
    data = dependencies_of(claims["collect"], "data")
    assert ["sha256:" + d["digest"]["sha256"] for d in data] == [s["sha256"] for s in sources]
    assert {d["annotations"]["license"] for d in data} == {"CC0-1.0"}


def test_ledger_metrics_energy_and_environment_are_byproducts(claims):
    names = {stage: [b["name"] for b in c["predicate"]["runDetails"]["byproducts"]] for stage, c in claims.items()}
    assert {"ledger.json", "training.json", "parity.json", "energy", "environment", "cost"} == set(names["train"])
    assert {"metrics.json", "comparison.json"} < set(names["evaluate"])


def test_times_are_utc_and_the_plan_is_recorded(claims):
    train = claims["train"]["predicate"]
    assert train["runDetails"]["metadata"]["startedOn"].endswith("Z")
    assert train["buildDefinition"]["internalParameters"]["plan"] == {"precision": "bfloat16", "threads": 2}


def test_credentials_and_the_kept_seed_are_in_no_statement(claims):
    text = canonical_json(claims).decode()
    assert "models.example/tiny.gguf" in text
    for secret in ("secret@", "user:", "hidden", "987654321123456789", '"nonce"'):
        assert secret not in text


def test_inputs_that_are_not_those_of_the_manifest_are_refused(made):
    with pytest.raises(HermitcrabError, match="other inputs"):
        statement(made["train"], [made["collect"]])
    with pytest.raises(HermitcrabError, match="other inputs"):
        statement(made["train"], [made["prepare"], made["collect"]])


def test_a_statement_is_plain_json(claims):
    assert json.loads(canonical_json(claims)) == claims
