"""The official JavaScript client, in a node of this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("torch")
from serving import KEY, PATIENCE, serve

GOOD = "寄居蟹🦀住在壳里。"  # what conftest has it learn
VERSION = "7.57.0"


@pytest.fixture(scope="module")
def client(tmp_path_factory) -> Path:
    """A folder with the client, as npm installs it: nothing is put beside this project."""
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("needs node and npm: apt-get install nodejs npm")
    folder = tmp_path_factory.mktemp("javascript")
    (folder / "package.json").write_text('{"private": true, "type": "module"}')
    made = subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", f"openai@{VERSION}"], cwd=folder,
                          capture_output=True, text=True)  # fmt: skip
    if made.returncode:
        pytest.skip(f"npm cannot install the client from its registry: {made.stderr[-200:]}")
    shutil.copy(Path(__file__).with_name("client.mjs"), folder)
    return folder


def test_the_official_client_of_javascript(client, project):
    server = serve(project, "speaks", key=KEY)
    try:
        command = ["node", "client.mjs", f"{server.url}/v1", "speaks", "the weather is good at 6"]
        ran = subprocess.run(
            command,
            cwd=client,
            env={**os.environ, "CRAB_TEST_KEY": KEY},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert ran.returncode == 0, ran.stderr
        told = json.loads(ran.stdout)
        assert told["models"] == ["speaks"]
        assert told["whole"] == "".join(told["pieces"]) == told["final"] == GOOD
        assert told["usage"] == told["streamed"]
        assert told["likelihoods"] == told["usage"]["completion_tokens"]
        assert told["fingerprint"] == server.models[0]["digest"]
        assert told["unknown"] == {
            "kind": "BadRequestError",
            "status": 400,
            "code": "unknown_parameter",
            "param": "temprature",
        }
        assert told["missing"] == {"kind": "NotFoundError", "status": 404, "code": "model_not_found", "param": "model"}
        assert told["key"] == "AuthenticationError"
        server.until_idle()
    finally:
        server.stop()
