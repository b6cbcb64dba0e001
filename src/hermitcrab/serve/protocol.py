"""uvicorn's protocol with what it does not bound: how long the head of a request may take to come, and how large it may be.

A client that sends a byte a second would otherwise keep a connection for good, and one that never ends its headers, memory.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_SECONDS = 10.0
LARGEST_HEAD = 64 << 10  # bytes


class BoundedProtocol(HttpToolsProtocol):
    timer: asyncio.TimerHandle | None = None
    head = 0
    """Bytes since the head began that is not here yet."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.timer is None and (self.cycle is None or self.cycle.response_complete):
            self._arm()
        self.head += len(data)
        super().data_received(data)
        if self.timer is not None and self.head > LARGEST_HEAD:
            self._refuse(b"431 Request Header Fields Too Large")

    def on_headers_complete(self) -> None:
        self._disarm()
        super().on_headers_complete()

    def _arm(self) -> None:
        self.head = 0
        self.timer = self.loop.call_later(HEAD_SECONDS, self._refuse, b"408 Request Timeout")

    def _disarm(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def _refuse(self, status: bytes) -> None:
        self._disarm()
        if not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 " + status + b"\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
            self.transport.close()
