"""One file of a web server. A redirect is followed to public addresses alone: a server must not make us ask our own network.

The address that was judged is the one that is connected to, so that a name cannot mean another machine a moment later. Where the recipe
trusts a server (`redirects: any`), it may point anywhere.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urljoin, urlsplit

from hermitcrab.digest import digest_json
from hermitcrab.errors import HermitcrabError, UsageError, needs
from hermitcrab.fetching import Broken, Mark
from hermitcrab.references import without_credentials

CONNECT, READ = 15.0, 60.0  # seconds without an answer, or without a byte
HOPS = 8
CHUNK = 1 << 18
ANYWHERE = " redirects:any"


class Web:
    def __init__(self, reference: str):
        self.url, self.anywhere = reference.removesuffix(ANYWHERE), reference.endswith(ANYWHERE)
        self.uri, self.key = without_credentials(self.url), digest_json(self.url)
        if not urlsplit(self.url).hostname or not urlsplit(self.url).path.strip("/"):
            raise UsageError(f"{self.uri}: expected https://HOST/PATH")

    def look(self) -> Mark:
        with self._get({}) as answer:
            self._judge(answer, (200,))
            size = answer.headers.get("Content-Length", "")
            return Mark(
                answer.headers.get("ETag"), answer.headers.get("Last-Modified"), int(size) if size.isdigit() else None
            )

    @contextmanager
    def open(self, start: int, mark: Mark) -> Iterator[tuple[int, Iterator[bytes]]]:
        strong = mark.tag if mark.tag and not mark.tag.startswith("W/") else None
        ask = {"Range": f"bytes={start}-", "If-Range": strong} if start and strong else {}
        with self._get(ask) as answer:
            self._judge(answer, (200, 206))
            if answer.headers.get("ETag") != mark.tag:
                raise HermitcrabError(f"{self.uri}: changed while it was downloaded; run again")
            part = answer.status == 206
            if part and not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                raise HermitcrabError(f"{self.uri}: the server sends another part than was asked for; refused")
            yield start if part else 0, self._chunks(answer)

    def _chunks(self, answer: Any) -> Iterator[bytes]:
        errors = needs("urllib3.exceptions", "remote")
        try:
            yield from answer.stream(CHUNK, decode_content=False)
        except errors.ReadTimeoutError as error:
            raise Broken(f"the server sent nothing for {READ:g} seconds") from error
        except (errors.HTTPError, OSError) as error:
            raise Broken(f"the connection broke off ({type(error).__name__})") from error

    def _judge(self, answer: Any, wanted: tuple[int, ...]) -> None:
        if answer.status in wanted:
            return
        if answer.status >= 500 or answer.status in (408, 429):
            raise Broken(f"the server answers with status {answer.status}")
        told = {401: ", it asks for a login", 403: ", it does not give it to us", 404: ", it has no such file"}
        raise HermitcrabError(
            f"{self.uri}: the server answers with status {answer.status}{told.get(answer.status, '')}"
        )

    @contextmanager
    def _get(self, headers: dict[str, str]) -> Iterator[Any]:
        """The answer to a request, redirects followed."""
        url = self.url
        for hop in range(HOPS):
            pool, path, more = self._pool(url, trusted=self.anywhere or hop == 0)
            errors = needs("urllib3.exceptions", "remote")
            try:
                answer = pool.request(
                    "GET", path, headers={**more, **headers}, preload_content=False, redirect=False, retries=False
                )
            except errors.TimeoutError as error:
                raise Broken(f"the server does not answer within {READ:g} seconds") from error
            except (errors.HTTPError, OSError) as error:
                raise Broken(f"the server cannot be reached ({type(error).__name__})") from error
            try:
                to = answer.headers.get("Location") if answer.status in (301, 302, 303, 307, 308) else None
                if to is None:
                    yield answer
                    return
                url = urljoin(url, to)
            finally:
                answer.close()
                pool.close()
        raise HermitcrabError(f"{self.uri}: redirects over {HOPS} times; refused")

    def _pool(self, url: str, trusted: bool) -> tuple[Any, str, dict[str, str]]:
        library = needs("urllib3", "remote")
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise HermitcrabError(
                f"{self.uri}: redirects to {without_credentials(url)[:200]}, which is no web address; refused"
            )
        if not trusted and parts.scheme == "http" and self.url.startswith("https:"):
            raise HermitcrabError(f"{self.uri}: redirects from https to http; refused")
        port = parts.port or (443 if parts.scheme == "https" else 80)
        address = self._address(parts.hostname, port, trusted)
        timeout = library.Timeout(connect=CONNECT, read=READ)
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        headers = {"Host": parts.netloc.rpartition("@")[2], "Accept-Encoding": "identity", "User-Agent": "hermitcrab"}
        if "@" in parts.netloc and url == self.url:
            headers |= library.make_headers(basic_auth=parts.netloc.rpartition("@")[0])
        if parts.scheme == "http":
            return library.HTTPConnectionPool(address, port, timeout=timeout), path, headers
        secure = library.HTTPSConnectionPool(
            address, port, timeout=timeout, server_hostname=parts.hostname, assert_hostname=parts.hostname
        )
        return secure, path, headers

    def _address(self, host: str, port: int, trusted: bool) -> str:
        try:
            found = [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
        except OSError as error:
            raise Broken(f"the name {host} is not known") from error
        if not trusted:
            hidden = next((a for a in found if not ipaddress.ip_address(a.partition("%")[0]).is_global), None)
            if hidden is not None:
                raise HermitcrabError(
                    f"{self.uri}: redirects to {host}, which is {hidden} and no public address; refused. Where the server is "
                    "trusted, say `redirects: any`"
                )
        return found[0]
