"""A reverse proxy in front of an S3 server that takes its time, counts requests, can corrupt replies and cut them off.
`tests.servers.delayed` starts it.

python tests/proxy.py PORT UPSTREAM_PORT SECONDS FLIP_FIRST
"""

from __future__ import annotations

import asyncio
import sys

COUNT_PATH = "/-/requests"  # answered by the proxy itself, with the number of requests so far
CUT_PATH = "/-/cut/"  # with a number: the replies to so many requests from now on end in the middle, with the connection
PIECE = 1 << 18


class Proxy:
    """Each client's connection has one of its own to the server. The head of a request passes unchanged: clients sign the host they see."""

    def __init__(self, upstream_port: int, seconds: float, flip_first: int) -> None:
        self.upstream_port = upstream_port
        self.seconds = seconds
        self.flips_left = flip_first
        self.cuts_left = 0
        self.requests = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                start, headers = parsed(head)
                if start[1].startswith(CUT_PATH):
                    self.cuts_left = int(start[1].removeprefix(CUT_PATH))
                if start[1].startswith((COUNT_PATH, CUT_PATH)):
                    text = str(self.requests).encode()
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text))
                    continue
                self.requests += 1
                await asyncio.sleep(self.seconds)
                if upstream is None or upstream[0].at_eof():
                    upstream = await asyncio.open_connection("127.0.0.1", self.upstream_port, limit=PIECE)
                if not await self.exchange(start[0], head, headers, reader, writer, *upstream):
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # one side hung up
        finally:
            for stream in (writer, *(upstream or ())[1:]):
                stream.close()

    async def exchange(
        self,
        method: str,
        head: bytes,
        headers: dict[str, str],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        server_reader: asyncio.StreamReader,
        server_writer: asyncio.StreamWriter,
    ) -> bool:
        """Passes one request up and its reply down. Whether the connection goes on."""
        server_writer.write(head)
        asked_first = "expect" in headers  # the client sends its body when the server says 100
        if not asked_first:
            await passed(reader, server_writer, headers, default_length=0)
        reply, answers = await self.reply_head(server_reader, writer)
        if reply[1] == "100":
            await passed(reader, server_writer, headers, default_length=0)
            asked_first = False
            reply, answers = await self.reply_head(server_reader, writer)
        if method != "HEAD" and reply[1] not in ("204", "304"):
            if self.cuts_left > 0:
                self.cuts_left -= 1
                await passed_bytes(server_reader, writer, int(answers.get("content-length", "0")) // 2)
                return False
            flip = self.flips_left > 0 and method == "GET" and "range" in headers and reply[1] == "206"
            self.flips_left -= flip
            await passed(server_reader, writer, answers, default_length=None, flip=flip)
        await writer.drain()
        closing = "close" in (headers.get("connection", "").lower(), answers.get("connection", "").lower())
        return not (closing or asked_first or server_reader.at_eof())

    @staticmethod
    async def reply_head(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[list[str], dict[str, str]]:
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(head)
        return parsed(head)


def parsed(head: bytes) -> tuple[list[str], dict[str, str]]:
    """The words of the first line, and the headers by lower-case name."""
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    return first.split(" ", 2), {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


async def passed(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, headers: dict[str, str], default_length: int | None, flip: bool = False
) -> None:
    """Passes a body on; one without a length ends with the connection. `flip` turns over one bit of its first byte."""
    if headers.get("transfer-encoding", "").lower() == "chunked":
        size = None
        while size != 0:
            line = await reader.readuntil(b"\r\n")
            size = int(line.split(b";")[0], 16)
            writer.write(line)
            await passed_bytes(reader, writer, size, flip and size > 0)
            flip = flip and size == 0
            if size:
                writer.write(await reader.readexactly(2))
        while line != b"\r\n":  # trailers
            line = await reader.readuntil(b"\r\n")
            writer.write(line)
    else:
        await passed_bytes(reader, writer, int(headers["content-length"]) if "content-length" in headers else default_length, flip)


async def passed_bytes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, count: int | None, flip: bool = False) -> None:
    while count is None or count > 0:
        data = await reader.read(PIECE if count is None else min(count, PIECE))
        if not data:
            if count is None:
                return
            raise asyncio.IncompleteReadError(b"", count)
        if flip:
            data, flip = bytes([data[0] ^ 1]) + data[1:], False
        writer.write(data)
        await writer.drain()
        if count is not None:
            count -= len(data)


async def main(port: int, upstream_port: int, seconds: float, flip_first: int) -> None:
    proxy = Proxy(upstream_port, seconds, flip_first)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", port, limit=PIECE, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])))
