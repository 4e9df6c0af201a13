"""A hub on 127.0.0.1: the endpoints that huggingface_hub calls to list, download and push, over real HTTP.

Repositories are commits of files, as on the hub; weights lie in an LFS store behind a redirect, as there. Requests are
written down in `requests`; `trouble` makes the next downloads of a file fail.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_local"
LFS = (".safetensors", ".bin")
ROUTES = []


class Hub(ThreadingHTTPServer):
    """`with Hub() as hub:` serves until the block ends; hub.url is the endpoint."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos, self.blobs, self.requests = {}, {}, []
        self.trouble = {}  # file name -> what its next GETs do: "cut" (half the bytes, then the end) or a status

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.shutdown()
        self.server_close()

    def commit(self, repo, files, revision="main", **facts):
        """Adds {path: bytes} on top of a branch; returns the commit."""
        entry = self.repos.setdefault(repo, {"commits": {}, "refs": {}, "private": False, "gated": False})
        entry.update(facts)
        tree = {**entry["commits"].get(entry["refs"].get(revision), {}), **files}
        listed = json.dumps([repo, {path: hashlib.sha1(data).hexdigest() for path, data in sorted(tree.items())}])
        oid = hashlib.sha1(listed.encode()).hexdigest()
        entry["commits"][oid], entry["refs"][revision] = tree, oid
        return oid


class Refused(Exception):
    """An answer that is not 200."""


def route(method, pattern):
    def add(function):
        ROUTES.append((method, re.compile(pattern), function))
        return function

    return add


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle_any(self):
        self.path = unquote(urlsplit(self.path).path)
        self.server.requests.append((self.command, self.path))
        length = int(self.headers.get("Content-Length") or 0)
        body = self.chunks() if self.headers.get("Transfer-Encoding") == "chunked" else self.rfile.read(length)
        for method, pattern, function in ROUTES:
            if (match := pattern.fullmatch(self.path)) and method == self.command.replace("HEAD", "GET"):
                try:
                    return function(self, body, **match.groupdict())
                except Refused as refusal:
                    return self.answer(b"{}", *refusal.args)
        return self.answer(b"{}", 404)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def chunks(self):
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def answer(self, data, status=200, headers=None, sent=None):
        """Sends headers and, but for HEAD, the first `sent` bytes of `data`; fewer than promised cut the connection."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data if sent is None else data[:sent])
        if sent is not None:
            self.wfile.flush()
            self.close_connection = True

    def json(self, value):
        self.answer(json.dumps(value).encode(), headers={"Content-Type": "application/json"})

    def repo(self, name):
        entry = self.server.repos.get(name)
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if entry is None:
            raise Refused(404 if known else 401, {"X-Error-Code": "RepoNotFound"})
        if entry["private"] and not known:
            raise Refused(401, {"X-Error-Code": "RepoNotFound"})
        if entry["gated"]:
            raise Refused(403, {"X-Error-Code": "GatedRepo"})
        return entry

    def tree(self, name, revision):
        """(commit, {path: bytes})"""
        entry = self.repo(name)
        oid = entry["refs"].get(revision, revision)
        if oid not in entry["commits"]:
            raise Refused(404, {"X-Error-Code": "RevisionNotFound"})
        return oid, entry["commits"][oid]

    def writer(self):
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise Refused(401, {"X-Error-Message": "Invalid credentials in Authorization header"})

    def log_message(self, *arguments):
        pass


REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"


@route("GET", rf"/api/models/{REPO}(/revision/(?P<revision>.+))?")
def info(self, body, repo, revision):
    oid, files = self.tree(repo, revision or "main")
    self.json({"id": repo, "sha": oid, "siblings": [{"rfilename": path} for path in sorted(files)], "tags": []})


@route("GET", rf"/api/models/{REPO}/tree/(?P<revision>[^/]+)")
def listing(self, body, repo, revision):
    _, files = self.tree(repo, revision)
    rows = [{"type": "file", "path": path, "size": len(d), "oid": git_id(d)} for path, d in sorted(files.items())]
    for row in rows:
        if row["path"].endswith(LFS):
            digest = hashlib.sha256(files[row["path"]]).hexdigest()
            row["lfs"] = {"oid": digest, "size": row["size"], "pointerSize": 130}
    self.json(rows)


def git_id(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@route("GET", rf"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
def resolve(self, body, repo, revision, path):
    oid, files = self.tree(repo, revision)
    headers = {"X-Repo-Commit": oid}
    if path not in files:
        raise Refused(404, {**headers, "X-Error-Code": "EntryNotFound"})
    data = files[path]
    if not path.endswith(LFS):
        return send(self, data, path, {**headers, "ETag": f'"{git_id(data)}"'})
    digest = hashlib.sha256(data).hexdigest()
    self.server.blobs[digest] = (data, path)
    there = f"{self.server.url.replace('127.0.0.1', 'localhost')}/lfs/{digest}"  # another host: the client stops here
    linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(data)), "Location": there}
    return self.answer(b"", 302, {**headers, **linked})


@route("GET", r"/lfs/(?P<digest>\w+)")
def stored(self, body, digest):
    data, path = self.server.blobs[digest]
    send(self, data, path, {"ETag": f'"{digest}"'})


def send(self, data, path, headers):
    """The bytes asked for, or the trouble that is due."""
    trouble = self.server.trouble.get(path) if self.command == "GET" else None
    due = trouble.pop(0) if trouble else None
    if isinstance(due, int):
        raise Refused(due)
    start = int(re.fullmatch(r"bytes=(\d+)-\d*", self.headers["Range"])[1]) if "Range" in self.headers else 0
    headers = {**headers, "Accept-Ranges": "bytes"}
    if start:
        headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
    rest = data[start:]
    self.answer(rest, 206 if start else 200, headers, sent=len(rest) // 2 if due == "cut" else None)


@route("POST", "/api/repos/create")
def create(self, body):
    self.writer()
    wanted = json.loads(body)
    name = f"{wanted['organization']}/{wanted['name']}"
    if name in self.server.repos:
        return self.answer(json.dumps({"url": f"{self.server.url}/{name}"}).encode(), 409)
    private = wanted.get("private") or wanted.get("visibility") == "private"
    self.server.commit(name, {".gitattributes": b"*.safetensors filter=lfs\n"}, private=bool(private))
    return self.json({"url": f"{self.server.url}/{name}"})


@route("POST", rf"/api/models/{REPO}/branch/(?P<branch>.+)")
def branch(self, body, repo, branch):
    self.writer()
    refs = self.repo(repo)["refs"]
    if branch in refs:
        raise Refused(409)
    refs[branch] = refs["main"]
    self.json({})


@route("POST", "/api/validate-yaml")
def validate(self, body):
    text = json.loads(body)["content"]
    front = yaml.safe_load(text.split("---\n")[1])
    errors = [] if isinstance(front, dict) and front.get("license") else [{"message": "no license"}]
    self.json({"errors": errors, "warnings": []})


@route("POST", rf"/api/models/{REPO}/preupload/(?P<revision>.+)")
def preupload(self, body, repo, revision):
    self.writer()
    self.tree(repo, revision)
    modes = {True: "lfs", False: "regular"}
    paths = [file["path"] for file in json.loads(body)["files"]]
    files = [{"path": p, "uploadMode": modes[p.endswith(LFS)], "shouldIgnore": False, "oid": None} for p in paths]
    self.json({"files": files})


@route("POST", rf"/{REPO}\.git/info/lfs/objects/batch")
def batch(self, body, repo):
    self.writer()
    objects = []
    for wanted in json.loads(body)["objects"]:
        upload = {"href": f"{self.server.url}/upload/{wanted['oid']}", "header": {}}
        objects.append({**wanted, "actions": {"upload": upload}})
    self.json({"transfer": "basic", "objects": objects})


@route("PUT", r"/upload/(?P<digest>\w+)")
def upload(self, body, digest):
    if hashlib.sha256(body).hexdigest() != digest:
        raise Refused(400)
    self.server.blobs[digest] = (body, "")
    self.answer(b"")


@route("POST", rf"/api/models/{REPO}/commit/(?P<revision>.+)")
def commit(self, body, repo, revision):
    self.writer()
    self.tree(repo, revision)
    files = {}
    for row in map(json.loads, body.splitlines()):
        value = row["value"]
        if row["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif row["key"] == "lfsFile":
            files[value["path"]] = self.server.blobs[value["oid"]][0]
    oid = self.server.commit(repo, files, revision)
    self.json({"success": True, "commitOid": oid, "commitUrl": f"{self.server.url}/{repo}/commit/{oid}"})
