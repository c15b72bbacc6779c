"""Frames over a non-blocking stream socket, for the engine's one thread."""

import socket

from hekaton.engine.messages import HEADER, MAX_FRAME_BYTES, Command, Event, command_decoder, encode

RECEIVE_BYTES = 1 << 20
MAX_BACKLOG_BYTES = 64 << 20


class EventChannel:
    """The engine's end: commands come in, events go out through a buffer, nothing ever blocks."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._socket.setblocking(False)
        self._incoming = bytearray()
        self._outgoing = bytearray()
        self.closed = False
        """The worker has gone: there is nobody left to work for."""

    @property
    def backlog(self) -> int:
        """Bytes that the worker has not taken yet."""
        return len(self._outgoing)

    def emit(self, event: Event) -> None:
        self._outgoing += encode(event)

    def flush(self) -> None:
        """Sends what the socket takes now."""
        try:
            while self._outgoing:
                del self._outgoing[: self._socket.send(self._outgoing)]
        except BlockingIOError:
            return
        except OSError:
            self.closed = True

    def receive(self) -> list[Command]:
        """Commands that have come in whole. Raises ValueError (or its msgspec kind) if the stream is broken."""
        try:
            while data := self._socket.recv(RECEIVE_BYTES):
                self._incoming += data
            self.closed = True
        except BlockingIOError:
            pass
        except OSError:
            self.closed = True
        return self._split()

    def _split(self) -> list[Command]:
        commands: list[Command] = []
        start = 0
        while len(self._incoming) - start >= HEADER.size:
            (length,) = HEADER.unpack_from(self._incoming, start)
            if length > MAX_FRAME_BYTES:
                raise ValueError(f"a command of {length} bytes exceeds {MAX_FRAME_BYTES}")
            end = start + HEADER.size + length
            if len(self._incoming) < end:
                break
            commands.append(command_decoder.decode(bytes(self._incoming[start + HEADER.size : end])))
            start = end
        del self._incoming[:start]
        return commands
