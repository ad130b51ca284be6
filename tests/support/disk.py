"""Mount a small file system, to test what happens when the disk is full."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Mount a file system of this size, such as 32k; skip the test if this user may not mount one."""
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0777", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)  # lazy, because files may still be mapped into memory


def resize(folder: Path, size: str) -> None:
    """Change the size of a mounted file system."""
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)


def used(folder: Path) -> int:
    """Return the number of bytes in use on the file system of a folder."""
    stat = os.statvfs(folder)
    return (stat.f_blocks - stat.f_bfree) * stat.f_frsize


@contextmanager
def read_only(folder: Path, mount: Path) -> Iterator[Path]:
    """Mount a folder at another place, where nobody can write to it; skip the test if this user may not mount."""
    mount.mkdir(exist_ok=True)
    if subprocess.run(["mount", "--bind", folder, mount], capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a folder")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", mount], check=True)
        yield mount
    finally:
        subprocess.run(["umount", "--lazy", mount], check=True)
