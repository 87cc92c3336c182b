"""A hub on 127.0.0.1: the part of the hub's protocol that a push speaks, kept in memory, with faults to order.

It checks what the real one checks: the token, the namespace, sizes and SHA-256 of what arrives, that a commit names
only objects that were uploaded, and the metadata of model cards.
"""

import base64
import hashlib
import json
import re
import socket
import struct
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "loopback-token"
USER = "me"
PART = 12_000
"""Larger files are sent in parts of so many bytes."""
RELATIONS = ("adapter", "merge", "quantized", "finetune")
CUT, SILENT = "cut", "silent"


@dataclass
class Fault:
    """Answer ``times`` requests like ``pattern`` (``METHOD /path``) with a status, cut their connection, or never."""

    pattern: str
    answer: int | str
    times: int = 1


@dataclass
class Repo:
    """A repository: its branches as {path: content}."""

    private: bool = False
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {".gitattributes": b"*"}})


class Hub:
    """The state of the hub, and the server that speaks for it."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.leaks: list[str] = []
        self.role = "write"
        self.commits = 0
        self.lock = threading.Lock()
        self.closed = threading.Event()
        hub = self

        class Bound(_Handler):
            """The handler of this hub."""

            state = hub

        self._server = _Server(("127.0.0.1", 0), Bound)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        """Stop listening, and let go of those who wait."""
        self.closed.set()
        self._server.shutdown()
        self._server.server_close()

    def fail(self, pattern: str, answer: int | str, times: int = 1) -> None:
        """Order a fault."""
        self.faults.append(Fault(pattern, answer, times))

    def files(self, repo_id: str, branch: str = "main") -> dict[str, str]:
        """SHA-256 of every file that was pushed."""
        content = self.repos[repo_id].branches[branch]
        return {path: hashlib.sha256(c).hexdigest() for path, c in content.items() if path != ".gitattributes"}

    def count(self, pattern: str) -> int:
        """How many requests were like ``pattern``."""
        return sum(bool(re.match(pattern, request)) for request in self.requests)


def metadata_errors(content: str) -> list[str]:
    """What the hub would complain of in the metadata of a model card."""
    match = re.match(r"\s*---\n(.*?)\n---[ \t]*(\n|$)", content, re.DOTALL)
    try:
        data = yaml.safe_load(match.group(1)) if match else {}
    except yaml.YAMLError as error:
        return [f"YAML: {error}"]
    if not isinstance(data, dict):
        return ["metadata is not a mapping"]
    checks: dict[str, Callable[[Any], bool]] = {
        "language": lambda v: all(isinstance(w, str) and w for w in (v if isinstance(v, list) else [v])),
        "license": lambda v: all(isinstance(w, str) and w for w in (v if isinstance(v, list) else [v])),
        "license_name": lambda v: isinstance(v, str) and data.get("license") == "other",
        "license_link": lambda v: isinstance(v, str),
        "tags": lambda v: isinstance(v, list) and all(isinstance(w, str) for w in v),
        "library_name": lambda v: isinstance(v, str),
        "pipeline_tag": lambda v: v == "text-generation",
        "base_model": lambda v: isinstance(v, str) and bool(re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", v)),
        "base_model_relation": lambda v: v in RELATIONS and "base_model" in data,
    }
    unknown = [f'"{key}" is not allowed' for key in data if key not in checks]
    return unknown + [f'"{key}" with value {data[key]!r} is not valid' for key in data if not checks[key](data[key])]


def is_large(path: str, content: bytes) -> bool:
    """Whether a file goes to large-file storage."""
    return path.endswith((".safetensors", ".npy")) and bool(content)


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Server(ThreadingHTTPServer):
    """A server that does not mind clients that hang up."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print what is wrong with the server itself only."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    state: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._serve()

    do_POST = do_PUT = do_GET  # noqa: N815

    # One way in, for faults and for the token.
    def _serve(self) -> None:
        path = urlsplit(self.path).path
        request = f"{self.command} {path}"
        with self.state.lock:
            self.state.requests.append(request)
            fault = next((f for f in self.state.faults if f.times and re.match(f.pattern, request)), None)
            if fault:
                fault.times -= 1
        if fault and fault.answer == CUT:
            self._cut()
            return
        if fault and fault.answer == SILENT:
            self.state.closed.wait(10)
            self.close_connection = True
            return
        body = self._body()
        if fault:
            self._answer(int(fault.answer), {"error": f"ordered {fault.answer}"})
            return
        storage = path.startswith("/storage/")
        authorised = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if storage and "Authorization" in self.headers:
            self.state.leaks.append(request)
        if not storage and not authorised and path != "/api/validate-yaml" and not path.startswith("/complete/"):
            self._answer(401, {"error": "Invalid credentials in Authorization header"})
            return
        for method, pattern, answer in _ROUTES:
            match = re.fullmatch(pattern, path)
            if method == self.command and match:
                with self.state.lock:
                    answer(self, body, *(unquote(group) for group in match.groups()))
                return
        self._answer(404, {"error": f"no such route: {request}"})

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _cut(self) -> None:
        """Read a little of the body and reset the connection."""
        self.rfile.read(min(16, int(self.headers.get("Content-Length", 0))))
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def _answer(self, status: int, content: Any = None, **headers: str) -> None:
        data = json.dumps(content or {}).encode()
        self.send_response(status)
        if status >= 400 and isinstance(content, dict) and "error" in content:
            self.send_header("X-Error-Message", content["error"])
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def _branch(self, repo_id: str, revision: str) -> dict[str, bytes] | None:
        """The files of a branch, or None after the answer that there is none."""
        repo = self.state.repos.get(repo_id)
        if repo is None:
            self._answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        elif revision not in repo.branches:
            self._answer(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
        else:
            return repo.branches[revision]
        return None

    def whoami(self, _: bytes) -> None:
        access = {"displayName": "loopback", "role": self.state.role}
        self._answer(200, {"type": "user", "name": USER, "orgs": [], "auth": {"accessToken": access}})

    def validate(self, body: bytes) -> None:
        errors = [{"message": error} for error in metadata_errors(json.loads(body)["content"])]
        self._answer(400 if errors else 200, {"errors": errors, "warnings": []})

    def create(self, body: bytes) -> None:
        wanted = json.loads(body)
        repo_id = f"{wanted['organization'] or USER}/{wanted['name']}"
        url = {"url": f"{self.state.endpoint}/{repo_id}"}
        if repo_id in self.state.repos:
            self._answer(409, {"error": "You already created this model repo", **url})
        elif not repo_id.startswith(f"{USER}/"):
            self._answer(403, {"error": "You don't have the rights to create a model under this namespace"})
        else:
            private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
            self.state.repos[repo_id] = Repo(private)
            self._answer(200, url)

    def info(self, _: bytes, repo_id: str, revision: str = "main") -> None:
        if (files := self._branch(repo_id, revision)) is not None:
            siblings = [{"rfilename": path} for path in files]
            private = self.state.repos[repo_id].private
            self._answer(200, {"id": repo_id, "sha": "0" * 40, "private": private, "siblings": siblings, "tags": []})

    def tree(self, _: bytes, repo_id: str, revision: str) -> None:
        if (files := self._branch(repo_id, revision)) is not None:
            entries = [{"type": "file", "path": p, "size": len(c), "oid": git_hash(c)} for p, c in files.items()]
            self._answer(200, entries)

    def branch(self, _: bytes, repo_id: str, name: str) -> None:
        if (files := self._branch(repo_id, "main")) is not None:
            branches = self.state.repos[repo_id].branches
            status = 409 if name in branches else 200
            branches.setdefault(name, dict(files))
            self._answer(status, {"error": "Reference already exists"} if status == 409 else {})

    def preupload(self, body: bytes, repo_id: str, revision: str) -> None:
        if (files := self._branch(repo_id, revision)) is None:
            return
        answers = []
        for wanted in json.loads(body)["files"]:
            path, there = wanted["path"], files.get(wanted["path"])
            large = is_large(path, base64.b64decode(wanted["sample"]))
            answer = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            if there is not None:
                answer["oid"] = hashlib.sha256(there).hexdigest() if large else git_hash(there)
            answers.append(answer)
        self._answer(200, {"files": answers})

    def batch(self, body: bytes, _: str) -> None:
        answers = []
        for wanted in json.loads(body)["objects"]:
            oid, size = wanted["oid"], wanted["size"]
            answer: dict[str, Any] = {"oid": oid, "size": size}
            if oid not in self.state.objects:
                place = self.state.endpoint
                upload: dict[str, Any] = {"href": f"{place}/storage/{oid}"}
                if size > PART:
                    numbers = range(1, -(-size // PART) + 1)
                    urls = {str(number): f"{place}/storage/{oid}/{number}" for number in numbers}
                    upload = {"href": f"{place}/complete/{oid}", "header": {"chunk_size": str(PART), **urls}}
                answer["actions"] = {"upload": upload, "verify": {"href": f"{place}/verify/{oid}"}}
            answers.append(answer)
        self._answer(200, {"transfer": "basic", "objects": answers})

    def store(self, body: bytes, oid: str) -> None:
        whole = hashlib.sha256(body).hexdigest() == oid
        if whole:
            self.state.objects[oid] = body
        self._answer(200 if whole else 400, None if whole else {"error": "content does not match its hash"})

    def store_part(self, body: bytes, oid: str, number: str) -> None:
        self.state.parts.setdefault(oid, {})[int(number)] = body
        self._answer(200, None, ETag=hashlib.md5(body).hexdigest())

    def complete(self, body: bytes, oid: str) -> None:
        there, wanted = self.state.parts.get(oid, {}), json.loads(body)["parts"]
        if any(hashlib.md5(there.get(p["partNumber"], b"")).hexdigest() != p["etag"] for p in wanted):
            self._answer(400, {"error": "a part does not match its etag"})
            return
        self.store(b"".join(there[p["partNumber"]] for p in wanted), oid)

    def verify(self, body: bytes, oid: str) -> None:
        right = len(self.state.objects.get(oid, b"")) == json.loads(body)["size"]
        self._answer(200 if right else 400, None if right else {"error": "the object is not there"})

    def commit(self, body: bytes, repo_id: str, revision: str) -> None:
        if (files := self._branch(repo_id, revision)) is None:
            return
        after = dict(files)
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                after[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                if value["oid"] not in self.state.objects:
                    self._answer(400, {"error": f"{value['path']} was not uploaded"})
                    return
                after[value["path"]] = self.state.objects[value["oid"]]
            elif item["key"] == "deletedFile":
                del after[value["path"]]
        if errors := metadata_errors(after.get("README.md", b"").decode()):
            self._answer(400, {"error": errors[0]})
            return
        self.state.repos[repo_id].branches[revision] = after
        self.state.commits += 1
        oid = f"{self.state.commits:040x}"
        url = f"{self.state.endpoint}/{repo_id}/commit/{oid}"
        self._answer(200, {"success": True, "commitOid": oid, "commitUrl": url})


_REPO = "([^/]+/[^/]+)"
_ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("GET", "/api/whoami-v2", _Handler.whoami),
    ("POST", "/api/validate-yaml", _Handler.validate),
    ("POST", "/api/repos/create", _Handler.create),
    ("GET", f"/api/models/{_REPO}", _Handler.info),
    ("GET", f"/api/models/{_REPO}/revision/([^/]+)", _Handler.info),
    ("GET", f"/api/models/{_REPO}/tree/([^/]+)", _Handler.tree),
    ("POST", f"/api/models/{_REPO}/branch/([^/]+)", _Handler.branch),
    ("POST", f"/api/models/{_REPO}/preupload/([^/]+)", _Handler.preupload),
    ("POST", f"/{_REPO}.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", "/storage/([^/]+)", _Handler.store),
    ("PUT", "/storage/([^/]+)/([0-9]+)", _Handler.store_part),
    ("POST", "/complete/([^/]+)", _Handler.complete),
    ("POST", "/verify/([^/]+)", _Handler.verify),
    ("POST", f"/api/models/{_REPO}/commit/([^/]+)", _Handler.commit),
]
