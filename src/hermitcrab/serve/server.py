"""One process that serves one package: socket, key, model, then uvicorn until it is told to end."""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hermitcrab.errors import HermitcrabError, UsageError, needs
from hermitcrab.progress import say, warn
from hermitcrab.store import Store

PATIENCE = 5  # seconds that answers in the making may still take when the server is told to end


def start(what: str, store: Store, *, host: str, port: int, api_key: str | None, queue: int, key: Path | None,
          unverified: bool) -> tuple[dict[str, Any], Callable[[], int]]:  # fmt: skip
    """Everything but serving: what can be told (`{url, model, verified}`), and the call that serves until a signal.

    Raises:
        UsageError: a port that is taken, a key that is not there.
        HermitcrabError: a package that does not verify or cannot be loaded.
    """
    needs("starlette", "serve")
    needs("uvicorn", "serve")
    import uvicorn

    from hermitcrab.serve.api import LOOPBACK, Service, make_app
    from hermitcrab.serve.engine import load_engine
    from hermitcrab.serve.opening import open_model

    secret = read_key(api_key)
    listening = listen(host, port)  # a taken port is told now, not after a model was loaded
    try:
        local = is_loopback(listening)
        if not local and secret is None:
            warn(
                f"{host} can be reached from other machines, and no --api-key is asked for: whoever reaches it may use it"
            )
        opened = open_model(what, store, key, unverified)
        engine = load_engine(opened)
    except BaseException:
        listening.close()
        raise
    app = make_app(Service(opened, engine, queue), secret, LOOPBACK if local else ())

    class Server(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            """As uvicorn's own, but a signal that was asked to end us has done so: it is not raised again afterwards."""
            wanted = (signal.SIGINT, signal.SIGTERM)
            before = {number: signal.signal(number, self.handle_exit) for number in wanted}
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

    server = Server(uvicorn.Config(app, log_config=None, log_level="warning", access_log=False, lifespan="off",
                                   timeout_graceful_shutdown=PATIENCE, server_header=False))  # fmt: skip

    def serve() -> int:
        try:
            server.run(sockets=[listening])
        finally:
            engine.close()
        say("stopped")
        return 0

    return {"url": url_of(listening), "model": opened.name, "verified": opened.verified is not None}, serve


def read_key(where: str | None) -> str | None:
    """The key that `env:NAME` names; on a command line it would be seen by everybody on the machine."""
    if where is None:
        return None
    scheme, _, name = where.partition(":")
    if scheme != "env" or not name:
        raise UsageError("--api-key: expected env:NAME, the environment variable that holds the key")
    key = os.environ.get(name, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        raise UsageError(
            f"--api-key: the environment variable {name} {'holds no key' if not key else 'is not plain ASCII'}"
        )
    return key


def listen(host: str, port: int) -> socket.socket:
    if not 0 <= port < 1 << 16:  # the system would take it modulo 65,536
        raise UsageError(f"--port: expected 0 to 65535. Received: {port}")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (socket.gaierror, OverflowError, UnicodeError) as error:
        raise UsageError(f"--host {host} --port {port}: no such address ({error})") from error
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(128)
    except (OSError, OverflowError) as error:
        made.close()
        why = getattr(error, "strerror", None) or error
        raise HermitcrabError(f"cannot listen on {host} port {port}: {why}; --port 0 takes any that is free") from error
    return made


def is_loopback(listening: socket.socket) -> bool:
    return ipaddress.ip_address(listening.getsockname()[0].partition("%")[0]).is_loopback


def url_of(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
