"""Two replicas under a real Ray on this machine: the same application, and one of them killed in the middle."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="needs ray[serve]")
pytest.importorskip("torch")
openai = pytest.importorskip("openai")
import psutil
from serving import KEY, Server, serve

pytestmark = pytest.mark.slow
ASKED = {"model": "plain", "prompt": "the weather is", "max_tokens": 30}


@pytest.fixture(scope="module")
def server(project: Path):
    made = serve(
        project, "plain", "--unverified", "--cluster", "ray://local", "--replicas", "2", "--drain", "5", key=KEY
    )
    yield made
    assert made.stop() == 0


def replicas(server: Server) -> dict[int, psutil.Process]:
    """The processes of the replicas, by what Ray calls them; each has an engine."""
    found = {}
    for process in psutil.process_iter():
        try:
            if "hermitcrab.serve.engines.process" in process.cmdline():
                parent = process.parent()
                if parent is not None and "ServeReplica" in " ".join(parent.cmdline()):
                    found[parent.pid] = parent
        except psutil.Error:
            continue
    return found


def test_replicas_answer_as_one_and_one_may_be_killed(server):
    expected = server.client.completions.create(**ASKED).choices[0].text
    first = replicas(server)
    assert len(first) == 2
    status, _, headers = server.post("/v1/completions", ASKED)
    assert (status, headers["X-Model-Digest"]) == (200, server.models[0]["digest"])
    assert server.raw("GET", "/v1/models", Authorization="")[0] == 401
    assert server.raw("POST", "/admin/reload")[1]["error"]["code"] == "not_here"
    chunks = list(server.client.completions.create(**ASKED, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected
    assert len(chunks) > 10

    until = time.monotonic() + 20
    client = server.client.with_options(max_retries=5)

    def ask(_: int) -> list[str]:
        found = []
        while time.monotonic() < until:
            found.append(client.completions.create(**ASKED).choices[0].text)
        return found

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask, i) for i in range(4)]
        time.sleep(3)
        killed = next(iter(first.values()))
        killed.kill()
        texts = [text for done in asking for text in done.result()]
    assert set(texts) == {expected}
    assert len(texts) > 8
    ends = time.monotonic() + 120
    while len(now := replicas(server)) < 2:
        assert time.monotonic() < ends, "it was not replaced"
        time.sleep(0.5)
    assert killed.pid not in now
