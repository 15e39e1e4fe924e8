"""Hub ids against a hub on this machine, through huggingface_hub's own variables: revision, token, cache, offline."""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from mmedexpert_jax.models.tree import flatten

COMMITS = {"main": 40 * "a", "v1": 40 * "b"}
TOKEN = "hf_test"
LOAD = """
import json, os, sys
import numpy as np
from mmedexpert_jax.errors import UserError
from mmedexpert_jax.models import load_model
from mmedexpert_jax.models.tree import flatten

for hub_id, token in json.loads(sys.argv[1]):
    os.environ["HF_TOKEN"] = token
    try:
        found = {name: float(np.asarray(leaf).sum()) for name, leaf in flatten(load_model(hub_id)[1]).items()}
    except UserError as error:
        found = [type(error).__name__, str(error)]
    print(json.dumps(found))
"""


@pytest.fixture
def hub(checkpoint):
    """A server of the private repository owner/name with a checkpoint on main and another at the tag v1, of
    owner/gated, whose terms nobody accepted, and what it is asked: (path, Authorization)."""
    files = {
        commit: {path.name: path.read_bytes() for path in checkpoint(name).directory.iterdir()} | {"notes.bin": b"?"}
        for commit, name in zip(COMMITS.values(), ("qwen2_tied", "qwen2_untied"), strict=True)
    }
    asked: list[tuple[str, str | None]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self, status: int, content: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def do_GET(self) -> None:
            path, token = self.path.partition("?")[0], self.headers.get("Authorization")
            asked.append((path, token))
            repository, name, what = re.split("/(name|gated)/", f"{path}/name/")[:3]
            kind, _, rest = what.partition("/")
            revision, _, file = rest.partition("/")
            commit = COMMITS.get(revision, revision)
            if token != f"Bearer {TOKEN}":
                self.answer(401, X_Error_Code="RepoNotFound")
            elif repository not in ("/owner", "/api/models/owner"):
                self.answer(404, X_Error_Code="RepoNotFound")
            elif commit not in files:
                self.answer(404, X_Error_Code="RevisionNotFound")
            elif kind == "revision":
                self.answer(200, json.dumps({"id": "owner/name", "sha": commit}).encode())
            elif kind == "tree":
                found = [(name, len(content)) for name, content in files[commit].items()]
                entries = [{"type": "file", "path": name, "size": size, "oid": 40 * "0"} for name, size in found]
                self.answer(200, json.dumps(entries).encode())
            elif name == "gated":
                self.answer(403, X_Error_Code="GatedRepo")
            else:
                content = files[commit][file]
                self.answer(200, content, X_Repo_Commit=commit, ETag=f'"{hashlib.sha256(content).hexdigest()}"')

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server, asked
        server.shutdown()


def test_revision_and_token_go_to_the_hub_and_the_cache_serves_without_it(hub, checkpoint, tmp_path):
    server, asked = hub
    variables = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path), "NO_PROXY": "*"}

    def load(*cases: tuple[str, str], offline: str = "0") -> list:
        environment = os.environ | variables | {"HF_HUB_OFFLINE": offline}
        done = subprocess.run(
            [sys.executable, "-c", LOAD, json.dumps(cases)], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    cases = [("owner/name", TOKEN), ("owner/name@v1", TOKEN), (f"owner/name@{COMMITS['v1']}", TOKEN)]
    refused = [("owner/name@v1.1", TOKEN), ("owner/other", TOKEN), ("owner/other", ""), ("owner/gated", TOKEN)]
    main, tag, commit, *errors = load(*cases, *refused)
    for found, name in (main, "qwen2_tied"), (tag, "qwen2_untied"), (commit, "qwen2_untied"):
        expected = flatten(checkpoint(name).params)
        assert found == {key: float(np.asarray(leaf).sum()) for key, leaf in expected.items()}
    assert [kind for kind, _ in errors] == ["DataError"] * 4
    assert [words.partition(": ")[0] for _, words in errors] == [hub_id for hub_id, _ in refused]
    assert "no branch, tag or commit v1.1" in errors[0][1]
    assert "no such model on the hub" in errors[1][1]
    assert "accept its terms on https://huggingface.co/owner/gated and set HF_TOKEN" in errors[3][1]
    assert not any("\n" in words for _, words in errors)

    assert {token for path, token in asked if "owner/name" in path} == {f"Bearer {TOKEN}"}
    weights = [path for path, _ in asked if path.endswith("model.safetensors") and "/gated/" not in path]
    assert set(weights) == {f"/owner/name/resolve/{commit}/model.safetensors" for commit in COMMITS.values()}
    assert not any(path.endswith("notes.bin") for path, _ in asked)

    server.shutdown()
    server.server_close()
    *again, (kind, words) = load(*cases, ("owner/other", TOKEN), offline="1")
    assert again == [main, tag, commit]
    assert kind == "RemoteError" and words.startswith("owner/other: ")


PUSH = """
import json, sys
from mmedexpert_jax.errors import UserError
from mmedexpert_jax.models.save import push

for repository in sys.argv[2:]:
    try:
        print(json.dumps(push(sys.argv[1], repository)))
    except UserError as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""


def test_a_folder_is_pushed_whole_and_refusals_are_one_line(tmp_path):
    """Against a server of the hub's protocol: create, preupload, commit."""
    stored: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.path == "/api/repos/create":
                asked = json.loads(body)
                assert asked.get("visibility") == "private" and self.headers["Authorization"] == f"Bearer {TOKEN}"
                status = 403 if asked.get("organization") == "others" else 200
                answer = {"url": f"http://{self.headers['Host']}/{asked['organization']}/{asked['name']}"}
            elif "/preupload/" in self.path:
                status, answer = 200, {"files": [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                    for file in json.loads(body)["files"]
                ]}  # fmt: skip
            elif self.path == "/api/validate-yaml":
                status, answer = 200, {"errors": [], "warnings": []}
            else:
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        stored[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                status = 200
                answer = {
                    "success": True,
                    "commitOid": 40 * "a",
                    "commitUrl": f"http://{self.headers['Host']}/owner/name/commit/" + 40 * "a",
                }
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "README.md").write_text("---\nlibrary_name: transformers\n---\nA card")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        variables = {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HOME": str(tmp_path),
            "HF_TOKEN": TOKEN,
        }
        done = subprocess.run(
            [sys.executable, "-c", PUSH, str(folder), "owner/name", "others/name", "a/b/c"],
            env=os.environ | variables | {"NO_PROXY": "*"}, capture_output=True, text=True,
        )  # fmt: skip
        server.shutdown()
    assert done.returncode == 0, done.stderr
    url, refused, wrong = map(json.loads, done.stdout.splitlines())
    assert isinstance(url, str), url
    assert url.endswith("/commit/" + 40 * "a")
    assert {name: content for name, content in stored.items() if name != ".gitattributes"} == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }
    assert (
        refused[0] == "RemoteError" and refused[1].startswith("others/name: upload failed") and "\n" not in refused[1]
    )
    assert wrong[0] == "ConfigError"
