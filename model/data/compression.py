"""Read files that may be compressed. The content of a file says how it is compressed, not its name."""

import bz2
import gzip
import importlib
import lzma
import re
import shlex
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from model.errors import ConfigError

SUFFIXES = (".gz", ".xz", ".bz2", ".zip", ".zst", ".lzma")
CHUNK = 2**20
# A file that unpacks to more than this, and to more than this multiple of what was read, is made to fill the memory:
# text is rarely compressed to less than a hundredth.
MAX_UNPACKED, MAX_RATIO = 64 * 2**20, 250

_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ\0": "xz",
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",
    b"\x28\xb5\x2f\xfd": "zstd",
}
_BZIP2 = (b"BZh", b"1AY&SY", b"\x17rE8P\x90")  # after the first three bytes and a digit comes a block, or the end
# The older format of LZMA has no magic number. Its header contains the usual properties, the size of the dictionary,
# and the size of the content: all ones if it is unknown, else less than 2**40. The compressed data then begin with a
# zero byte, so UTF-8 text, which has no NUL, never matches.
_LZMA = re.compile(rb"\x5d.{4}(\xff{8}|.{5}\0{3})\0", re.DOTALL)
_UNREADABLE = {  # formats that Python cannot read, and the command that unpacks them
    b"7z\xbc\xaf\x27\x1c": ("7z", "7z x"),
    b"Rar!": ("rar", "unrar x"),
    b"\x04\x22\x4d\x18": ("lz4", "lz4 -d"),
    b"\x1f\x9d": ("compress", "uncompress"),
}
_DAMAGED = (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, ValueError)


def read_unpacked(path: Path, key: str) -> bytes:
    """Return the content of a file, decompressed if it is compressed.

    key: of the configuration, for error messages.

    Raises:
        ConfigError: the file cannot be read, is damaged, or has a format that Python cannot read.
    """
    try:
        with path.open("rb") as file:
            kind = _kind(path, file.read(16), key)
            file.seek(0)
            if not kind:
                return file.read()
            with _OPENERS[kind](path, file, key) as unpacked:
                return b"".join(_bounded(unpacked, file, path, key))
    except ConfigError:
        raise
    except MemoryError:
        raise ConfigError(f"{key}: does not fit into memory: {path}; split it into files, and use fewer") from None
    except _DAMAGED as error:
        raise ConfigError(f"{key}: not a whole {kind} file: {path}: {error}") from None
    except OSError as error:  # bz2 reports damage as an OSError without a number
        if error.strerror is None:
            raise ConfigError(f"{key}: not a whole {kind} file: {path}: {error}") from None
        raise ConfigError(f"{key}: cannot read {path}: {error.strerror}") from None


def unpacked_name(path: Path) -> str:
    """Return the name of a file without the suffixes of compression, in lower case; of a zip file, of what it holds."""
    name = path.name.lower()
    if name.endswith(".zip") and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return next(iter(_members(archive)), name).lower()
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    return name


def _kind(path: Path, start: bytes, key: str) -> str:
    """Return how a file is compressed, "" if it is not.

    start: its first 16 bytes.
    """
    for magic, (kind, command) in _UNREADABLE.items():
        if start.startswith(magic):
            command += f" {shlex.quote(path.name)}"
            raise ConfigError(f"{key}: {kind} files cannot be read: {path}; unpack it with `{command}`")
    if start[:3] == _BZIP2[0] and start[4:10] in _BZIP2[1:]:
        return "bzip2"
    if _LZMA.match(start):
        return "lzma"
    found = next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), "")
    # A name that ends in .gz promises gzip, so that a damaged first byte is reported.
    return found or ("gzip" if path.suffix.lower() == ".gz" else "")


def _bounded(unpacked: IO[bytes], packed: IO[bytes], path: Path, key: str) -> Iterator[bytes]:
    """Yield the content of a compressed file in chunks, as long as its size is plausible."""
    size = 0
    while chunk := unpacked.read(CHUNK):
        size += len(chunk)
        if size > MAX_UNPACKED and size > MAX_RATIO * packed.tell():
            raise ConfigError(
                f"{key}: its first {packed.tell():,} bytes unpack to more than {MAX_RATIO} times as many, which text "
                f"does not: {path}; if this is right, unpack the file and give the result"
            )
        yield chunk


def _open_zip(path: Path, file: IO[bytes], key: str) -> IO[bytes]:
    archive = zipfile.ZipFile(file)
    members = _members(archive)
    if len(members) != 1:
        raise ConfigError(f"{key}: a zip file must hold one file, got {len(members)}: {path}; unpack it, use a glob")
    try:
        return archive.open(members[0])
    except RuntimeError as error:  # a password, or a compression that Python does not know
        raise ConfigError(f"{key}: cannot read {path}: {error}; unpack it") from None


def _members(archive: zipfile.ZipFile) -> list[str]:
    names = [info.filename for info in archive.infolist() if not info.is_dir()]
    return [name for name in names if not name.startswith("__MACOSX/")]  # macOS adds a file of attributes


def _open_zstd(path: Path, file: IO[bytes], key: str) -> IO[bytes]:
    try:
        zstd: Any = importlib.import_module("compression.zstd")  # in Python 3.14
    except ImportError:
        command = f"zstd -d {shlex.quote(path.name)}"
        raise ConfigError(f"{key}: zstd files need Python 3.14: {path}; unpack it with `{command}`") from None
    opened: IO[bytes] = zstd.open(file)
    return opened


_OPENERS: dict[str, Callable[[Path, IO[bytes], str], Any]] = {
    "gzip": lambda path, file, key: gzip.GzipFile(fileobj=file),
    "xz": lambda path, file, key: lzma.LZMAFile(file),  # noqa: SIM115
    "lzma": lambda path, file, key: lzma.LZMAFile(file, format=lzma.FORMAT_ALONE),  # noqa: SIM115
    "bzip2": lambda path, file, key: bz2.BZ2File(file),
    "zip": _open_zip,
    "zstd": _open_zstd,
}
