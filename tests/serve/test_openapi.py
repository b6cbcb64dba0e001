"""The OpenAPI document is one that tools can use, and the server answers what it says, to whatever it says may be asked."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest

schemathesis = pytest.importorskip("schemathesis")
pytest.importorskip("torch")
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode, checks
from schemathesis.specs.openapi import checks as openapi_checks
from serving import KEY, PATIENCE, Server, serve

EXAMPLES = 15

CHECKS = [
    checks.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_schema_conformance,
    openapi_checks.response_headers_conformance,
]


@pytest.fixture(scope="module")
def server(project):
    made = serve(project, "plain", "--unverified", "--queue", "64", key=KEY)
    yield made
    assert made.process.poll() is None
    assert made.stop() == 0


def test_the_document_names_every_path_and_every_key(server: Server):
    status, told, _ = server.raw("GET", "/openapi.json")
    assert status == 200
    assert set(told["paths"]) >= {
        "/v1/models", "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v2/models/{name}/infer", "/lineage",
        "/health/live", "/health/ready", "/metrics", "/admin/reload",
    }  # fmt: skip
    properties = told["components"]["schemas"]["ChatRequest"]["properties"]
    assert set(properties) >= {"model", "messages", "stream", "tools", "response_format", "logprobs"}
    assert told["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    missing = [ref for ref in refs(told) if ref.rpartition("/")[2] not in told["components"]["schemas"]]
    assert missing == []


def refs(part):
    if isinstance(part, dict):
        yield from ([part["$ref"]] if isinstance(part.get("$ref"), str) else [])
        for inner in part.values():
            yield from refs(inner)
    elif isinstance(part, list):
        for inner in part:
            yield from refs(inner)


def test_whatever_is_asked_is_answered_as_the_document_says(server: Server):
    """Generated from the document, valid and not: every field of every wrong type."""
    document = server.raw("GET", "/openapi.json")[1]
    for name in ("ChatRequest", "CompletionRequest"):  # short answers: what is tested is not the engine
        document["components"]["schemas"][name]["properties"]["max_tokens"] = {
            "type": "integer",
            "minimum": 1,
            "maximum": 4,
        }
        document["components"]["schemas"][name]["properties"]["model"] = {"type": "string", "enum": ["plain", "none"]}
    del document["paths"]["/admin/reload"]
    schema = schemathesis.openapi.from_dict(document)
    tried = {}
    for found in schema.get_all_operations():
        for mode in GenerationMode:
            with contextlib.suppress(Unsatisfiable, ValueError):  # where a request has nothing that could be wrong
                tried[found.ok().label, mode] = ask(server, found.ok().as_strategy(generation_mode=mode))
    posts = [count for (label, _), count in tried.items() if label.startswith("POST")]
    assert len(posts) == 8
    assert min(posts) >= EXAMPLES


def ask(server: Server, cases: Any) -> int:
    count = 0

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases)
    def run(case: Any) -> None:
        nonlocal count
        count += 1
        response = case.call(base_url=server.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=PATIENCE)
        case.validate_response(response, checks=CHECKS)

    run()
    return count


def test_every_field_of_a_wrong_type_is_refused_by_its_name(server: Server):
    properties = server.raw("GET", "/openapi.json")[1]["components"]["schemas"]["ChatRequest"]["properties"]
    good = {"model": "plain", "messages": [{"role": "user", "content": "a"}], "max_tokens": 2}
    values = [True, 1, 1.5, "x", [], {}, [1], {"a": 1}, -1, 1e300, [[]], [None]]
    refused = dict.fromkeys(properties, 0)
    for name in properties:
        for value in values:
            status, told, _ = server.raw("POST", "/v1/chat/completions", json.dumps({**good, name: value}).encode())
            assert status in (200, 400, 404), (name, value, told)
            if status == 400:
                refused[name] += 1
                assert (told["error"]["param"] or name).partition(".")[0] in (
                    name,
                    "max_tokens",
                    "messages",
                    "tool_choice",
                    "tools",
                ), told
    assert all(count >= 6 for count in refused.values()), refused
