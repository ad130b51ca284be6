"""Write runs as event files of TensorBoard, one folder for each trial, and their parameters for its HPARAMS page."""

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
from tensorboard.plugins.text import metadata as text_metadata
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from hpo.storage.trials import State
from hpo.trackers.runs import TrackedRun
from hpo.trackers.tracker import EndedRuns, Tracker


class TensorboardTracker(Tracker):
    """Writes the trials of a study into folders that `tensorboard --logdir` shows as runs."""

    def __init__(self, folder: Path) -> None:
        """folder: run folder of the study."""
        self._folder = folder / "tensorboard"
        self.place = f"{self._folder}; to view it: tensorboard --logdir {self._folder}"
        self._ended = EndedRuns(self._folder / "ended.json")
        self._writers: dict[int, EventFileWriter] = {}
        self._steps: dict[int, int] = {}

    def ended(self) -> set[int]:
        """Return the trials whose files are complete."""
        return self._ended.numbers

    def write(self, run: TrackedRun) -> None:
        """Write what is new of a run. A process that starts writes the files of an unfinished trial anew."""
        if run.number not in self._writers:
            folder = self._folder / f"{run.number:04d}"
            shutil.rmtree(folder, ignore_errors=True)
            self._writers[run.number] = EventFileWriter(str(folder))
            self._steps[run.number] = -1
            self._add_start(run)
        for step, metrics in run.points_after(self._steps[run.number]):
            self._add_scalars(run, step, metrics)
            self._steps[run.number] = step
        if run.has_ended:
            self._add_scalars(run, run.last_step, run.result)
            self._add_end(run)
            self._writers.pop(run.number).close()
            self._ended.add(run.number)
        else:
            self._writers[run.number].flush()

    def _add_start(self, run: TrackedRun) -> None:
        """Write parameters and tags."""
        info = plugin_data_pb2.SessionStartInfo(start_time_secs=run.started.timestamp() if run.started else 0.0)
        hparams = []
        for key, value in run.params.items():
            kind, field = _kind(value)
            setattr(info.hparams[key], field, value if field != "string_value" else str(value))
            hparams.append(api_pb2.HParamInfo(name=key, type=api_pb2.DataType.Value(kind)))
        metric = api_pb2.MetricInfo(name=api_pb2.MetricName(tag=run.objective))
        experiment = api_pb2.Experiment(description=run.study, hparam_infos=hparams, metric_infos=[metric])
        self._add_plugin(run, metadata.EXPERIMENT_TAG, experiment=experiment)
        self._add_plugin(run, metadata.SESSION_START_INFO_TAG, session_start_info=info)
        self._add_texts(run, run.tags)

    def _add_end(self, run: TrackedRun) -> None:
        """Write the status of a trial that has ended."""
        status = "STATUS_FAILURE" if run.state is State.FAIL else "STATUS_SUCCESS"
        end_time = run.ended.timestamp() if run.ended else time.time()
        info = plugin_data_pb2.SessionEndInfo(status=api_pb2.Status.Value(status), end_time_secs=end_time)
        self._add_plugin(run, metadata.SESSION_END_INFO_TAG, session_end_info=info)
        self._add_texts(run, {**run.tags, "status": run.status})

    def _add_scalars(self, run: TrackedRun, step: int, metrics: Mapping[str, float]) -> None:
        values = [Summary.Value(tag=key, simple_value=value) for key, value in metrics.items()]
        self._add(run, Summary(value=values), step, run.seconds(step))

    def _add_texts(self, run: TrackedRun, texts: Mapping[str, str]) -> None:
        """Write tags as one table in the TEXT page."""
        table = "\n".join(["tag | value", "---|---", *(f"{key} | {value}" for key, value in texts.items())])
        shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
        tensor = TensorProto(dtype=DT_STRING, string_val=[table.encode()], tensor_shape=shape)
        described = text_metadata.create_summary_metadata("tags", "")
        self._add(run, Summary(value=[Summary.Value(tag="tags", metadata=described, tensor=tensor)]), run.last_step)

    def _add_plugin(self, run: TrackedRun, tag: str, **content: Any) -> None:
        """Write data of the HPARAMS page."""
        data = plugin_data_pb2.HParamsPluginData(version=metadata.PLUGIN_DATA_VERSION, **content)
        plugin = SummaryMetadata.PluginData(plugin_name=metadata.PLUGIN_NAME, content=data.SerializeToString())
        value = Summary.Value(tag=tag, metadata=SummaryMetadata(plugin_data=plugin))
        self._add(run, Summary(value=[value]), 0)

    def _add(self, run: TrackedRun, summary: Summary, step: int, at: float | None = None) -> None:
        self._writers[run.number].add_event(Event(wall_time=at or time.time(), step=step, summary=summary))

    def close(self) -> None:
        """Close all files."""
        for writer in self._writers.values():
            writer.close()


def _kind(value: Any) -> tuple[str, str]:
    """Return the type of a hyperparameter, and the field that holds it."""
    if isinstance(value, bool):
        return "DATA_TYPE_BOOL", "bool_value"
    if isinstance(value, int | float):
        return "DATA_TYPE_FLOAT64", "number_value"
    return "DATA_TYPE_STRING", "string_value"
