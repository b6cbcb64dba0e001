"""The Open Inference Protocol (KServe v2), for every task but text: https://kserve.github.io/website/docs/concepts/architecture/data-plane

    GET  /v2   /v2/health/live   /v2/health/ready   /v2/models/{name}   /v2/models/{name}/ready
    POST /v2/models/{name}/infer      JSON with tensors, Triton's binary extension, or multipart/form-data with files

Inputs, one of them: `input`, BYTES [N], each the bytes of a file (in JSON as base64), or `pixels`, UINT8 [N, H, W] or [N, H, W, C].
Outputs: `prediction` BYTES [N], `score` FP64 [N], and `scores` FP64 [N, K] where the task has labels, which are in its parameters.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import struct
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from hermitcrab.data.images import encode_png
from hermitcrab.errors import HermitcrabError
from hermitcrab.serve import shapes
from hermitcrab.serve.door import body_of
from hermitcrab.serve.house import House, Tenancy
from hermitcrab.serve.metrics import Metrics
from hermitcrab.serve.requests import Refusal, first_problem, read_json, shown

MOST_INPUTS = 256  # of one request
HEADER = "inference-header-content-length"
EXTENSIONS = ["binary_tensor_data"]
INPUTS = [
    {"name": "input", "datatype": "BYTES", "shape": [-1]},
    {"name": "pixels", "datatype": "UINT8", "shape": [-1, -1, -1, -1]},
]
OUTPUTS = [
    {"name": "prediction", "datatype": "BYTES", "shape": [-1]},
    {"name": "score", "datatype": "FP64", "shape": [-1]},
    {"name": "scores", "datatype": "FP64", "shape": [-1, -1]},
]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class InputTensor(_Part):
    name: Literal["input", "pixels"]
    shape: Annotated[list[Annotated[int, Field(ge=0, lt=1 << 31)]], Field(min_length=1, max_length=4)]
    datatype: Literal["BYTES", "UINT8"]
    parameters: dict[str, Any] = {}
    data: list[Any] | None = None


class WantedTensor(_Part):
    name: Literal["prediction", "score", "scores"]
    parameters: dict[str, Any] = {}


class InferRequest(_Part):
    id: str | None = None
    parameters: dict[str, Any] = {}
    inputs: Annotated[list[InputTensor], Field(min_length=1, max_length=1)]
    outputs: Annotated[list[WantedTensor], Field(max_length=3)] = []


def router(house: House, metrics: Metrics) -> APIRouter:
    made = APIRouter(tags=["open inference protocol"], responses={s: {"model": shapes.Wrong} for s in (401, 403)})
    unknown: dict[int | str, dict[str, Any]] = {s: {"model": shapes.Wrong} for s in (404,)}
    wrong: dict[int | str, dict[str, Any]] = {
        s: {"model": shapes.Wrong} for s in (400, 401, 403, 404, 408, 413, 415, 429, 503, 504)
    }

    @made.get("/v2", response_model=shapes.ServerMetadata, operation_id="v2_server")
    async def server() -> Any:
        return JSONResponse({"name": "hermitcrab", "version": version("hermitcrab"), "extensions": EXTENSIONS})

    @made.get("/v2/health/live", response_model=shapes.Live, operation_id="v2_live")
    async def live() -> Any:
        good = all([await tenancy.alive(5.0) for tenancy in list(house.models.values())])
        return JSONResponse({"live": good}, 200 if good else 503)

    @made.get("/v2/health/ready", response_model=shapes.Ready, operation_id="v2_ready")
    async def ready() -> Any:
        good = not house.draining and not house.look()
        return JSONResponse({"ready": good}, 200 if good else 503)

    @made.get("/v2/models/{name}", response_model=shapes.ModelMetadata, responses=unknown, operation_id="v2_model")
    async def model(name: str) -> Any:
        tenancy = house.find(name)
        known = tenancy.predicts
        told = {"name": tenancy.name, "versions": ["1"], "platform": f"hermitcrab_{tenancy.engine}",
                "inputs": INPUTS if known else [], "outputs": OUTPUTS if known else []}  # fmt: skip
        return JSONResponse(told, headers={"x-model-digest": tenancy.digest})

    @made.get("/v2/models/{name}/ready", response_model=shapes.Ready, responses=unknown, operation_id="v2_model_ready")
    async def model_ready(name: str) -> Any:
        good = not house.draining and house.find(name).look() is None
        return JSONResponse({"ready": good}, 200 if good else 503)

    @made.post("/v2/models/{name}/infer", response_model=shapes.Inferred, responses=wrong, operation_id="v2_infer",
               openapi_extra=_takes())  # fmt: skip
    async def infer(name: str, request: Request) -> Response:
        with house.visit(name) as tenancy:
            return await _infer(house, metrics, tenancy, request)

    return made


def _takes() -> dict[str, Any]:
    files = {
        "type": "object",
        "properties": {"input": {"type": "array", "items": {"type": "string", "format": "binary"}}},
        "required": ["input"],
    }
    content = {
        "application/json": {"schema": {"$ref": "#/components/schemas/InferRequest"}},
        "multipart/form-data": {"schema": files},
    }
    return {"requestBody": {"required": True, "content": content}}


async def _infer(house: House, metrics: Metrics, tenancy: Tenancy, request: Request) -> Response:
    began = time.perf_counter()
    if not tenancy.predicts:
        place = "/v1/embeddings" if tenancy.embeds else "/v1/chat/completions"
        raise Refusal(400, f"`{tenancy.name}` answers at {place}", None, "model_not_supported")
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        asked, inputs = None, await _files(request)
    else:
        asked, inputs = _tensors(await _body(request), request.headers.get(HEADER))
    with house.room(tenancy, 1):
        try:
            answers = await tenancy.predict(inputs)
        except HermitcrabError as error:
            raise Refusal(400, str(error), "input", "invalid_value") from error
    metrics.whole.labels(tenancy.name).observe(time.perf_counter() - began)
    metrics.success.labels(tenancy.name, "stop").inc(len(inputs))
    return _reply(tenancy, asked, answers)


async def _body(request: Request) -> bytes:
    """JSON, perhaps with binary data behind it. Triton's client does not say what it sends; the door keeps pages of others out."""
    given = request.headers.get("content-type", "")
    return await request.body() if given in ("", "application/octet-stream") else await body_of(request)


async def _files(request: Request) -> list[tuple[str, bytes]]:
    """The files of a form, in their order."""
    try:
        async with request.form(max_files=MOST_INPUTS, max_fields=16) as form:
            parts = [part for _, part in form.multi_items()]
            found = [
                (part.filename or f"file {i}", await part.read())
                for i, part in enumerate(parts, 1)
                if isinstance(part, UploadFile)
            ]
    except MultiPartException as error:
        raise Refusal(400, f"the form cannot be read: {error.message}", None, "invalid_form") from error
    except Exception as error:
        if type(error).__name__ == "HTTPException":  # how FastAPI passes a form that cannot be read on
            raise Refusal(400, "the form cannot be read", None, "invalid_form") from error
        raise
    if not found or len(found) < len(parts):
        raise Refusal(
            400, "the form holds no file, or fields that are none; send each input as a file", "input", "invalid_form"
        )
    return [(name[:100], data) for name, data in found]


def _tensors(body: bytes, header: str | None) -> tuple[InferRequest, list[tuple[str, bytes]]]:
    """A request and its inputs.

    Raises:
        Refusal: 400, a tensor that is none of ours, or whose data do not go with its shape.
    """
    size = len(body)
    if header is not None:
        if not header.isdigit() or int(header) > len(body):
            raise Refusal(
                400, f"{HEADER}: expected a size within the body. Received: {header[:20]}", None, "invalid_value"
            )
        size = int(header)
    value = read_json(body[:size], "the body")
    if not isinstance(value, dict):
        raise Refusal(400, f"the body is no JSON object. Received: {shown(value)}", code="invalid_json")
    try:
        asked = InferRequest.model_validate(value)
    except ValidationError as error:
        raise first_problem(error) from error
    tensor = asked.inputs[0]
    binary = tensor.parameters.get("binary_data_size")
    if binary is None and size < len(body):
        raise Refusal(
            400, "the body goes on behind its JSON, and no input has `binary_data_size`", "inputs.0", "invalid_value"
        )
    if binary is not None and (type(binary) is not int or size + binary != len(body) or tensor.data is not None):
        raise Refusal(
            400,
            f"`binary_data_size`: {len(body) - size:,} bytes came. Received: {shown(binary)}",
            "inputs.0",
            "invalid_value",
        )
    raw = None if binary is None else body[size:]
    found = _bytes(tensor, raw) if tensor.name == "input" else _pixels(tensor, raw)
    if not 0 < len(found) <= MOST_INPUTS:
        raise Refusal(
            400, f"`inputs.0`: expected 1 to {MOST_INPUTS} inputs. Received: {len(found)}", "inputs.0", "invalid_value"
        )
    return asked, [(f"input {i}", data) for i, data in enumerate(found, 1)]


def _bytes(tensor: InputTensor, raw: bytes | None) -> list[bytes]:
    if tensor.datatype != "BYTES":
        raise Refusal(400, "`inputs.0.datatype`: `input` is BYTES", "inputs.0.datatype", "invalid_value")
    found, at = [], 0
    if raw is None:
        for place, part in enumerate(_flat(tensor.data or [])):
            try:
                found.append(base64.b64decode(part, validate=True))
            except (binascii.Error, TypeError, ValueError) as error:
                raise Refusal(
                    400,
                    f"`inputs.0.data.{place}`: expected base64. Received: {shown(part)}",
                    "inputs.0.data",
                    "invalid_value",
                ) from error
    else:
        while at < len(raw):
            (size,) = struct.unpack_from("<I", raw.ljust(at + 4, b"\0"), at)
            if at + 4 + size > len(raw):
                raise Refusal(400, "`inputs.0`: an element is longer than the data", "inputs.0", "invalid_value")
            found.append(raw[at + 4 : at + 4 + size])
            at += 4 + size
    _check_count(tensor, len(found))
    return found


def _pixels(tensor: InputTensor, raw: bytes | None) -> list[bytes]:
    """Images as arrays, as the bytes of a PNG each: every image takes the same way from here."""
    if (
        tensor.datatype != "UINT8"
        or len(tensor.shape) not in (3, 4)
        or (len(tensor.shape) == 4 and tensor.shape[3] not in (1, 3))
    ):
        raise Refusal(400, "`inputs.0`: `pixels` is UINT8 [N, H, W] or [N, H, W, 1 or 3]", "inputs.0", "invalid_value")
    if raw is None:
        flat = _flat(tensor.data or [])
        if not all(type(part) is int and 0 <= part < 256 for part in flat):
            raise Refusal(400, "`inputs.0.data`: expected numbers from 0 to 255", "inputs.0.data", "invalid_value")
        raw = bytes(flat)
    _check_count(tensor, len(raw))
    count, height, width = tensor.shape[:3]
    channels = tensor.shape[3] if len(tensor.shape) == 4 else 1
    size = height * width * channels
    if not size:
        raise Refusal(400, "`inputs.0.shape`: an image has no pixel", "inputs.0.shape", "invalid_value")
    return [encode_png(raw[i * size : (i + 1) * size], height, width, channels) for i in range(count)]


def _flat(data: Sequence[Any]) -> list[Any]:
    """Tensors may come nested or flat."""
    while any(isinstance(part, list) for part in data):
        data = [inner for part in data for inner in (part if isinstance(part, list) else [part])]
    return list(data)


def _check_count(tensor: InputTensor, found: int) -> None:
    wanted = math.prod(tensor.shape)
    if found != wanted:
        raise Refusal(
            400,
            f"`inputs.0.shape`: {tensor.shape} has {wanted:,} elements, the data has {found:,}",
            "inputs.0.shape",
            "invalid_value",
        )


def _reply(tenancy: Tenancy, asked: InferRequest | None, answers: list[dict[str, Any]]) -> Response:
    count = len(answers)
    outputs: list[dict[str, Any]] = [
        {"name": "prediction", "shape": [count], "datatype": "BYTES", "data": [str(a["prediction"]) for a in answers]},
        {"name": "score", "shape": [count], "datatype": "FP64", "data": [a["score"] for a in answers]},
    ]
    if labels := list(answers[0].get("scores", {})):
        data = [score for answer in answers for score in answer["scores"].values()]
        outputs.append(
            {
                "name": "scores",
                "shape": [count, len(labels)],
                "datatype": "FP64",
                "parameters": {"labels": labels},
                "data": data,
            }
        )
    wanted = {part.name: part for part in asked.outputs} if asked else {}
    if wanted:
        outputs = [part for part in outputs if part["name"] in wanted]
    parameters = {"digest": tenancy.digest, "changed": [" ".join(a.get("changed", [])) for a in answers]}
    told = {"model_name": tenancy.name, "model_version": "1", **({"id": asked.id} if asked and asked.id else {}),
            "parameters": parameters, "outputs": outputs}  # fmt: skip
    all_binary = bool(asked and asked.parameters.get("binary_data_output"))
    binary = b""
    for part in outputs:
        asks = wanted[part["name"]].parameters.get("binary_data", all_binary) if part["name"] in wanted else all_binary
        if asks is True:
            packed = _packed(part)
            part["parameters"] = {**part.get("parameters", {}), "binary_data_size": len(packed)}
            binary += packed
    headers = {"x-model-digest": tenancy.digest}
    if not binary:
        return JSONResponse(told, headers=headers)
    head = json.dumps(told, ensure_ascii=False).encode()
    headers[HEADER] = str(len(head))
    return Response(head + binary, media_type="application/octet-stream", headers=headers)


def _packed(part: dict[str, Any]) -> bytes:
    """The data of an output in Triton's binary form, taken out of it."""
    data = part.pop("data")
    if part["datatype"] == "BYTES":
        texts = [text.encode() for text in data]
        return b"".join(struct.pack("<I", len(text)) + text for text in texts)
    return struct.pack(f"<{len(data)}d", *data)
