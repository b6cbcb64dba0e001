"""The Open Inference Protocol, by its public client: the answers of `crab predict`, for images in every form that is taken."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest

client_library = pytest.importorskip("tritonclient.http")
pytest.importorskip("fastapi")
pytest.importorskip("torch")
import httpx
import numpy as np
from PIL import Image
from serving import KEY, Server, serve
from tiny import stripes
from tritonclient.utils import InferenceServerException

LABELS = ["diagonal/\\", "flach", "垂直"]


@pytest.fixture(scope="module")
def server(project: Path):
    made = serve(project, "shapes", "speaks", key=KEY)
    yield made
    assert made.stop() == 0


@pytest.fixture(scope="module")
def client(server: Server) -> Any:
    return client_library.InferenceServerClient(server.url.removeprefix("http://"))


HEADERS = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return stripes(6, 77)[0]


def png(pixels: np.ndarray) -> bytes:
    held = io.BytesIO()
    Image.fromarray(pixels).save(held, "PNG")
    return held.getvalue()


@pytest.fixture(scope="module")
def predicted(project: Path, images: np.ndarray, tmp_path_factory) -> list[dict[str, Any]]:
    """What `crab predict` answers."""
    folder = tmp_path_factory.mktemp("images")
    for i, pixels in enumerate(images):
        (folder / f"{i}.png").write_bytes(png(pixels))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        patch.setenv("XDG_CONFIG_HOME", str(project / "config"))
        from hermitcrab.serve.opening import open_model
        from hermitcrab.serve.predict import predict
        from hermitcrab.store import Store

        return predict(open_model("shapes", Store(".crab/store")), [str(folder)], "prompt", 8)


def same(result: Any, predicted: list[dict[str, Any]]) -> None:
    assert [text.decode() if isinstance(text, bytes) else text for text in result.as_numpy("prediction")] == [
        answer["prediction"] for answer in predicted
    ]
    scores = [list(answer["scores"].values()) for answer in predicted]
    np.testing.assert_allclose(result.as_numpy("scores"), scores, atol=1e-4)
    np.testing.assert_allclose(result.as_numpy("score"), np.max(scores, 1), atol=1e-4)
    assert result.get_output("scores")["parameters"]["labels"] == LABELS


def test_server_and_models_tell_what_they_are(client, server):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("shapes", headers=dict(HEADERS))
    assert client.get_server_metadata(headers=dict(HEADERS))["name"] == "hermitcrab"
    told = client.get_model_metadata("shapes", headers=dict(HEADERS))
    assert (told["name"], [part["name"] for part in told["inputs"]]) == ("shapes", ["input", "pixels"])
    assert not client.is_model_ready("nothing", headers=dict(HEADERS))


@pytest.mark.parametrize("binary", [True, False])
def test_pixels_as_a_tensor(client, images, predicted, binary):
    tensor = client_library.InferInput("pixels", list(images.shape), "UINT8")
    tensor.set_data_from_numpy(images, binary_data=binary)
    wanted = [
        client_library.InferRequestedOutput(name, binary_data=binary) for name in ("prediction", "score", "scores")
    ]
    for outputs in (wanted, None):
        result = client.infer("shapes", [tensor], outputs=outputs, headers=dict(HEADERS), request_id="mine")
        same(result, predicted)
        assert result.get_response()["id"] == "mine"


def test_files_as_bytes(client, images, predicted):
    files = np.array([png(pixels) for pixels in images], dtype=np.object_)
    tensor = client_library.InferInput("input", [len(files)], "BYTES")
    tensor.set_data_from_numpy(files)
    same(client.infer("shapes", [tensor], headers=dict(HEADERS)), predicted)


def test_files_in_json_and_in_a_form(server, images, predicted):
    encoded = [base64.b64encode(png(pixels)).decode() for pixels in images]
    asked = {
        "inputs": [{"name": "input", "shape": [6], "datatype": "BYTES", "data": encoded}],
        "outputs": [{"name": "prediction"}],
    }
    status, told, headers = server.post("/v2/models/shapes/infer", asked)
    (output,) = told["outputs"]
    assert (status, output["data"]) == (200, [answer["prediction"] for answer in predicted])
    assert headers["X-Model-Digest"] == told["parameters"]["digest"] == server.models[0]["digest"]
    wide = io.BytesIO()
    Image.fromarray(images[0].repeat(4, 0).repeat(4, 1)).convert("RGB").save(wide, "JPEG")
    files = [("input", ("a.png", png(images[0]))), ("input", ("b.jpg", wide.getvalue()))]
    told = httpx.post(f"{server.url}/v2/models/shapes/infer", files=files, headers=HEADERS, timeout=60).json()
    assert told["outputs"][0]["data"] == [predicted[0]["prediction"]] * 2
    assert told["parameters"]["changed"] == ["", "color to grey resized from 32 x 32"]


GOOD = {"name": "pixels", "shape": [1, 2, 2], "datatype": "UINT8", "data": [0, 1, 2, 3]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "image"}, "`inputs.0.name`"),
        ({"datatype": "FP32"}, "`inputs.0.datatype`"),
        ({"shape": [1, 2, 3]}, "has 6 elements, the data has 4"),
        ({"shape": [0, 2, 2], "data": []}, "expected 1 to 256 inputs"),
        ({"shape": [2**30, 2**30, 2]}, "elements, the data has 4"),
        ({"shape": [4]}, "`pixels` is UINT8 [N, H, W]"),
        ({"data": [0, 1, 2, 256]}, "numbers from 0 to 255"),
        ({"data": [0, 1, 2, True]}, "numbers from 0 to 255"),
        ({"data": [[[0, 1], [2, "a"]]]}, "numbers from 0 to 255"),
        ({"name": "input", "datatype": "BYTES", "shape": [1], "data": ["not base64!"]}, "expected base64"),
        ({"name": "input", "datatype": "BYTES", "shape": [1], "data": ["aGVsbG8="]}, "is no image that can be read"),
        ({"parameters": {"binary_data_size": 7}}, "0 bytes came"),
        ({"more": 1}, "unknown parameter `inputs.0.more`"),
    ],
)
def test_tensors_that_cannot_be_are_told(server, change, said):
    status, told, _ = server.post("/v2/models/shapes/infer", {"inputs": [{**GOOD, **change}]})
    assert status == 400
    assert said in told["error"]


def test_models_that_make_text_are_asked_elsewhere_and_the_other_way_round(server):
    status, told, _ = server.post("/v2/models/speaks/infer", {"inputs": [GOOD]})
    assert (status, "answers at /v1/chat/completions" in told["error"]) == (400, True)
    status, told, _ = server.post("/v1/completions", {"model": "shapes", "prompt": "a"})
    assert (status, "ask /v2/models/shapes/infer" in told["error"]["message"]) == (400, True)
    assert server.post("/v2/models/nothing/infer", {"inputs": [GOOD]})[0] == 404
    head = json.dumps({"inputs": [{**GOOD, "data": None, "parameters": {"binary_data_size": 4}}]}).encode()
    for size, status in ((len(head), 200), (len(head) + 1, 400), (10**9, 400)):
        found = server.raw(
            "POST", "/v2/models/shapes/infer", head + bytes(4), Inference_Header_Content_Length=str(size)
        )
        assert found[0] == status
    found = httpx.post(
        f"{server.url}/v2/models/shapes/infer", data={"a": "b"}, files={}, headers=dict(HEADERS), timeout=60
    )
    assert found.status_code == 415
    with pytest.raises(InferenceServerException, match="there is no model `none`"):
        client_library.InferenceServerClient(server.url.removeprefix("http://")).get_model_metadata(
            "none", headers=dict(HEADERS)
        )
    found = httpx.post(f"{server.url}/v2/models/shapes/infer", content=b"--x\r\nbroken", timeout=60,
                       headers={**HEADERS, "content-type": "multipart/form-data; boundary=x"})  # fmt: skip
    assert (found.status_code, "form" in found.json()["error"]) == (400, True)
