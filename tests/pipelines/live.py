"""What the tests of the live server share: a real server on the session's Ray, robots that are the raw protocol."""

import contextlib
import json
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from websockets.sync.client import ClientConnection, connect

from sarm_ray.config.serve import ServeConfig
from sarm_ray.core.windows import Window
from sarm_ray.data.lerobot import open_dataset
from sarm_ray.data.rows import read_rows, state_statistics
from sarm_ray.model.checkpoint import SarmConfig, Sidecar, StateNormalizer
from sarm_ray.model.checkpoint_writer import save_checkpoint
from sarm_ray.model.encoder import EFFICIENTNET, EncoderInfo
from sarm_ray.pipelines.runtime import survey
from sarm_ray.pipelines.serve import serving
from sarm_ray.pipelines.serving.plan import plan_serving
from tests.datasets import CAMERA, write_dataset
from tests.model.tiny import random_sarm
from tests.pipelines.reference import episode_images, score_without_ray

TOKEN = "a-token-of-the-tests-7f3a"
FPS, GAP = 30.0, 6
LENGTHS = (70, 40, 55)
TASK = "push the block"


@dataclass(frozen=True)
class Robots:
    """A dataset whose episodes robots live through, and what each frame's live score is.

    Args:
        root: of the dataset; model: a checkpoint that was trained on its statistics.
        images: episode -> (L, 224, 224, 3) uint8; states: episode -> (L, 6) float32.
        expected: head -> episode -> (L,) float32, as `score --live` gives.
    """

    root: str
    model: str
    images: list[np.ndarray]
    states: list[np.ndarray]
    expected: dict[str, list[np.ndarray]]


def make_robots(folder: Path, encoder: EncoderInfo) -> Robots:
    """A generated dataset of pictures as small as the encoder takes them, so that every way of sending them is exact."""
    root = str(write_dataset(folder / "data", "v3.0", LENGTHS, fps=FPS, size=(224, 224), tasks=[TASK]))
    dataset = open_dataset(root)
    mean, std = state_statistics(dataset, "observation.state")
    config = SarmConfig(
        annotation_mode="dual", frame_gap=GAP, image_dim=1280, text_dim=512, hidden_dim=32, num_heads=4, num_layers=2,
        image_key=CAMERA, num_sparse_stages=3, num_dense_stages=4, sparse_subtask_names=["reach", "push", "retract"],
    )  # fmt: skip
    record = Sidecar(encoder=EFFICIENTNET, encoder_weights=encoder.weights, image_keys=[CAMERA], fps=FPS)
    normalizer = StateNormalizer(mean.astype(np.float32), std.astype(np.float32))
    model = str(folder / "model")
    save_checkpoint(model, config, random_sarm(config.shape), record, normalizer)
    progress = score_without_ray(root, model, encoder, Window(8, GAP, live=True), ("sparse", "dense"))
    ends = np.cumsum(LENGTHS)[:-1]
    return Robots(
        root=root,
        model=model,
        images=[episode_images(dataset, CAMERA, row) for row in range(len(LENGTHS))],
        states=[read_rows(dataset, row, ["observation.state"])["observation.state"] for row in range(len(LENGTHS))],
        expected={head: np.split(values, ends) for head, values in progress.items()},
    )


@dataclass
class Server:
    """A running server."""

    config: ServeConfig

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.config.port}"


@contextlib.contextmanager
def live_server(model: str, folder: Path, **changes: Any) -> Iterator[Server]:
    """On the session's Ray, with a token, in fp32."""
    token = folder / "token"
    token.write_text(TOKEN + "\n")
    token.chmod(0o600)
    options = {"score_hz": FPS, "precision": "fp32", "token_file": str(token), "port": free_port(), "drain_s": 5.0}
    config = ServeConfig(model=model, **{**options, **changes})
    cluster = survey()
    with serving(plan_serving(config, cluster), config, cluster):
        yield Server(config)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def hello(**changes: Any) -> dict[str, Any]:
    return {"type": "hello", "protocol": 1, "task": TASK, "fps": FPS, "state_dim": 6, **changes}


def frame_message(
    time_s: float, state: np.ndarray, image: np.ndarray | bytes, kind: int = 0, replayed: bool = False
) -> bytes:
    """By the README alone, not by the client."""
    height, width = image.shape[:2] if isinstance(image, np.ndarray) else (0, 0)
    data = image.tobytes() if isinstance(image, np.ndarray) else image
    numbers = np.asarray(state, dtype="<f4")
    header = struct.pack("<BBBxId", 1, int(replayed), 1, len(numbers), time_s)
    return header + numbers.tobytes() + struct.pack("<BxHHxxI", kind, height, width, len(data)) + data


def open_socket(server: Server, session: str, token: str | None = TOKEN, **headers: str) -> ClientConnection:
    own = {"x-session-id": session, **headers}
    if token is not None:
        own["Authorization"] = f"Bearer {token}"
    url = f"ws://{server.address}/v1/sessions/{session}"
    return connect(url, additional_headers=own, proxy=None, max_size=None, open_timeout=30)


class Robot:
    """One session over the raw protocol."""

    def __init__(self, server: Server, session: str, **changes: Any):
        self.socket = open_socket(server, session)
        self.say(hello(**changes))
        self.welcome = self.hear()

    def say(self, message: dict[str, Any]) -> None:
        self.socket.send(json.dumps(message))

    def hear(self, timeout_s: float = 60) -> dict[str, Any]:
        return json.loads(self.socket.recv(timeout=timeout_s))

    def show(self, time_s: float, state: np.ndarray, image: np.ndarray | bytes, **how: Any) -> None:
        self.socket.send(frame_message(time_s, state, image, **how))

    def live_through(self, robots: Robots, episode: int, frames: Sequence[int]) -> list[dict[str, Any]]:
        """Send frames one by one, each after the answer to the one before."""
        replies = []
        for frame in frames:
            self.show(frame / FPS, robots.states[episode][frame], robots.images[episode][frame])
            replies.append(self.hear())
        return replies

    def close(self, outcome: str | None = None) -> dict[str, Any]:
        self.say({"type": "close", "outcome": outcome})
        while (message := self.hear())["type"] != "curve":
            pass
        self.socket.close()
        return message


def at_once(*calls: Any) -> list[Any]:
    """Run calls in threads of their own: their results in order."""
    results: list[Any] = [None] * len(calls)

    def run(place: int) -> None:
        try:
            results[place] = calls[place]()
        except BaseException as error:  # noqa: BLE001  # raised below, in the test's own thread
            results[place] = error

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results
