"""A hub on this machine: repositories that have commits, behind the routes that the libraries ask.

``with FakeHub() as hub``, then ``hub.push("dataset", "me/data", {"train.parquet": bytes})``, and the
commands with ``hub.env(folder)`` in their environment.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

_API = re.compile(r"/api/(dataset|model)s/([\w.-]+/[\w.-]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?")
_FILE = re.compile(r"/(datasets/)?([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)")

Files = dict[str, bytes]


class FakeHub:
    """Holds the commits of each repository, newest last."""

    def __init__(self) -> None:
        self.commits: dict[tuple[str, str], list[tuple[str, Files]]] = {}
        self.up = True
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> FakeHub:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def push(self, kind: str, name: str, files: Files) -> str:
        """A new commit; returns its hash."""
        known = self.commits.setdefault((kind, name), [])
        sha = hashlib.sha1(f"{kind} {name} {len(known)}".encode()).hexdigest()
        known.append((sha, files))
        return sha

    def env(self, folder: Path) -> dict[str, str]:
        """Environment of a process that has this hub, and caches of its own."""
        return {
            "HF_ENDPOINT": f"http://127.0.0.1:{self._server.server_port}",
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(folder),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    def files(self, kind: str, name: str, revision: str) -> tuple[str, Files] | None:
        known = self.commits.get((kind, name), [])
        if revision == "main":
            return known[-1] if known else None
        return next((commit for commit in known if commit[0] == revision), None)


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def _answer(self, body: bytes = b"") -> None:
        path, _, query = unquote(self.path).partition("?")
        if found := _API.fullmatch(path):
            self._about(*found.groups(), body=body, all_below="recursive=true" in query.lower())
        elif found := _FILE.fullmatch(path):
            kind = "dataset" if found[1] else "model"
            self._file(self.hub.files(kind, found[2], found[3]), found[4])
        else:
            self._send(404, b"{}")

    def _about(
        self,
        kind: str,
        name: str,
        what: str | None,
        revision: str | None,
        inside: str | None,
        *,
        body: bytes,
        all_below: bool,
    ) -> None:
        commit = self.hub.files(kind, name, revision or "main")
        if commit is None:
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound" if revision else "RepoNotFound"})
            return
        sha, files = commit
        if what in (None, "revision"):
            about = {
                "id": name,
                "sha": sha,
                "private": False,
                "tags": [],
                "gated": False,
                "siblings": [{"rfilename": file} for file in files],
            }
            self._json(about)
            return
        if what == "tree":
            self._json(_tree(files, inside or "", all_below=all_below))
            return
        asked = json.loads(body)["paths"] if body[:1] == b"{" else parse_qs(body.decode())["paths"]
        self._json([_entry(file, files[file]) for file in asked if file in files])

    def _file(self, commit: tuple[str, Files] | None, name: str) -> None:
        if commit is None or name not in commit[1]:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"} | ({"X-Repo-Commit": commit[0]} if commit else {}))
            return
        content, status, headers = commit[1][name], 200, {}
        if part := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(part[1]), int(part[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{min(last, len(content) - 1)}/{len(content)}"
            content, status = content[first : last + 1], 206
        etag = _oid(commit[1][name])
        self._send(
            status, content, headers | {"ETag": f'"{etag}"', "X-Repo-Commit": commit[0], "Accept-Ranges": "bytes"}
        )

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def _tree(files: Files, inside: str, *, all_below: bool) -> list[dict[str, Any]]:
    start = f"{inside}/" if inside else ""
    below = {name: name.removeprefix(start) for name in files if name.startswith(start)}
    folders = {f"{start}{rest.split('/')[0]}" for rest in below.values() if "/" in rest}
    found = [{"type": "directory", "path": path, "oid": _oid(path.encode())} for path in sorted(folders)]
    return found + [_entry(name, files[name]) for name, rest in below.items() if all_below or "/" not in rest]


def _entry(name: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": name, "size": len(content), "oid": _oid(content)}


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
