"""A Hugging Face Hub on this machine: folders served on 127.0.0.1 as huggingface.co serves repositories.

`huggingface_hub` and its friends read HF_ENDPOINT when they are imported, so whoever asks this hub is a process of its own, with
`Hub.environment`. What is asked of a repository's files is kept in `Hub.requests`; what this hub does not know (the real one
may) in `Hub.unknown`, which the tests want empty.
"""

import hashlib
import json
import re
import sys
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

_REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
_REVISION = r"(?P<revision>[\w.-]+)"
_RESOLVE = re.compile(rf"/(?:(?P<kind>datasets)/)?{_REPO}/resolve/{_REVISION}/(?P<path>.+)")
_VERB = rf"(?:/(?P<verb>revision|tree|paths-info)/{_REVISION}(?:/(?P<path>.+))?)?"
_API = re.compile(rf"/api/(?P<kind>models|datasets)/{_REPO}{_VERB}")
_SMALL = 4096  # larger files are in large file storage, as the Hub's .gitattributes has it for tar, Parquet, weights


class Request(NamedTuple):
    """What was asked: `path` is the file's in its repository, `bytes` how many of its body were sent."""

    method: str
    repo: str
    path: str
    bytes: int


class Hub:
    """Serves `folder`/models/<owner>/<name> and `folder`/datasets/<owner>/<name> until `close`."""

    def __init__(self, folder: Path):
        self.folder, self.requests, self.unknown = folder, [], []
        self._hashes: dict[tuple, str] = {}
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self):
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home: Path) -> dict[str, str]:
        """Variables of a process that knows no other Hub, and keeps what it fetches below `home`."""
        off = ("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "DISABLE_SAFETENSORS_CONVERSION")
        places = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_UPDATE_DOWNLOAD_COUNTS": "0", "NO_PROXY": "127.0.0.1"}
        return places | dict.fromkeys(off, "1") | {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_TOKEN": ""}

    def fetched(self, repo: str | None = None, suffix: str = "") -> dict[str, int]:
        """Files of which bytes were sent, and how many in all."""
        sent: dict[str, int] = {}
        for request in list(self.requests):
            if request.bytes and request.path.endswith(suffix) and repo in (None, request.repo):
                sent[request.path] = sent.get(request.path, 0) + request.bytes
        return sent

    def files(self, root: Path) -> list[Path]:
        return sorted(path for path in root.rglob("*") if path.is_file())

    def commit(self, root: Path) -> str:
        """40 hex digits that change with the repository's files."""
        about = [(str(path.relative_to(root)), self.etag(path)) for path in self.files(root)]
        return hashlib.sha1(repr(about).encode()).hexdigest()

    def etag(self, path: Path) -> str:
        """SHA-256 of a large file, SHA-1 of a small one, as the Hub's are."""
        stat = path.stat()
        key = (path, stat.st_size, stat.st_mtime_ns)
        if key not in self._hashes:
            with open(path, "rb") as file:
                self._hashes[key] = hashlib.file_digest(file, "sha1" if stat.st_size < _SMALL else "sha256").hexdigest()
        return self._hashes[key]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """Readers hang up when they have seen enough; anything else is this server's fault."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        self._answer()

    def do_POST(self):
        length = int(self.headers.get("Content-Length", 0))
        self._answer(self.rfile.read(length))

    def _answer(self, body: bytes = b""):
        path, _, query = urllib.parse.unquote(self.path).partition("?")
        if path == "/":  # whether anybody is there
            return self._json({})
        for pattern, answer in ((_RESOLVE, self._resolve), (_API, self._api)):
            if found := pattern.fullmatch(path):
                root = self.hub.folder / (found["kind"] or "models") / found["repo"]
                if not root.is_dir():
                    return self._json({"error": "Repository not found"}, 404, "RepoNotFound")
                if found["revision"] not in (None, "main", self.hub.commit(root)):
                    return self._json({"error": "Invalid rev id"}, 404, "RevisionNotFound")
                return answer(root, found, urllib.parse.parse_qs(query), body)
        self.hub.unknown.append(f"{self.command} {self.path}")
        self._json({"error": "unknown to this hub"}, 404, None)

    def _resolve(self, root: Path, found: re.Match, query: dict, body: bytes):
        path = root / found["path"]
        if not path.is_file():
            return self._json({"error": "Entry not found"}, 404, "EntryNotFound", {"X-Repo-Commit": self.hub.commit(root)})
        size, etag = path.stat().st_size, self.hub.etag(path)
        first, last, status = 0, size - 1, 200
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last, status = int(asked[1]), min(int(asked[2] or last), last), 206
        self.send_response(status)
        self.send_header("Content-Length", str(last - first + 1))
        self.send_header("ETag", f'"{etag}"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("X-Repo-Commit", self.hub.commit(root))
        if size >= _SMALL:
            self.send_header("X-Linked-Size", str(size))
            self.send_header("X-Linked-Etag", f'"{etag}"')
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.end_headers()
        sent = 0
        try:
            if self.command == "GET":
                with open(path, "rb") as file:
                    file.seek(first)
                    while sent < last - first + 1:
                        sent += self.wfile.write(file.read(min(1 << 16, last - first + 1 - sent)))
        except (BrokenPipeError, ConnectionResetError):  # the reader has seen enough
            self.close_connection = True
        self.hub.requests.append(Request(self.command, found["repo"], found["path"], sent))

    def _api(self, root: Path, found: re.Match, query: dict, body: bytes):
        if found["verb"] in (None, "revision") and not found["path"]:
            files = [{"rfilename": path.relative_to(root).as_posix()} for path in self.hub.files(root)]
            facts = {"id": found["repo"], "private": False, "gated": False, "disabled": False, "tags": [], "downloads": 0}
            facts |= {"sha": self.hub.commit(root), "siblings": files, "lastModified": "2024-01-04T00:00:00.000Z"}
            return self._json(facts)
        if found["verb"] == "tree":
            below = root / (found["path"] or "")
            if not below.is_dir():
                return self._json({"error": "Entry not found"}, 404, "EntryNotFound")
            recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
            paths = sorted(below.rglob("*") if recursive else below.iterdir())
            return self._json([self._entry(root, path) for path in paths])
        if found["verb"] == "paths-info":
            given = json.loads(body)["paths"] if body[:1] == b"{" else urllib.parse.parse_qs(body.decode())["paths"]
            there = [root / path for path in given if (root / path).exists()]
            return self._json([self._entry(root, path) for path in there])
        self.hub.unknown.append(f"{self.command} {self.path}")
        self._json({"error": "unknown to this hub"}, 404, None)

    def _entry(self, root: Path, path: Path) -> dict:
        name = path.relative_to(root).as_posix()
        if path.is_dir():
            return {"type": "directory", "oid": hashlib.sha1(name.encode()).hexdigest(), "size": 0, "path": name}
        etag, size = self.hub.etag(path), path.stat().st_size
        entry = {"type": "file", "oid": hashlib.sha1(etag.encode()).hexdigest(), "size": size, "path": name}
        large = {"lfs": {"oid": etag, "size": size, "pointerSize": 132}}
        return entry | (large if size >= _SMALL else {})

    def _json(self, content, status: int = 200, error: str | None = None, headers: dict | None = None):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if error:
            self.send_header("X-Error-Code", error)
            self.send_header("X-Error-Message", content["error"])
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
