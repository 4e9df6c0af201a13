"""A real HTTP server on loopback over a local folder, with byte ranges and, if asked for, everyday faults."""

import re
import threading
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer


class RangeHandler(SimpleHTTPRequestHandler):
    """The handler of `python -m http.server`, which lists folders, plus single byte ranges."""

    def do_GET(self):
        server = self.server
        server.requests.append((self.path, self.headers.get("Range")))
        if server.failures > 0 and self.path.endswith(".tar"):
            server.failures -= 1
            self.send_error(HTTPStatus.SERVICE_UNAVAILABLE)
            return
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if found and server.ranges:
            self.send_range(int(found[1]), int(found[2]) if found[2] else None)
        else:
            super().do_GET()

    def send_range(self, first, last):
        try:
            with open(self.translate_path(self.path), "rb") as file:
                data = file.read()
        except OSError:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        part = data[first : None if last is None else last + 1]
        self.send_response(HTTPStatus.PARTIAL_CONTENT)
        self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def list_directory(self, path):
        if self.server.lists:
            return super().list_directory(path)
        self.send_error(HTTPStatus.FORBIDDEN)
        return None

    def log_message(self, *arguments):
        pass


@contextmanager
def serve(folder, ranges=True, lists=True):
    """Yields the server; `server.address` is that of `folder`, `server.failures` = so many reads of tars fail first."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(RangeHandler, directory=str(folder))) as server:
        server.ranges, server.lists, server.failures, server.requests = ranges, lists, 0, []
        server.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
