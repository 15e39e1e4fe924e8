"""Access to the review: a token per person, made from a secret that only the review's directory holds."""

import hashlib
import hmac
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.mmedexpert.review.review_queue import Person
from mmedexpert_jax.runtime import files

SECRET_FILE = "review.secret"


def secret(folder: Path) -> bytes:
    """The secret of a review's directory, made at its first use; links stay valid when the server starts again."""
    path = folder / SECRET_FILE
    with files.writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            value = path.read_bytes()
            if len(value) < 32:
                raise ConfigError(f"{path} is not a review's secret; delete it to have new links made") from None
            return value
        with os.fdopen(descriptor, "wb") as file:
            value = secrets.token_bytes(32)
            file.write(value)
            return value


class Access:
    """Tokens of the people who are named, and the review's id."""

    def __init__(self, key: bytes, reviewers: Sequence[str], adjudicators: Sequence[str] = ()):
        if not reviewers and not adjudicators:
            raise ConfigError("config.reviewers is empty; name who reviews, such as --config.reviewers=anna,ben")
        for name in (*reviewers, *adjudicators):
            if not name.strip() or len(name) > 64 or not name.isprintable():
                raise ConfigError(f"config.reviewers: {name!r} is no name; use 1 to 64 printable characters")
        people = [Person(name, "reviewer") for name in reviewers] + [
            Person(name, "adjudicator") for name in adjudicators
        ]
        self.id = hashlib.sha256(key).hexdigest()[:12]  # by which a browser tells the events of two reviews apart
        self.tokens = {
            person: hmac.new(key, f"{person.role}:{person.name}".encode(), hashlib.sha256).hexdigest()[:40]
            for person in people
        }

    def person(self, authorization: str) -> Person | None:
        """Whose token an Authorization header carries; None for nobody's."""
        scheme, _, given = authorization.partition(" ")
        if scheme.lower() != "bearer":
            return None
        right = [p for p, token in self.tokens.items() if hmac.compare_digest(token.encode(), given.strip().encode())]
        return right[0] if right else None

    def links(self, host: str, port: int) -> dict[Person, str]:
        """The link of each person. The token stands after "#", where no server, log or referrer sees it."""
        shown = f"[{host}]" if ":" in host else host
        return {person: f"http://{shown}:{port}/#token={token}" for person, token in self.tokens.items()}
