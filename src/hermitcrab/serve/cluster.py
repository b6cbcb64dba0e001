"""The same application under Ray Serve: replicas behind Ray's proxy, each with an engine of its own.

    ray://local       a Ray of this machine, started for this server and ended with it
    ray://HOST:PORT   a cluster that runs already; packages and store are at the same paths on its machines

What one process keeps is kept by each replica: a key's limits are those of one replica, and figures are its own. A replica that dies
is replaced by Ray; the answers that it was making are lost, and its clients are told by the connection.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from hermitcrab.errors import HermitcrabError, UsageError, needs
from hermitcrab.progress import say, warn
from hermitcrab.serve.setup import Setup

APP = "hermitcrab"
PATIENCE = 600.0  # seconds in which the replicas must be there: a large model takes its time
ASIDE = 64  # requests at once besides those for answers: health, models, the page


class Replica:
    """One replica: what `server.start` makes in one process. Ray calls the constructor, and is given the application."""

    async def __init__(  # type: ignore[misc]  # Ray awaits it
        self, setup: Setup, keys: list[tuple[Any, ...]], hosts: tuple[str, ...], generation: int
    ):
        from hermitcrab.serve.api import Face, make_app
        from hermitcrab.serve.keys import Key, Keys
        from hermitcrab.serve.logs import Log
        from hermitcrab.serve.metrics import Metrics

        log = Log(texts=setup.texts)
        self.house = setup.house(log)
        self.house.models = await self.house.load(self.house.open())
        self.watching = asyncio.create_task(self.house.watch())
        held = Keys([Key(*key) for key in keys])
        face = Face(self.house, log, Metrics(self.house.gauges), held, setup.limits, hosts, setup.origins, setup.public,
                    setup.drain, reloads=False)  # fmt: skip
        self.made = make_app(face)

    def models(self) -> list[dict[str, Any]]:
        return self.house.told()

    def __serve_build_asgi_app__(self) -> Any:
        return self.made

    async def check_health(self) -> None:
        for tenancy in self.house.models.values():
            if not await tenancy.alive(5.0):
                raise RuntimeError(f"the engine of {tenancy.name} does not answer")

    async def __del__(self) -> None:
        self.watching.cancel()
        await self.house.close(0)


def start(
    setup: Setup, cluster: str, replicas: int, *, host: str, port: int
) -> tuple[dict[str, Any], Callable[[], int]]:
    """Replicas that answer, and the call that waits until a signal ends them. SIGHUP replaces them one after the other.

    Raises:
        UsageError: no such cluster, a model that is not there.
        HermitcrabError: the replicas do not come up; why is in Ray's log.
    """
    address = _address(cluster)
    ray, serve = needs("ray", "ray"), needs("ray.serve", "ray")
    from hermitcrab.serve.door import LOOPBACK
    from hermitcrab.serve.server import is_loopback, listen, url_of

    setup.check()
    keys = [(key.name, key.hash, key.requests_per_minute, key.concurrent) for key in setup.keys().keys]
    setup = _everywhere(setup)
    with listen(host, port) as free:  # a taken port is told now, not after Ray was started
        local, (_, port) = is_loopback(free), free.getsockname()[:2]
        url = url_of(free)
    if not local and not keys:
        warn(f"{host} can be reached from other machines, and no key is asked for: whoever reaches it may use it")
    ray.init(
        address=address,
        log_to_driver=False,
        include_dashboard=False if address == "local" else None,
        logging_level="warning",
    )
    serve.start(http_options={"host": host, "port": port}, proxy_location="HeadOnly")
    hosts = LOOPBACK if local else ()

    def deploy(generation: int) -> Any:
        most = setup.slots + setup.queue + ASIDE
        made = serve.deployment(serve.ingress()(Replica), name="models", num_replicas=replicas, max_ongoing_requests=most,
                                max_queued_requests=most, graceful_shutdown_timeout_s=setup.drain, health_check_period_s=5)  # fmt: skip
        try:
            return serve.run(made.bind(setup, keys, hosts, generation), name=APP, route_prefix="/")
        except Exception as error:
            raise HermitcrabError(f"the replicas did not come up: {' '.join(str(error).split())[:300]}") from error

    try:
        models = deploy(0).models.remote().result(timeout_s=PATIENCE)
    except BaseException:
        _end(ray, serve, address)
        raise
    return {"url": url, "models": models, "replicas": replicas, "cluster": cluster}, lambda: _until_told(
        ray, serve, address, deploy
    )


def _address(cluster: str) -> str:
    scheme, _, rest = cluster.partition("://")
    if scheme != "ray" or not rest:
        raise UsageError(f"--cluster: expected ray://local or ray://HOST:PORT. Received: {cluster[:100]}")
    return "local" if rest == "local" else cluster


def _everywhere(setup: Setup) -> Setup:
    """The same from any folder: replicas do not start where the user stands."""
    models = tuple(
        str(Path(what).expanduser().absolute()) if Path(what).expanduser().exists() else what for what in setup.models
    )
    return replace(setup, models=models, store=setup.store.absolute(), signer=setup.signer and setup.signer.absolute(),
                   api_keys=(), key_file=None)  # fmt: skip


def _until_told(ray: Any, serve: Any, address: str, deploy: Callable[[int], Any]) -> int:
    told, ended, generation = threading.Event(), threading.Event(), 0
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

    def end(*_: Any) -> None:
        if ended.is_set():
            raise KeyboardInterrupt  # told twice
        ended.set()
        told.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    signal.signal(signal.SIGHUP, lambda *_: told.set())
    try:
        while not ended.is_set():
            told.wait(1.0)  # not for good: a signal is only handled between two of these
            if told.is_set() and not ended.is_set():
                told.clear()
                generation += 1
                try:
                    deploy(generation)
                    say(f"replaced the replicas, generation {generation}")
                except HermitcrabError as error:
                    warn(str(error))
    finally:
        _end(ray, serve, address)
        for number, handler in before.items():
            signal.signal(number, handler)
    say("stopped")
    return 0


def _end(ray: Any, serve: Any, address: str) -> None:
    if address == "local":
        serve.shutdown()
    else:
        serve.delete(APP)  # the cluster and what else runs on it are not ours
    ray.shutdown()
