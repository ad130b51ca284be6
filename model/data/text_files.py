"""Find, download and read the text files of a corpus. Every error names the configuration key and the file."""

import codecs
import glob
import hashlib
import http.client
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from model.cache import cache_root, write_whole
from model.data.compression import read_unpacked
from model.errors import ConfigError

PASSAGE = 1000  # smallest number of characters of a passage; the last passage of a file may be shorter
MAX_PARAGRAPH = 8 * PASSAGE  # a longer paragraph is cut
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
TIMEOUT_S = 15  # without an answer; a machine without network should fail soon


def matching_files(path: str) -> list[Path]:
    """Return the files that match a path or a glob pattern, sorted by name.

    Raises:
        ConfigError: no file matches, or the path is a directory or cannot be read.
    """
    literal = Path(path).expanduser()
    try:
        if literal.exists() and not literal.is_file() and not literal.is_dir():
            raise ConfigError(f"data.path: must be a file, got a pipe or a device: {path}; save its content to a file")
        if literal.is_dir():
            raise ConfigError(f"data.path: is a directory: {path}; give a file or a glob such as {path}/*.txt")
        if literal.exists():
            return [literal]
    except OSError as error:  # the name is too long, or a folder may not be entered
        raise ConfigError(f"data.path: cannot be read: {path}: {error.strerror}") from None
    if not glob.has_magic(path):
        raise ConfigError(f"data.path: no such file: {path}")
    paths = [Path(p) for p in sorted(glob.glob(str(literal), recursive=True)) if Path(p).is_file()]
    if not paths:
        raise ConfigError(f"data.path: no file matches {path}")
    return paths


def file_sha256(path: Path, key: str = "data.path") -> bytes:
    """Return the SHA-256 of a file, without decompression.

    Raises:
        ConfigError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise ConfigError(f"{key}: cannot read {path}: {error.strerror}") from None


def read_text(path: Path, key: str = "data.path") -> str:
    r"""Return the text of a file, without byte order mark, lines ended by \n.

    Raises:
        ConfigError: the file cannot be read, or is not text in UTF-8, or in UTF-16 or UTF-32 with a byte order mark.
    """
    content = read_unpacked(path, key)
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8")
    if encoding == "utf-8":
        _check_is_text(path, content, key)
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        place = f"got byte 0x{content[error.start]:02x} at offset {error.start}"
        raise ConfigError(f"{key}: must be {encoding.upper()} text, {place}: {path}; save it as UTF-8") from None
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    return text if "\n" in text else text.replace("\r", "\n")  # lines of old Macs end in \r alone


def _check_is_text(path: Path, content: bytes, key: str) -> None:
    """Refuse content with NUL bytes, and say what it is where that is known."""
    nul = content.find(b"\0")
    if nul < 0:
        return
    if content.startswith(b"PAR1"):
        hint = "; it is a parquet file, which data.name=table reads"
    elif content[257:262] == b"ustar":
        hint = "; it is a tar archive, unpack it, use a glob"
    elif len(content) > 8 and (content[1:8:2] == b"\0" * 4 or content[:8:2] == b"\0" * 4):
        hint = "; it may be UTF-16 without a byte order mark, save it as UTF-8"
    else:
        hint = ""
    raise ConfigError(f"{key}: must be UTF-8 text, got a NUL byte at offset {nul}: {path}{hint}")


def passages(text: str) -> Iterator[str]:
    """Yield passages: paragraphs, joined until they have PASSAGE characters. A very long paragraph is cut."""
    pieces: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        for piece in _cut_paragraph(paragraph):
            pieces.append(piece)
            if sum(map(len, pieces)) >= PASSAGE:
                yield "\n\n".join(pieces)
                pieces = []
    if pieces:
        yield "\n\n".join(pieces)


def _cut_paragraph(text: str) -> Iterator[str]:
    """Yield pieces of at least PASSAGE characters, cut at the end of a line, else at a space, else anywhere."""
    start = 0
    while len(text) - start > MAX_PARAGRAPH:
        low, high = start + PASSAGE, start + MAX_PARAGRAPH
        breaks = (text.find(mark, low, high) for mark in ("\n", " "))
        end = next((position for position in breaks if position >= 0), low)
        yield text[start:end]
        start = end + (text[end] in "\n ")
    yield text[start:]


def public_file(names: list[str], url: str, sha256: str) -> Path:
    """Return a public file: the first of `names` in $HPO_DATA or among the downloads, else download it.

    sha256: of the content, in hexadecimal.

    Raises:
        ConfigError: the file does not exist and cannot be downloaded.
    """
    return local_file(names) or download(url, cache_root() / "downloads" / names[0], sha256)


def local_file(names: list[str]) -> Path | None:
    """Return the first file of these names in $HPO_DATA or among the downloads, None if there is none."""
    folders = [Path(os.environ["HPO_DATA"]).expanduser()] if os.environ.get("HPO_DATA") else []
    folders.append(cache_root() / "downloads")
    candidates = (folder / name for folder in folders for name in names)
    return next((path for path in candidates if path.is_file()), None)


def download(url: str, target: Path, sha256: str) -> Path:
    """Download a file and check its SHA-256; write `target` only if the check passes.

    Raises:
        ConfigError: the download fails or has another content.
        CacheError: the file cannot be written.
    """
    remedy = f"or put the file at $HPO_DATA/{target.name}"
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
            # One read(): read(n) returns an incomplete download without an error.
            content = response.read()
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # the error is also the response, and holds the connection
        reason = getattr(error, "reason", error)
        raise ConfigError(f"data: cannot download {url}: {reason}; try again, {remedy}") from None
    if hashlib.sha256(content).hexdigest() != sha256:
        # the login page of a network also has status 200
        raise ConfigError(f"data: download of {url} has the wrong content; try again, {remedy}")
    return write_whole(target, [content])
