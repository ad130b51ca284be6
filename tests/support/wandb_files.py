"""What W&B's offline mode has written: a file of records in the log format of LevelDB, with messages of protobuf."""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BLOCK, HEADER = 32768, 7


@dataclass
class OfflineRun:
    """One run of the offline mode."""

    id: str = ""
    group: str = ""
    name: str = ""
    job_type: str = ""
    project: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    exit_code: int | None = None


def offline_runs(folder: Path) -> list[OfflineRun]:
    """Return the runs below a folder, by name."""
    return sorted((_read(path) for path in folder.glob("offline-run-*/run-*.wandb")), key=lambda run: run.name)


def _read(path: Path) -> OfflineRun:
    from wandb.proto import wandb_internal_pb2

    run = OfflineRun()
    for message in _messages(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(message)
        match record.WhichOneof("record_type"):
            case "run":
                run.id, run.group, run.project = record.run.run_id, record.run.run_group, record.run.project
                run.name, run.job_type, run.tags = record.run.display_name, record.run.job_type, list(record.run.tags)
                run.config |= _values(record.run.config.update)
            case "summary":
                run.summary |= _values(record.summary.update)
            case "history":
                run.history.append(_values(record.history.item))
            case "exit":
                run.exit_code = record.exit.exit_code
    return run


def _values(items: Any) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def _messages(data: bytes) -> Iterator[bytes]:
    """Yield the records of a log: full ones (type 1), and those in parts, of which the last has type 4."""
    at, message = HEADER, b""  # the file starts with a header of its own
    while at + HEADER <= len(data):
        if (room := BLOCK - at % BLOCK) < HEADER:
            at += room
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + HEADER])
        message += data[at + HEADER : at + HEADER + size]
        at += HEADER + size
        if kind in (1, 4):
            yield message
            message = b""
