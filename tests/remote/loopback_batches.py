"""The Batch API of the loopback server: files, batches and their outcomes, kept in memory."""

import json
from collections.abc import Callable, Mapping
from typing import Any


class Batches:
    """Answers a batch when it is first polled.

    Attributes:
        lose: every so many requests of a batch get no answer, as in one that expires; 0: none.
        fails: status and errors of every batch; None lets them be answered.
        cut: bytes of the output that are lost at its end.
        available: False answers every path with 404, as a server without the Batch API does.
        submitted: custom ids in the order in which they came.
    """

    def __init__(self, complete: Callable[[Mapping[str, Any]], dict[str, Any]]):
        self._complete = complete
        self._files: dict[str, bytes] = {}
        self._batches: dict[str, dict[str, Any]] = {}
        self.lose = 0
        self.fails: tuple[str, list[dict[str, Any]]] | None = None
        self.cut = 0
        self.available = True
        self.submitted: list[str] = []

    def respond(self, method: str, path: str, headers: Mapping[str, str], content: bytes) -> tuple[int, Any]:
        """Status and body for a request to /files or /batches."""
        parts = path.partition("?")[0].strip("/").split("/")
        if not self.available or parts[0] not in ("files", "batches"):
            return 404, {"error": {"message": f"no such path {path}", "code": "not_found"}}
        if parts == ["files"]:
            return 200, {"id": self._keep(_file_of(headers, content)), "object": "file"}
        if parts[0] == "files":
            return 200, self._files[parts[1]]
        if method == "POST":
            return 200, self._submit(json.loads(content))
        if len(parts) == 1:
            return 200, {"data": list(self._batches.values()), "has_more": False}
        if parts[1] not in self._batches:
            return 404, {"error": {"message": "no such batch"}}
        return 200, self._finish(self._batches[parts[1]])

    def _keep(self, content: bytes) -> str:
        name = f"file-{len(self._files)}"
        self._files[name] = content
        return name

    def _submit(self, body: dict[str, Any]) -> dict[str, Any]:
        name = f"batch-{len(self._batches)}"
        lines = self._files[body["input_file_id"]].splitlines()
        self.submitted += [json.loads(line)["custom_id"] for line in lines]
        self._batches[name] = body | {"id": name, "status": "in_progress"}
        return self._batches[name]

    def _finish(self, batch: dict[str, Any]) -> dict[str, Any]:
        if self.fails:
            return batch | {"status": self.fails[0], "errors": {"object": "list", "data": self.fails[1]}}
        if batch["status"] == "in_progress":
            requests = [json.loads(line) for line in self._files[batch["input_file_id"]].splitlines()]
            done = [r for i, r in enumerate(requests, 1) if not self.lose or i % self.lose]
            lines = [
                {"custom_id": r["custom_id"], "response": {"status_code": 200, "body": self._complete(r["body"])}}
                for r in done
            ]
            batch["status"] = "completed" if len(done) == len(requests) else "expired"
            batch["output_file_id"] = self._keep(self._output(lines))
        return batch

    def _output(self, lines: list[dict[str, Any]]) -> bytes:
        whole = "".join(json.dumps(line) + "\n" for line in lines).encode()
        return whole[: len(whole) - self.cut]


def _file_of(headers: Mapping[str, str], content: bytes) -> bytes:
    """The part named "file" of a multipart form."""
    boundary = headers["content-type"].partition("boundary=")[2].strip('"').encode()
    for part in content.split(b"--" + boundary):
        head, _, body = part.partition(b"\r\n\r\n")
        if b'name="file"' in head:
            return body.removesuffix(b"\r\n")
    return b""
