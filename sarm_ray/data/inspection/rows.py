"""Checks of the rows: the statistics in the metadata, and a sample of the data files."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sarm_ray.data import storage
from sarm_ray.data.inspection.findings import Finding, VectorFacts, count, episode_list, leave_out
from sarm_ray.data.inspection.metadata import INDEX_COLUMNS, declared_shape, flat_names
from sarm_ray.data.json_files import read_json, read_json_lines
from sarm_ray.data.lerobot import Dataset
from sarm_ray.data.rows import column_array, read_episode_table
from sarm_ray.errors import DatasetError, name_list

STATE = "observation.state"
MAX_STATE_DIM = 32  # that SARM's input has
MOMENTS = ("min", "max", "mean", "std")


@dataclass(frozen=True)
class SampledRows:
    """One episode's rows.

    Args:
        row: the episode.
        path: its data file.
        problem: why it cannot be read, or None; the rest then means nothing.
        file_rows: rows in the whole file.
        values: column -> (L,) or (L, D), the columns that there are.
        unreadable: column -> why it is no array of numbers.
    """

    row: int
    path: str
    problem: str | None = None
    file_rows: int = 0
    values: dict[str, np.ndarray] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)


def vector_keys(dataset: Dataset) -> list[str]:
    """Features of numbers with one axis, such as states and actions; the state first."""
    keys = [
        key
        for key, spec in dataset.features.items()
        if str(spec.get("dtype", "")).startswith("float")
        and len(declared_shape(spec) or ()) == 1
        and key not in INDEX_COLUMNS
    ]
    keys = [key for key in keys if key.startswith(("observation", "action", "state")) or _width(dataset, key) > 1]
    return sorted(keys, key=lambda key: (key != STATE, not key.startswith("observation"), key))


def sample_rows(dataset: Dataset, row: int) -> SampledRows:
    """Read the columns of numbers of one episode."""
    path, episode = dataset.data_files.path(row), int(dataset.episode_index[row])
    location = dataset.location(path)
    wanted = [*INDEX_COLUMNS, *vector_keys(dataset)]
    try:
        with storage.open_input(location) as stream, pq.ParquetFile(stream) as file:
            file_rows = file.metadata.num_rows
            for name in set(INDEX_COLUMNS) & set(file.schema_arrow.names):
                kind = file.schema_arrow.field(name).type
                if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
                    return SampledRows(row, path, f"column {name!r} holds {kind} instead of numbers")
        table = read_episode_table(location, [], episode if dataset.version == "v3.0" else None, wanted)
    except (DatasetError, pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0].removeprefix(f"{location}: ")
        return SampledRows(
            row, path, reason if isinstance(error, DatasetError) else f"not a readable parquet file ({reason})"
        )
    values, unreadable = {}, {}
    for name in table.column_names:
        try:
            values[name] = column_array(table[name])
        except ValueError as error:
            unreadable[name] = str(error)
    return SampledRows(row, path, None, file_rows, values, unreadable)


def read_statistics(dataset: Dataset) -> tuple[dict[str, dict[str, np.ndarray]], int]:
    """Statistics of the features of numbers, from the metadata.

    Returns:
        feature -> moment -> (D,) float64, the envelopes of min and max and the means of the others, and for v2.1 how many
        episodes have none.

    Raises:
        DatasetError: statistics that are not numbers.
    """
    keys = vector_keys(dataset)
    whole = read_json(dataset.root, "meta/stats.json", missing={})
    try:
        found = {
            key: {m: np.ravel(whole[key][m]).astype(np.float64) for m in MOMENTS if m in whole[key]}
            for key in keys
            if isinstance(whole.get(key), dict)
        }
    except (TypeError, ValueError) as error:
        raise DatasetError(f"{dataset.location('meta/stats.json')}: malformed statistics ({error})") from error
    if dataset.version != "v2.1":
        return found, 0
    moments = pa.struct([(moment, pa.list_(pa.float64())) for moment in MOMENTS])
    schema = pa.schema([("episode_index", pa.int64()), ("stats", pa.struct([(key, moments) for key in keys]))])
    try:
        table = read_json_lines(dataset.location("meta/episodes_stats.jsonl"), schema)
    except FileNotFoundError:
        return found, len(dataset.length)
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{dataset.location('meta/episodes_stats.jsonl')}: {str(error).splitlines()[0]}") from error
    without = ~np.isin(dataset.episode_index, table["episode_index"].to_numpy(zero_copy_only=False))
    for key in keys:
        found |= _pool_episodes(table, key)
    return found, int(without.sum())


def _pool_episodes(table: pa.Table, key: str) -> dict[str, dict[str, np.ndarray]]:
    pool: dict[str, Callable] = {"min": np.min, "max": np.max, "mean": np.mean, "std": np.mean}
    stats = table["stats"].combine_chunks().field(key)
    pooled = {}
    for moment, reduce in pool.items():
        lists = stats.field(moment)
        lists = lists.filter(lists.is_valid())
        flat = lists.flatten().to_numpy(zero_copy_only=False)
        if len(lists) and len(flat) % len(lists) == 0:
            pooled[moment] = reduce(flat.reshape(len(lists), -1), axis=0)
    return {key: pooled} if pooled else {}


def vector_facts(
    dataset: Dataset, statistics: dict[str, dict[str, np.ndarray]], sampled: Sequence[SampledRows]
) -> tuple[VectorFacts, ...]:
    """Width, constant and not finite dimensions of each feature of numbers."""
    facts = []
    for key in vector_keys(dataset):
        parts = [each.values[key].reshape(len(each.values[key]), -1) for each in sampled if key in each.values]
        parts = [part for part in parts if len(part) and part.shape[1] == parts[0].shape[1]]
        values = np.concatenate(parts) if parts else np.zeros((0, _width(dataset, key)))
        stats = statistics.get(key, {})
        if "min" in stats and "max" in stats and len(stats["min"]) == len(stats["max"]):
            constant = stats["min"] == stats["max"]
        else:
            constant = (values == values[:1]).all(axis=0) if len(values) > 1 else np.zeros(values.shape[1], dtype=bool)
        holes = (~np.isfinite(values)).mean(axis=0) if len(values) else np.zeros(values.shape[1])
        names = dimension_names(dataset, key)
        facts.append(
            VectorFacts(
                key=key,
                dtype=str(dataset.features[key]["dtype"]),
                width=_width(dataset, key),
                constant=tuple(_name(names, d) for d in np.flatnonzero(constant).tolist()),
                not_finite={_name(names, d): float(holes[d]) for d in np.flatnonzero(holes).tolist()},
            )
        )
    return tuple(facts)


def check_statistics(dataset: Dataset, statistics: dict[str, dict[str, np.ndarray]], num_without: int) -> list[Finding]:
    """Whether there are statistics, as wide as the features, and numbers."""
    findings, keys = [], vector_keys(dataset)
    action = (
        "compute them with LeRobot; score takes the checkpoint's, and works out the dataset's from all rows if it must"
    )
    absent = [key for key in keys if not {"mean", "std"} <= set(statistics.get(key, {}))]
    if absent:
        findings.append(Finding("statistics", "warn", f"there are none of {name_list(absent, 4)}", action))
    elif num_without:
        told = f"meta/episodes_stats.jsonl lacks {num_without:,} of {count(len(dataset.length), 'episode')}"
        findings.append(Finding("statistics", "warn", told, action))
    for key in keys:
        for moment, values in statistics.get(key, {}).items():
            strange = np.flatnonzero(~np.isfinite(values))
            if len(values) != _width(dataset, key):
                told = f"{key}: {len(values)} numbers of {moment} for {count(_width(dataset, key), 'dimension')}"
            elif len(strange):
                names = [_name(dimension_names(dataset, key), d) for d in strange.tolist()]
                told = f"{key}: {moment} is not finite in {name_list(names, 6)}"
            else:
                continue
            findings.append(Finding("statistics", "bad", told, "compute them anew: score refuses them"))
            break
    return findings or [Finding("statistics", "ok", f"there are finite ones of {name_list(keys, 4)}")]


def check_vectors(dataset: Dataset, facts: Sequence[VectorFacts]) -> list[Finding]:
    """Whether there is a state for SARM, and which dimensions tell nothing or are no numbers."""
    findings = []
    if STATE not in dataset.features:
        others = [fact.key for fact in facts]
        action = (
            f"choose with --state-key: {name_list(others, 4)}" if others else "SARM needs one: record joint positions"
        )
        findings.append(Finding(STATE, "warn" if others else "bad", "there is no such feature", action))
    for fact in facts:
        state = fact.key.startswith("observation")
        before = len(findings)
        if fact.not_finite:
            shown = [f"{name} ({share:.2g} of rows)" for name, share in fact.not_finite.items()]
            told = f"NaN or infinity in {name_list(shown, 4)}, in the sample"
            action = "mend the rows: every frame whose window holds one is scored NaN" if state else "mend the rows"
            findings.append(Finding(fact.key, "bad" if state else "warn", told, action))
        if fact.constant:
            told = f"{len(fact.constant)} of {fact.width} dimensions never change: {name_list(fact.constant, 6)}"
            action = "no harm: SARM is fed 0 for what was constant in training"
            if len(fact.constant) == fact.width:
                action = "nothing moves: check the recording, or choose another with --state-key"
            told_as = "bad" if state and len(fact.constant) == fact.width else "note"
            findings.append(Finding(fact.key, told_as, told, action if state else "check that these are meant to rest"))
        if fact.key == STATE and fact.width > MAX_STATE_DIM:
            told = f"{fact.width} wide; SARM reads the first {MAX_STATE_DIM} dimensions, as LeRobot's does"
            findings.append(Finding(fact.key, "note", told, "put what matters first, or choose with --state-key"))
        if state and len(findings) == before:
            findings.append(Finding(fact.key, "ok", f"{fact.width} wide, every dimension is finite and moves"))
    return findings


def check_rows(dataset: Dataset, sampled: Sequence[SampledRows], tasks: dict[int, str]) -> list[Finding]:
    """Rows of the sampled episodes against the metadata."""
    findings: list[Finding] = []
    good = [each for each in sampled if each.problem is None]

    def add(verdict: str, found: dict[int, str], action: str) -> None:
        """One finding for `row -> what`: the first in words, the other episodes by their numbers."""
        if found:
            row, what = next(iter(found.items()))
            path = dataset.data_files.path(row)
            more = f"; likewise {episode_list(dataset, list(found)[1:])}" if len(found) > 1 else ""
            told = f"{path}: {what} (episode {dataset.episode_index[row]}{more})"
            findings.append(Finding("rows", verdict, told, action))

    unreadable = {each.row: each.problem for each in sampled if each.problem is not None}
    add("bad", unreadable, f"fetch or record again; else {leave_out(dataset, list(unreadable))}" if unreadable else "")
    wrong = {each.row: text for each in good if (text := _wrong_count(dataset, each))}
    add("bad", wrong, f"correct the metadata or record again; else {leave_out(dataset, list(wrong))}" if wrong else "")
    good = [each for each in good if each.row not in wrong]
    add(
        "bad",
        {each.row: text for each in good if (text := _wrong_columns(dataset, each))},
        "correct meta/info.json or the file",
    )
    add(
        "warn",
        {each.row: text for each in good if (text := _wrong_timestamps(dataset, each))},
        "score goes by frame number and video time and does not mind; LeRobot looks frames up by this column: rewrite it",
    )
    add("bad", {each.row: text for each in good if (text := _wrong_numbers(dataset, each))}, "rewrite these columns")
    if tasks:
        texts = {
            each.row: f"task_index {strange[0]:g} is not in the table of tasks"
            for each in good
            if len(strange := np.setdiff1d(each.values.get("task_index", np.zeros(0)), list(tasks)))
        }
        add("warn", texts, "add the text to meta/tasks")
    if good and not findings:
        told = (
            f"{count(len(sampled), 'episode')} read: as many rows as the metadata say, their numbers and times in order"
        )
        findings.append(Finding("rows", "ok", told))
    return findings


def _wrong_count(dataset: Dataset, each: SampledRows) -> str:
    length, rows = int(dataset.length[each.row]), len(next(iter(each.values.values()), np.zeros(0)))
    if each.values and rows != length:
        return f"{rows:,} rows, the metadata say {length:,}"
    file = dataset.data_files.file
    expected = int(dataset.length[file == file[each.row]].sum())
    return (
        f"the file has {each.file_rows:,} rows, its episodes sum to {expected:,}" if each.file_rows != expected else ""
    )


def _wrong_columns(dataset: Dataset, each: SampledRows) -> str:
    for name, why in each.unreadable.items():
        return f"column {name!r}: {why}"
    keys = [key for key in (*INDEX_COLUMNS, *vector_keys(dataset)) if key in dataset.features]
    absent = [key for key in keys if key not in each.values]
    if absent:
        return f"no column {name_list(map(repr, absent), 4)}, which meta/info.json declares"
    for key in vector_keys(dataset):
        width = each.values[key].reshape(len(each.values[key]), -1).shape[1]
        if width != _width(dataset, key):
            return f"{key} is {width} wide, meta/info.json says {_width(dataset, key)}"
    return ""


def _wrong_timestamps(dataset: Dataset, each: SampledRows) -> str:
    if "timestamp" not in each.values:
        return ""
    times = each.values["timestamp"].ravel()
    late = times - np.arange(len(times)) / dataset.fps
    worst = int(np.argmax(np.abs(np.nan_to_num(late, nan=np.inf))))
    if np.abs(late[worst]) * dataset.fps <= 0.5:
        return ""
    return f"timestamp of frame {worst} is {times[worst]:.3f} s, frame / fps is {worst / dataset.fps:.3f} s"


def _wrong_numbers(dataset: Dataset, each: SampledRows) -> str:
    length = int(dataset.length[each.row])
    expected = {
        "frame_index": np.arange(length),
        "index": dataset.from_index[each.row] + np.arange(length),
        "episode_index": np.full(length, dataset.episode_index[each.row]),
    }
    for name, right in expected.items():
        values = each.values.get(name, right).ravel()
        off = np.flatnonzero(values != right)
        if len(off):
            return f"{name} of row {off[0]} is {values[off[0]]}, not {right[off[0]]}"
    return ""


def dimension_names(dataset: Dataset, key: str) -> list[str]:
    """Names of a feature's dimensions; empty where there are not as many as dimensions."""
    names = flat_names(dataset.features[key].get("names"))
    return names if len(names) == _width(dataset, key) else []


def _name(names: list[str], dimension: int) -> str:
    return names[dimension] if dimension < len(names) else str(dimension)


def _width(dataset: Dataset, key: str) -> int:
    return (declared_shape(dataset.features[key]) or (1,))[0]
