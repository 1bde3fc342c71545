"""Broken datasets: how each comes to be, which chunks must fail and in what words, and which frames are lost."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.datasets import CAMERA, frame_code, write_video

# kind -> version, episode lengths, options; each is a sound dataset, of which the broken ones are copies
SOUND: dict[str, tuple[str, list[int], dict]] = {
    "v21": ("v2.1", [300, 40, 7], {}),
    "v30": ("v3.0", [40, 7, 30], {"episodes_per_video": 2, "episodes_per_data_file": 2}),
    "png": ("v2.1", [20, 7], {"image_dataset": True}),
}
V21_VIDEO = f"videos/chunk-000/{CAMERA}/episode_000000.mp4"
V30_VIDEO = f"videos/{CAMERA}/chunk-000/file-000.mp4"
V30_DATA = "data/chunk-000/file-000.parquet"


def v21_data(episode: int) -> str:
    return f"data/chunk-000/episode_{episode:06d}.parquet"


# ----------------------------------------------------------------------------------------------------- ways to break one


def overwrite(path: str, content: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        (root / path).write_bytes(content((root / path).read_bytes()))

    return spoil


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def remove(path: str) -> Callable[[Path], None]:
    return lambda root: (root / path).unlink()


def edit_rows(path: str, edit: Callable[[pa.Table], pa.Table]) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        pq.write_table(edit(pq.read_table(root / path)), root / path)

    return spoil


def with_states(table: pa.Table, edit: Callable[[np.ndarray], np.ndarray]) -> pa.Table:
    states = edit(np.stack(table["observation.state"].to_numpy()).astype(np.float32))
    column = pa.FixedSizeListArray.from_arrays(pa.array(states.ravel()), states.shape[1])
    return table.set_column(table.schema.get_field_index("observation.state"), "observation.state", column)


def put_states(path: str, frames: slice | int, value: float) -> Callable[[Path], None]:
    """One dimension of some frames."""

    def edit(states: np.ndarray) -> np.ndarray:
        states[frames, 3] = value
        return states

    return edit_rows(path, functools.partial(with_states, edit=edit))


def garbage_in_the_middle(root: Path) -> None:
    """Random bytes over the packet of frame 104, which stands between keyframes 100 and 110."""
    with av.open(str(root / V21_VIDEO)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.pts is not None]
        place = next((p.pos, p.size) for p in packets if round(p.pts * p.time_base * 30) == 104)
    content = bytearray((root / V21_VIDEO).read_bytes())
    content[place[0] : sum(place)] = np.random.default_rng(0).bytes(place[1])
    (root / V21_VIDEO).write_bytes(content)


def shorter_video(root: Path) -> None:
    write_video(root / V21_VIDEO, [frame_code(0, frame) for frame in range(280)], size=(64, 64))


def cut_off_download(root: Path) -> None:
    """The index comes first, the last tenth never came."""
    numbers = [frame_code(0, frame) for frame in range(300)]
    write_video(root / V21_VIDEO, numbers, size=(64, 64), container_options={"movflags": "faststart"})
    content = (root / V21_VIDEO).read_bytes()
    (root / V21_VIDEO).write_bytes(content[: int(len(content) * 0.95)])


def unreadable_videos(root: Path) -> None:
    for path in root.rglob("*.mp4"):
        path.write_bytes(half(path.read_bytes()))


def broken_png(table: pa.Table) -> pa.Table:
    cells = table[CAMERA].to_pylist()
    cells[5]["bytes"] = cells[5]["bytes"][:100]
    return table.set_column(table.schema.get_field_index(CAMERA), CAMERA, pa.array(cells, table[CAMERA].type))


# -------------------------------------------------------------------------------------------------------------- the cases

Failure = tuple[int, int, int, str, str]  # episode, start, stop, error, message ("ROOT" the folder, "…" any words)


@dataclass(frozen=True)
class Case:
    """A broken dataset.

    Args:
        kind: key of SOUND.
        spoil: breaks a copy of it.
        failures: what failed.parquet must say.
        lost: episode -> frames whose picture or state is not there; windows that hold one of them are NaN.
        decoded: frames that are read from a file that was changed and is not wholly lost.
    """

    kind: str
    spoil: Callable[[Path], object]
    failures: list[Failure]
    lost: dict[int, range]
    decoded: int = 0

    @property
    def lengths(self) -> list[int]:
        return SOUND[self.kind][1]

    @property
    def num_undecoded(self) -> int:
        """Frames in chunks whose pictures cannot be read."""
        return sum(stop - start for _, start, stop, error, _ in self.failures if error == "VideoError")


def both_chunks(error: str, message: str, second: str | None = None) -> list[Failure]:
    return [(0, 0, 256, error, message), (0, 256, 300, error, second or message)]


INVALID = "Invalid data found when processing input"  # ffmpeg's words
NO_VIDEO = f"not a readable video ({INVALID})"
UNREADABLE = f"ROOT/{V21_VIDEO}: {NO_VIDEO}"
IS_EMPTY = f"ROOT/{V21_VIDEO}: not a readable video (it is empty)"
IS_POINTER = f"ROOT/{V21_VIDEO}: not a readable video (it is a Git LFS pointer; fetch the video with git lfs pull)"
WHOLE = {0: range(300)}
NAN = "observation.state is NaN or infinite in"
CASES = {
    "truncated_mp4": Case("v21", overwrite(V21_VIDEO, half), both_chunks("VideoError", UNREADABLE), WHOLE),
    "empty_mp4": Case("v21", overwrite(V21_VIDEO, lambda _: b""), both_chunks("VideoError", IS_EMPTY), WHOLE),
    "text_mp4": Case(
        "v21",
        overwrite(V21_VIDEO, lambda _: b"these are not the frames you are looking for\n" * 99),
        both_chunks("VideoError", UNREADABLE),
        WHOLE,
    ),
    "mp4_left_behind_by_git_lfs": Case(
        "v21",
        overwrite(V21_VIDEO, lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"),
        both_chunks("VideoError", IS_POINTER),
        WHOLE,
    ),
    "missing_mp4": Case(
        "v21", remove(V21_VIDEO), both_chunks("VideoError", f"ROOT/{V21_VIDEO}: no such file"), WHOLE
    ),
    "garbage_in_an_mp4": Case(
        "v21",
        garbage_in_the_middle,
        [(0, 0, 256, "VideoError", f"ROOT/{V21_VIDEO}: frame 100: decoder error after 3.… s: {INVALID}; 10 of its "
          "chunk's 256 frames are missing")],
        {0: range(256)},
        decoded=44,
    ),
    "mp4_cut_off_at_its_end": Case(
        "v21",
        cut_off_download,
        [(0, 256, 300, "VideoError", f"ROOT/{V21_VIDEO}: frame 28…: … (last one at 9.… s); … of its chunk's 44 frames are "
          "missing")],
        {0: range(256, 300)},
        decoded=256,
    ),
    "mp4_shorter_than_the_rows": Case(
        "v21",
        shorter_video,
        [(0, 256, 300, "VideoError", f"ROOT/{V21_VIDEO}: frame 280: the video has no frame at its time (last one at 9.300 "
          "s); 20 of its chunk's 44 frames are missing")],
        {0: range(256, 300)},
        decoded=256,
    ),
    "a_row_too_few": Case(
        "v21",
        edit_rows(v21_data(0), lambda table: table.slice(0, 299)),
        both_chunks("DatasetError", f"ROOT/{v21_data(0)}: episode 0 has 299 rows, the metadata say 300"),
        WHOLE,
    ),
    "a_row_too_many": Case(
        "v21",
        edit_rows(v21_data(1), lambda table: pa.concat_tables([table, table.slice(39)])),
        [(1, 0, 40, "DatasetError", f"ROOT/{v21_data(1)}: episode 1 has 41 rows, the metadata say 40")],
        {1: range(40)},
    ),
    "nan_state": Case(
        "v21",
        put_states(v21_data(0), 245, np.nan),
        [(0, 0, 256, "DatasetError", f"ROOT/{v21_data(0)}: {NAN} frame 245")],
        {0: range(245, 246)},
    ),
    "infinite_state": Case(
        "v21",
        put_states(v21_data(0), 270, -np.inf),
        [(0, 256, 300, "DatasetError", f"ROOT/{v21_data(0)}: {NAN} frame 270")],
        {0: range(270, 271)},
    ),
    "nan_episode": Case(
        "v21",
        put_states(v21_data(0), slice(None), np.nan),
        both_chunks(
            "DatasetError",
            f"ROOT/{v21_data(0)}: {NAN} 256 frames, the first is 0",
            f"ROOT/{v21_data(0)}: {NAN} 44 frames, the first is 256",
        ),
        WHOLE,
    ),
    "missing_data_file": Case(
        "v21",
        remove(v21_data(1)),
        [(1, 0, 40, "DatasetError", f"ROOT/{v21_data(1)}: no such file")],
        {1: range(40)},
    ),
    "truncated_data_file": Case(
        "v21",
        overwrite(v21_data(1), half),
        [(1, 0, 40, "DatasetError", f"ROOT/{v21_data(1)}: not a readable parquet file (…)")],
        {1: range(40)},
    ),
    "no_state_column": Case(
        "v21",
        edit_rows(v21_data(2), lambda table: table.drop_columns(["observation.state"])),
        [(2, 0, 7, "DatasetError", f"ROOT/{v21_data(2)}: no column 'observation.state'; it has action, timestamp, "
          "frame_index, episode_index, index, task_index")],
        {2: range(7)},
    ),
    "state_of_another_width": Case(
        "v21",
        edit_rows(v21_data(2), functools.partial(with_states, edit=lambda states: states[:, :5].copy())),
        [(2, 0, 7, "DatasetError", f"ROOT/{v21_data(2)}: observation.state is 5 wide, not 6")],
        {2: range(7)},
    ),
    "video_of_two_episodes": Case(
        "v30",
        overwrite(V30_VIDEO, half),
        [(0, 0, 40, "VideoError", f"ROOT/{V30_VIDEO}: {NO_VIDEO}"),
         (1, 0, 7, "VideoError", f"ROOT/{V30_VIDEO}: {NO_VIDEO}")],
        {0: range(40), 1: range(7)},
    ),
    "data_file_of_two_episodes": Case(
        "v30",
        overwrite(V30_DATA, half),
        [(0, 0, 40, "DatasetError", f"ROOT/{V30_DATA}: not a readable parquet file (…)"),
         (1, 0, 7, "DatasetError", f"ROOT/{V30_DATA}: not a readable parquet file (…)")],
        {0: range(40), 1: range(7)},
    ),
    "a_lost_row_of_one_of_two_episodes": Case(
        "v30",
        edit_rows(V30_DATA, lambda table: table.take([k for k in range(47) if k != 43])),
        [(1, 0, 7, "DatasetError", f"ROOT/{V30_DATA}: episode 1 has 6 rows, the metadata say 7")],
        {1: range(7)},
    ),
    "no_readable_video": Case(
        "v30",
        unreadable_videos,
        [(0, 0, 40, "VideoError", f"ROOT/{V30_VIDEO}: {NO_VIDEO}"),
         (1, 0, 7, "VideoError", f"ROOT/{V30_VIDEO}: {NO_VIDEO}"),
         (2, 0, 30, "VideoError", f"ROOT/{V30_VIDEO.replace('000.mp4', '001.mp4')}: {NO_VIDEO}")],
        {0: range(40), 1: range(7), 2: range(30)},
    ),
    "broken_png": Case(
        "png",
        edit_rows(v21_data(0), broken_png),
        [(0, 0, 20, "VideoError", f"ROOT/{v21_data(0)}: frame 5: not a readable image (…)")],
        {0: range(20)},
    ),
    "missing_file_of_images": Case(
        "png",
        remove(v21_data(1)),
        [(1, 0, 7, "VideoError", f"ROOT/{v21_data(1)}: no such file")],
        {1: range(7)},
    ),
}  # fmt: skip
