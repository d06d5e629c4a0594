"""The last look before anything leaves the machine: tokens, secrets and where this machine keeps its files."""

import getpass
import io
import os
import re
import socket
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import get_token

from hf_proxadam.report.publication import File, Publication

_TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{30,}\b")
_HOME = re.compile(rb"(?:/home/|/Users/|[A-Za-z]:\\+Users\\+|/root/)[^\s/\\\"']+")
_SECRET_NAME = re.compile(r"TOKEN(?!I)|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_?KEY|CREDENTIAL", re.IGNORECASE)
_LEAST_SECRET = 8
# Words by which nobody is told apart.
_COMMON = {"localhost", "root", "user", "users", "admin", "ubuntu", "debian", "runner", "jovyan", "docker", "host"}
_LEAST_NAME = 4
# Third parties' words, among which any may be: only secrets and this home folder are looked for in them.
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json")


def check(publication: Publication) -> None:
    """Refuse to publish what tells of this machine or its user.

    Raises:
        ValueError: a file holds a token, the value of a secret environment variable, a home folder or this machine's
            name; the sentence says which file and what, and not the secret itself.
    """
    found = [f"{file.path} holds {what}" for file in publication.files for what in _found(file)]
    if found:
        raise ValueError(f"Nothing was published: {'; '.join(found)}. Take it out of the file, or the file away.")


def names(publication: Publication) -> list[str]:
    """Files that hold the user's name as a word. It may be meant (an organisation's, a model's), so it is only told."""
    user = _user()
    return [] if user is None else [file.path for file in publication.files if _is_named(user, file.path, _text(file))]


def _found(file: File) -> Iterable[str]:
    text = _text(file)
    if _TOKEN.search(text) or any(token in text for token in _tokens()):
        yield "an access token"
    for name, value in _secrets().items():
        if value in text:
            yield f"the value of the environment variable {name}"
    home, is_ours = os.fsencode(Path.home()), file.path not in _VOCABULARIES
    if (is_ours and _HOME.search(text)) or (len(home) > 1 and re.search(re.escape(home) + rb"[/\\]", text)):
        yield "the path of a home folder"
    host = _host()
    if host is not None and _is_named(host, file.path, text):
        yield "this machine's name"


def _is_named(word: str, path: str, text: bytes) -> bool:
    pattern = rb"(?<![A-Za-z0-9_-])" + re.escape(word.encode()) + rb"(?![A-Za-z0-9_-])"
    return path not in _VOCABULARIES and re.search(pattern, text, re.IGNORECASE) is not None


def _text(file: File) -> bytes:
    """What of a file can be read as text."""
    if file.path.endswith(".parquet"):
        return _parquet_text(file.read())
    if file.path.endswith(".safetensors"):
        assert isinstance(file.source, Path)
        with file.source.open("rb") as stream:  # the header; after it there are only numbers
            return stream.read(min(int.from_bytes(stream.read(8), "little"), 1 << 26))
    return b"" if file.path.endswith(".png") else file.read()


def _parquet_text(content: bytes) -> bytes:
    """Metadata and strings of a Parquet file, which may be compressed in it."""
    table = pq.read_table(io.BytesIO(content))
    fields = [table.schema.metadata, *(field.metadata for field in table.schema)]
    words = [b"%s=%s" % item for metadata in fields for item in (metadata or {}).items()]
    for name, column in zip(table.column_names, table.columns, strict=True):
        words.append(name.encode())
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            words += [word.encode() for word in column.unique().to_pylist() if word is not None]
    return b"\n".join(words)


def _tokens() -> list[bytes]:
    token = get_token()
    return [token.encode()] if token else []


def _secrets() -> dict[str, bytes]:
    return {
        name: os.fsencode(value)
        for name, value in os.environ.items()
        if _SECRET_NAME.search(name) and len(value) >= _LEAST_SECRET and not Path(value).exists()
    }


def _host() -> str | None:
    name = socket.gethostname().partition(".")[0]
    return name if len(name) >= _LEAST_NAME and name.lower() not in _COMMON else None


def _user() -> str | None:
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number that has no name
        return None
    return name if len(name) >= _LEAST_NAME and name.lower() not in _COMMON else None
