"""What the Hub answers to each request, and what it keeps: the inside of `tests.hub_server`."""

import base64
import dataclasses
import hashlib
import json
import re
from email.message import Message
from typing import Any
from urllib.parse import parse_qs

import yaml

LICENSES = ("apache-2.0", "mit", "unknown", "other")
# Token to user and the role that the Hub gives to it.
TOKENS = {"hf_ada": ("ada", "write"), "hf_reader": ("ada", "read")}
LFS_SUFFIXES = (".parquet", ".safetensors")
EMPTY = "0" * 40


@dataclasses.dataclass
class Repo:
    """A repository: commits, newest last; each maps names to contents."""

    private: bool
    commits: list[tuple[str, str, dict[str, bytes]]] = dataclasses.field(default_factory=list)

    def commit(self, files: dict[str, bytes], message: str) -> str:
        digest = hashlib.sha1(repr((self.head, message, sorted(files.items()))).encode()).hexdigest()
        self.commits.append((digest, message, files))
        return digest

    @property
    def head(self) -> str:
        return self.commits[-1][0] if self.commits else EMPTY

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1][2]

    def at(self, revision: str) -> dict[str, bytes] | None:
        if revision == "main":
            return self.files
        return next((files for digest, _, files in self.commits if digest == revision), None)


class Refused(Exception):
    """An answer that is not 200."""

    def __init__(self, status: int, message: str, code: str = "", **more: Any) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.more = status, message, code, more


class Pages:
    """The Hub's endpoints, for one request."""

    server: Any
    command: str
    headers: Message

    def _route(self, path: str, query: dict[str, list[str]], body: bytes, headers: dict[str, str]) -> bytes:
        routes = (
            ("GET", r"^/api/whoami-v2$", self._whoami),
            ("POST", r"^/api/repos/create$", self._create),
            ("POST", r"^/api/validate-yaml$", self._validate),
            ("GET", r"^/api/(model|dataset)s/([^/]+/[^/]+)(?:/revision/([^/]+))?$", self._info),
            ("GET", r"^/api/(model|dataset)s/([^/]+/[^/]+)/tree/([^/]+)(?:/(.*))?$", self._tree),
            ("POST", r"^/api/(model|dataset)s/([^/]+/[^/]+)/paths-info/([^/]+)$", self._paths),
            ("POST", r"^/api/(model|dataset)s/([^/]+/[^/]+)/preupload/main$", self._preupload),
            ("POST", r"^/api/(model|dataset)s/([^/]+/[^/]+)/commit/main$", self._commit),
            ("POST", r"^/(datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch$", self._batch),
            ("PUT", r"^/lfs/(\w+)$", self._upload),
            ("POST", r"^/lfs/verify$", self._verify),
            ("GET", r"^/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)$", self._resolve),
        )
        verb = "GET" if self.command == "HEAD" else self.command
        for method, pattern, action in routes:
            match = re.match(pattern, path)
            if match and method == verb:
                given = json.loads(body) if body.startswith(b"{") and "commit" not in path else body
                found = action(*match.groups(), given=given, query=query, headers=headers)
                return found if isinstance(found, bytes) else json.dumps(found).encode()
        raise Refused(404, f"no such page: {path}")

    def _user(self) -> tuple[str, str]:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in TOKENS:
            raise Refused(401, "Invalid credentials in Authorization header")
        return TOKENS.get(token, ("", ""))

    def _writer(self, repo_id: str) -> None:
        user, role = self._user()
        if not user:
            raise Refused(401, "Invalid username or password.")
        if role != "write" or repo_id.split("/")[0] not in (user, "lab"):
            raise Refused(403, f"You don't have the rights to write to {repo_id}")

    def _repo(self, kind: str, repo_id: str) -> Repo:
        user, _ = self._user()
        repo = self.server.repos.get((kind, repo_id))
        if repo is None or (repo.private and not user):
            raise Refused(404 if user else 401, "Repository not found", "RepoNotFound")
        return repo

    def _files(self, kind: str, repo_id: str, revision: str) -> dict[str, bytes]:
        files = self._repo(kind, repo_id).at(revision)
        if files is None:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return files

    def _whoami(self, **_: Any) -> Any:
        user, role = self._user()
        if not user:
            raise Refused(401, "Invalid username or password.")
        return {"type": "user", "name": user, "orgs": [], "auth": {"accessToken": {"role": role}}}

    def _create(self, given: Any, **_: Any) -> Any:
        repo_id = f"{given.get('organization') or self._user()[0]}/{given['name']}"
        self._writer(repo_id)
        kind = given.get("type") or "model"
        url = f"{self.server.endpoint}/{'datasets/' if kind == 'dataset' else ''}{repo_id}"
        if (kind, repo_id) in self.server.repos:
            raise Refused(409, "You already created this repo", url=url)
        repo = Repo(private=given.get("visibility") == "private" or bool(given.get("private")))
        repo.commit({".gitattributes": b"*.parquet filter=lfs\n"}, "initial commit")
        self.server.repos[kind, repo_id] = repo
        return {"url": url, "name": repo_id, "id": "1"}

    def _validate(self, given: Any, **_: Any) -> Any:
        found = yaml.safe_load(given["content"].split("---")[1])
        if found.get("license") not in LICENSES:
            message = f'"license" must be one of [{", ".join(LICENSES)}]'
            raise Refused(400, "invalid", errors=[{"message": message}], warnings=[])
        return {"errors": [], "warnings": []}

    def _info(self, kind: str, repo_id: str, revision: str | None, **_: Any) -> Any:
        repo = self._repo(kind, repo_id)
        files = self._files(kind, repo_id, revision or "main")
        sha = repo.head if revision in (None, "main") else revision
        return {
            **dict.fromkeys(("downloads", "likes"), 0),
            **dict.fromkeys(("gated", "disabled"), False),
            "id": repo_id,
            "_id": "1",
            "sha": sha,
            "private": repo.private,
            "tags": [],
            "siblings": [{"rfilename": path} for path in sorted(files)],
        }

    def _tree(self, kind: str, repo_id: str, revision: str, under: str | None, query: Any, **_: Any) -> Any:
        files, prefix = self._files(kind, repo_id, revision), f"{under}/" if under else ""
        inside = sorted(path for path in files if path.startswith(prefix))
        if under and not inside:
            raise Refused(404, f"{under} does not exist", "EntryNotFound")
        is_deep = query.get("recursive", [""])[0].lower() in ("1", "true")
        folders = sorted(
            {path[: i.start()] for path in inside for i in re.finditer("/", path) if i.start() > len(prefix)}
        )
        shown = [path for path in inside if is_deep or "/" not in path[len(prefix) :]]
        kept = [folder for folder in folders if is_deep or "/" not in folder[len(prefix) :]]
        return [
            *({"type": "directory", "path": folder, "oid": EMPTY, "size": 0} for folder in kept),
            *(self._entry(path, files[path]) for path in shown),
        ]

    def _paths(self, kind: str, repo_id: str, revision: str, given: Any, **_: Any) -> Any:
        files = self._files(kind, repo_id, revision)
        wanted = given["paths"] if isinstance(given, dict) else parse_qs(given.decode())["paths"]
        return [self._entry(path, files[path]) for path in wanted if path in files]

    def _entry(self, path: str, content: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": git_sha1(content)}
        if path.endswith(LFS_SUFFIXES):
            sha256 = hashlib.sha256(content).hexdigest()
            pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(content)}\n".encode()
            entry |= {
                "oid": git_sha1(pointer),
                "lfs": {"oid": sha256, "size": len(content), "pointerSize": len(pointer)},
            }
        return entry

    def _preupload(self, kind: str, repo_id: str, given: Any, **_: Any) -> Any:
        self._repo(kind, repo_id)
        self._writer(repo_id)
        return {
            "files": [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(LFS_SUFFIXES) else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for file in given["files"]
            ]
        }

    def _batch(self, prefix: str | None, repo_id: str, given: Any, **_: Any) -> Any:
        self._writer(repo_id)
        objects = []
        for wanted in given["objects"]:
            found = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.server.lfs:
                found["actions"] = {
                    "upload": {"href": f"{self.server.endpoint}/lfs/{wanted['oid']}"},
                    "verify": {"href": f"{self.server.endpoint}/lfs/verify"},
                }
            objects.append(found)
        return {"transfer": "basic", "objects": objects}

    def _upload(self, oid: str, given: bytes, **_: Any) -> Any:
        if hashlib.sha256(given).hexdigest() != oid:
            raise Refused(400, "the contents are not those of this oid")
        self.server.lfs[oid] = given
        return {}

    def _verify(self, given: Any, **_: Any) -> Any:
        if given["oid"] not in self.server.lfs:
            raise Refused(404, "nothing was uploaded")
        return {}

    def _commit(self, kind: str, repo_id: str, given: bytes, **_: Any) -> Any:
        repo = self._repo(kind, repo_id)
        self._writer(repo_id)
        lines = [json.loads(line) for line in given.splitlines()]
        header = lines[0]["value"]
        if header.get("parentCommit", repo.head) != repo.head:
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repo.files)
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.lfs[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        oid = repo.commit(files, header["summary"])
        return {"success": True, "commitOid": oid, "commitUrl": f"{self.server.endpoint}/{repo_id}/commit/{oid}"}

    def _resolve(
        self, prefix: str | None, repo_id: str, revision: str, path: str, headers: dict[str, str], **_: Any
    ) -> bytes:
        kind = "dataset" if prefix else "model"
        files = self._files(kind, repo_id, revision)
        if path not in files:
            raise Refused(404, f"{path} does not exist", "EntryNotFound")
        repo, content = self._repo(kind, repo_id), files[path]
        headers["X-Repo-Commit"] = repo.head if revision == "main" else revision
        headers["ETag"] = f'"{hashlib.sha256(content).hexdigest()}"'
        wanted = re.match(r"bytes=(\d+)-(\d*)$", self.headers.get("Range") or "")
        if wanted and self.command == "GET":
            first, last = int(wanted[1]), int(wanted[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            content = content[first : last + 1]
        headers["Content-Length"] = str(len(content))
        return content


def git_sha1(content: bytes) -> str:
    """The name that git gives to a file's contents."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
