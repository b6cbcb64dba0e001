"""For whoever runs the server: is it alive, is it ready, its figures, its models again, and the page."""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import re
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from hermitcrab.errors import HermitcrabError
from hermitcrab.serve import shapes
from hermitcrab.serve.requests import Refusal

if TYPE_CHECKING:
    from hermitcrab.serve.api import Face

PATIENCE = 5.0  # seconds that an engine may take to say that it lives
PLAIN = "text/plain; version=0.0.4; charset=utf-8"


def router(face: Face) -> APIRouter:
    made = APIRouter(tags=["operations"], responses={status: {"model": shapes.Error} for status in (401, 403)})
    sick: dict[int | str, dict[str, Any]] = {503: {"model": shapes.Health, "description": "Not so"}}

    @made.get("/health/live", response_model=shapes.Health, responses=sick, operation_id="live")
    async def live() -> Any:
        """Whether every engine answers, not only this process."""
        return health(await not_alive(face), "dead")

    @made.get("/health/ready", response_model=shapes.Health, responses=sick, operation_id="ready")
    async def ready() -> Any:
        """Whether requests should be sent here."""
        return health(not_ready(face), "draining" if face.house.draining else "not_ready")

    @made.get("/metrics", operation_id="metrics", response_class=Response,
              responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}})  # fmt: skip
    async def metrics() -> Response:
        return Response(face.metrics.text(), headers={"content-type": PLAIN})

    @made.post("/admin/reload", response_model=shapes.Reloaded, operation_id="reload",
               responses={status: {"model": shapes.Error} for status in (401, 403, 409, 500)})  # fmt: skip
    async def reload(request: Request) -> Any:
        """The models again, as they are on disk now; no request is dropped."""
        check_admin(face, request)
        try:
            return JSONResponse({"models": await face.house.reload(face.drain)})
        except HermitcrabError as error:
            face.log("reload_failed", "error", why=str(error))
            raise Refusal(500, f"everything stays as it was: {error}", code="reload_failed") from error

    @made.get("/", include_in_schema=False)
    async def page() -> Response:
        content, policy = the_page()
        headers = {"content-security-policy": policy, "referrer-policy": "no-referrer", "cache-control": "no-cache"}
        return Response(content, media_type="text/html; charset=utf-8", headers=headers)

    return made


def health(wrong: list[str], status: str) -> JSONResponse:
    return JSONResponse({"status": status if wrong else "ok", "why": wrong}, 503 if wrong else 200)


async def not_alive(face: Face) -> list[str]:
    return [
        f"the engine of {tenancy.name} ({tenancy.engine}) did not answer within {PATIENCE:g} seconds"
        for tenancy in list(face.house.models.values())
        if not await tenancy.alive(PATIENCE)
    ]


def not_ready(face: Face) -> list[str]:
    house = face.house
    if house.draining:
        return ["the server is about to end"]
    starting = [
        f"the engine of {tenancy.name} is being started again"
        for tenancy in house.models.values()
        if tenancy.worker is not None and not tenancy.worker.ready
    ]
    return [*house.look(), *starting]


def check_admin(face: Face, request: Request) -> None:
    """Only from this machine, and only with a key.

    Raises:
        Refusal: 403.
    """
    if not face.reloads:
        raise Refusal(403, "this is one of several replicas; SIGHUP to `crab serve` replaces them all", code="not_here")
    client = request.client.host if request.client else ""
    try:
        local = ipaddress.ip_address(client.partition("%")[0]).is_loopback
    except ValueError:
        local = False
    if not local:
        raise Refusal(403, "models are reloaded from this machine only", code="not_local")
    if not face.keys:
        raise Refusal(403, "this server has no keys, so nobody may reload over HTTP; send it SIGHUP", code="no_keys")


@cache
def the_page() -> tuple[bytes, str]:
    """The page and its policy: its own style and script, by digest, and requests to this server alone."""
    content = (files("hermitcrab.serve") / "page.html").read_bytes()

    def digests(tag: bytes) -> str:
        found = re.findall(rb"<%b>(.*?)</%b>" % (tag, tag), content, re.DOTALL)
        return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(part).digest()).decode()}'" for part in found)

    policy = (
        f"default-src 'none'; script-src {digests(b'script')}; style-src {digests(b'style')}; connect-src 'self'; "
        "img-src blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return content, policy
