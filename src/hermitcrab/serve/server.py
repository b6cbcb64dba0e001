"""One process that serves: socket, keys, models, then uvicorn until it is told to end.

SIGTERM, SIGINT   not ready, nothing new is taken, what runs may finish within `drain` seconds; a second one ends at once
SIGHUP            the models again, as they are on disk now
"""

from __future__ import annotations

import asyncio
import importlib
import ipaddress
import logging
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hermitcrab.errors import HermitcrabError, UsageError, needs
from hermitcrab.progress import say, set_sink, warn

if TYPE_CHECKING:
    import uvicorn

    from hermitcrab.serve.house import House
    from hermitcrab.serve.logs import Log
    from hermitcrab.serve.setup import Setup
    from hermitcrab.serve.spare import Spare

BACKLOG = 2048  # connections that may wait to be accepted
FILES = 65_536  # open at once, where the system lets us


def start(
    setup: Setup,
    *,
    host: str,
    port: int,
    cert: Path | None = None,
    key: Path | None = None,
    spare: Spare | None = None,
) -> tuple[dict[str, Any], Callable[[], int]]:
    """Everything but serving: what can be told (`{url, models}`), and the call that serves until a signal.

    Raises:
        UsageError: a port that is taken, a key that is not there.
        HermitcrabError: a package that does not verify or cannot be loaded.
    """
    for module in ("uvicorn", "httptools", "prometheus_client"):
        needs(module, "serve")
    from hermitcrab.serve.logs import Log
    from hermitcrab.serve.setup import closing_on_error

    setup.check()
    keys = setup.keys()
    check_tls(cert, key)
    raise_file_limit()
    listening = listen(host, port)  # a taken port is told now, not after a model was loaded
    with closing_on_error(listening):
        local = is_loopback(listening)
        if not local and not keys:
            warn(f"{host} can be reached from other machines, and no key is asked for: whoever reaches it may use it")
        log = Log(texts=setup.texts)
        house = setup.house(log, spare)
        runner = asyncio.Runner(loop_factory=loop_factory())
        with closing_on_error(runner):
            house.models = runner.run(_load(house))
        from hermitcrab.serve.api import Face, make_app
        from hermitcrab.serve.door import LOOPBACK
        from hermitcrab.serve.metrics import Metrics

        metrics = Metrics(house.gauges)
        hosts = LOOPBACK if local else ()
        face = Face(house, log, metrics, keys, setup.limits, hosts, setup.origins, setup.public, setup.drain)
        server = make_server(make_app(face), house, log, setup.drain, cert, key)

    def serve() -> int:
        set_sink(lambda level, text: log("said", level, message=text))
        with runner:
            try:
                runner.run(_serve(server, house, listening))
            finally:
                runner.run(house.close(0))
                set_sink(None)
        say("stopped")
        return 0

    return {"url": url_of(listening, cert is not None), "models": house.told()}, serve


async def _load(house: House) -> Any:
    """The models; what the face needs is imported while their engines load."""
    loading = asyncio.create_task(house.load(house.open()))
    await asyncio.sleep(0)
    await asyncio.to_thread(needs, "fastapi", "serve")
    await asyncio.to_thread(importlib.import_module, "hermitcrab.serve.api")
    return await loading


async def _serve(server: uvicorn.Server, house: House, listening: socket.socket) -> None:
    watching = asyncio.create_task(house.watch())
    try:
        await server.serve(sockets=[listening])
    finally:
        watching.cancel()


def make_server(app: Any, house: House, log: Log, drain: float, cert: Path | None, key: Path | None) -> uvicorn.Server:
    import uvicorn

    from hermitcrab.serve.protocol import BoundedProtocol

    class Server(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, self.end)
            loop.add_signal_handler(signal.SIGHUP, self.reload)
            try:
                yield
            finally:
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                    loop.remove_signal_handler(number)

        def end(self) -> None:
            if house.draining:
                log("ending_now")
                self.should_exit = self.force_exit = True
                return
            house.draining = True
            log("draining", answers=house.active, seconds=drain)
            self.draining = asyncio.create_task(self.drain())

        async def drain(self) -> None:
            until = asyncio.get_running_loop().time() + drain
            while house.active and asyncio.get_running_loop().time() < until:
                await asyncio.sleep(0.05)
            if house.active:
                log("drain_over", "warning", answers=house.active)
            self.should_exit = True

        def reload(self) -> None:
            self.reloading = asyncio.create_task(self.reload_models())

        async def reload_models(self) -> None:
            try:
                await house.reload(drain)
            except HermitcrabError as error:
                log("reload_failed", "error", why=str(error))

    _hand_over(log)
    config = uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="none",
        log_config=None,
        log_level="warning",
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=1,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        ssl_certfile=cert,
        ssl_keyfile=key,
    )
    try:
        config.load()
    except (OSError, ValueError) as error:
        raise UsageError(f"--tls-cert, --tls-key: they are no certificate with its key: {error}") from error
    return Server(config)


def _hand_over(log: Log) -> None:
    """What uvicorn has to say goes into the log of the server, as its other lines."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            log("http", record.levelname.lower(), message=record.getMessage()[:500])

    for name in ("uvicorn.error", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [Handler(logging.WARNING)], False


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ModuleNotFoundError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def raise_file_limit() -> None:
    """Every stream is an open file: as many as the system lets this process have, up to `FILES`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def check_tls(cert: Path | None, key: Path | None) -> None:
    if (cert is None) != (key is None):
        raise UsageError("--tls-cert and --tls-key go together")
    for name, path in (("--tls-cert", cert), ("--tls-key", key)):
        if path is not None and not path.is_file():
            raise UsageError(f"{name}: no such file: {path}")


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
        made.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        made.close()
        why = getattr(error, "strerror", None) or error
        raise HermitcrabError(f"cannot listen on {host} port {port}: {why}; --port 0 takes any that is free") from error
    return made


def is_loopback(listening: socket.socket) -> bool:
    return ipaddress.ip_address(listening.getsockname()[0].partition("%")[0]).is_loopback


def url_of(listening: socket.socket, tls: bool = False) -> str:
    host, port = listening.getsockname()[:2]
    return f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"
