"""A web server on this machine that can be told to misbehave: to break off, to know no ranges, to refuse."""

import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


class Web:
    """What is served, and what was asked for.

    Attributes:
        files: content by path, such as `/a.zip`.
        breaks: by path, after how many bytes each answer in turn breaks off.
        codes: by path, a status to answer with instead.
        ranges: whether the server knows ranges.
        asked: the `Range` of every request, by path.
    """

    def __init__(self) -> None:
        self.address = ""
        self.files: dict[str, bytes] = {}
        self.breaks: dict[str, list[int]] = defaultdict(list)
        self.codes: dict[str, int] = {}
        self.ranges = True
        self.asked: dict[str, list[str | None]] = defaultdict(list)


@contextmanager
def serve() -> Iterator[Web]:
    """Serves on a free port of this machine until the block ends."""
    web = Web()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            web.asked[self.path].append(asked)
            content = web.files.get(self.path)
            if content is None or self.path in web.codes:
                self.send_error(web.codes.get(self.path, 404))
                return
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and web.ranges else 0
            if start >= len(content) > 0 and start:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            rest = content[start:]
            self.wfile.write(rest[: web.breaks[self.path].pop(0)] if web.breaks[self.path] else rest)
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        web.address = f"http://127.0.0.1:{server.server_port}"
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield web
        server.shutdown()
        thread.join()
