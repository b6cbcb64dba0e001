"""Messages between the server and its engine's process: JSON behind its length, so nothing that a client sent is ever unpickled.

A message is a list whose first entry says what it is:

    to the engine     ["load", spec]  ["add", number, prompt, options]  ["cancel", number]
                      ["embed", number, rows]  ["ping", number]  ["end"]
    from the engine   ["ready", facts]  ["failed", text]  ["step", rows, stats]  ["vectors", number, vectors or error]  ["pong", number]

A row of a step is [number, tokens, logprobs, finish], or [number, error].
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Iterator
from typing import Any

LARGEST = 64 << 20  # bytes of a message
_HEAD = struct.Struct("<I")


def encode(message: list[Any]) -> bytes:
    """One message, for one write."""
    body = json.dumps(message, separators=(",", ":")).encode()
    if len(body) > LARGEST:
        raise ValueError(f"a message of {len(body):,} bytes; the most is {LARGEST:,}")
    return _HEAD.pack(len(body)) + body


async def read(reader: asyncio.StreamReader) -> list[Any] | None:
    """The next message; None where the other side has gone."""
    try:
        (size,) = _HEAD.unpack(await reader.readexactly(_HEAD.size))
        if size > LARGEST:
            return None  # no message of ours: as good as gone
        return json.loads(await reader.readexactly(size))
    except (asyncio.IncompleteReadError, ConnectionError, OSError):
        return None


class Inbox:
    """What has come in on a socket, message by message."""

    def __init__(self, made: socket.socket):
        self.socket, self.buffer, self.gone = made, bytearray(), False

    def messages(self, wait: bool) -> Iterator[list[Any]]:
        """All that are whole; with `wait`, at least one, unless the other side has `gone`."""
        while not self.gone:
            found = list(self._whole())
            yield from found
            if found and wait:
                return
            try:
                more = self.socket.recv(1 << 20, 0 if wait else socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                more = b""
            self.gone = not more
            self.buffer += more

    def _whole(self) -> Iterator[list[Any]]:
        while len(self.buffer) >= _HEAD.size:
            (size,) = _HEAD.unpack_from(self.buffer)
            if len(self.buffer) < _HEAD.size + size:
                return
            body = bytes(self.buffer[_HEAD.size : _HEAD.size + size])
            del self.buffer[: _HEAD.size + size]
            yield json.loads(body)
