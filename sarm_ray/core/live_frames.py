"""The live protocol's frames, taken apart: a header, the robot's state, an image of every camera.

What the numbers in a message say is compared with what is there before anything is made of it.
"""

import math
import struct
from dataclasses import dataclass

import numpy as np

from sarm_ray.core.live_protocol import PROTOCOL, Hello, LiveLimits, Refusal

FRAME_HEADER = struct.Struct("<BBBxId")  # version, flags, images, numbers of the state, time in seconds
IMAGE_HEADER = struct.Struct("<BxHHxxI")  # format, height, width, bytes
MESSAGE_LENGTH = struct.Struct("<I")  # before each message of a clip
REPLAYED = 1
IMAGE_FORMATS = ("raw", "jpeg", "png")
MOST_OBLONG = 16  # the shorter side is scaled to the encoder's size, and the longer one with it
MAX_STATE = 1e9  # beyond it a network overflows


@dataclass(frozen=True)
class Image:
    """One camera's image, still encoded.

    Args:
        kind: of IMAGE_FORMATS.
        height, width: pixels; of a raw image alone.
        data: its bytes.
    """

    kind: str
    height: int
    width: int
    data: memoryview


@dataclass(frozen=True)
class Frame:
    """One frame message.

    Args:
        time_s: on the robot's clock.
        state: (state_dim,) float32.
        images: one per camera of the model.
        replayed: it was sent before, and is sent again for the windows of later frames.
    """

    time_s: float
    state: np.ndarray
    images: tuple[Image, ...]
    replayed: bool

    @property
    def num_bytes(self) -> int:
        """Of its images."""
        return sum(len(image.data) for image in self.images)


def read_frame(message: bytes | memoryview, hello: Hello, num_cameras: int, limits: LiveLimits) -> Frame:
    """A frame message, taken apart; its images are looked into later.

    Raises:
        Refusal: wrong lengths, another number of images or of state numbers, a state that is not finite.
    """
    data = memoryview(message)
    if len(data) < FRAME_HEADER.size:
        raise Refusal("bad_message", f"a frame has a header of {FRAME_HEADER.size} bytes, this message has {len(data)}")
    version, flags, num_images, num_state, time_s = FRAME_HEADER.unpack_from(data)
    if version != PROTOCOL or flags > REPLAYED:
        raise Refusal("bad_message", f"not a frame of protocol {PROTOCOL} (version {version}, flags {flags})")
    if not math.isfinite(time_s):
        raise Refusal("not_finite", "the frame's time is not a finite number")
    if num_state != hello.state_dim:
        message_ = f"state has {num_state} numbers, the session said {hello.state_dim}"
        raise Refusal("state_size", message_, time_s=time_s)
    if num_images != num_cameras:
        raise Refusal("bad_message", f"{num_images} images, the model takes {num_cameras}", time_s=time_s)
    rest = data[FRAME_HEADER.size :]
    if len(rest) < 4 * num_state:
        raise Refusal("bad_message", "the message ends inside its state", time_s=time_s)
    state = np.frombuffer(rest[: 4 * num_state], dtype="<f4")
    if not np.isfinite(state).all():
        which = int(np.flatnonzero(~np.isfinite(state))[0])
        raise Refusal("not_finite", f"state: number {which} is not finite", time_s=time_s)
    if num_state and np.abs(state).max() > MAX_STATE:
        raise Refusal("not_finite", f"state: a number is beyond {MAX_STATE:g}", time_s=time_s)
    images, rest = [], rest[4 * num_state :]
    for _ in range(num_images):
        image, rest = _read_image(rest, limits, time_s)
        images.append(image)
    if len(rest):
        raise Refusal("bad_message", f"{len(rest)} bytes too many after the images", time_s=time_s)
    return Frame(time_s, state.astype(np.float32), tuple(images), bool(flags & REPLAYED))


def split_clip(body: bytes, limits: LiveLimits) -> list[memoryview]:
    """A clip's messages, each of which stands after its length.

    Raises:
        Refusal: fatal; a length that does not fit, or too many messages.
    """
    messages: list[memoryview] = []
    rest = memoryview(body)
    while len(rest):
        if len(rest) < MESSAGE_LENGTH.size:
            raise Refusal("bad_message", "the clip ends inside a message's length", fatal=True)
        (length,) = MESSAGE_LENGTH.unpack_from(rest)
        rest = rest[MESSAGE_LENGTH.size :]
        if length > min(len(rest), limits.max_message_bytes):
            there = f"{len(rest)} are left, {limits.max_message_bytes} are allowed"
            raise Refusal("too_large", f"a message of the clip says it has {length} bytes; {there}", fatal=True)
        if len(messages) > limits.max_clip_frames:
            raise Refusal("too_large", f"a clip has at most {limits.max_clip_frames} frames", fatal=True)
        messages.append(rest[:length])
        rest = rest[length:]
    return messages


def _read_image(data: memoryview, limits: LiveLimits, time_s: float) -> tuple[Image, memoryview]:
    if len(data) < IMAGE_HEADER.size:
        raise Refusal("bad_message", "the message ends inside an image's header", time_s=time_s)
    kind, height, width, num_bytes = IMAGE_HEADER.unpack_from(data)
    data = data[IMAGE_HEADER.size :]
    if kind >= len(IMAGE_FORMATS):
        raise Refusal("bad_message", f"no image format {kind}; 0 raw, 1 JPEG, 2 PNG", time_s=time_s)
    if num_bytes > len(data):
        raise Refusal("bad_message", f"an image of {num_bytes} bytes, of which {len(data)} came", time_s=time_s)
    if IMAGE_FORMATS[kind] == "raw":
        check_pixels(height, width, limits, time_s)
        if num_bytes != height * width * 3:
            size = f"a raw image of {height} x {width} has {height * width * 3} bytes, not {num_bytes}"
            raise Refusal("bad_image", size, time_s=time_s)
    return Image(IMAGE_FORMATS[kind], height, width, data[:num_bytes]), data[num_bytes:]


def check_pixels(height: int, width: int, limits: LiveLimits, time_s: float | None = None) -> None:
    """Raise a Refusal for an empty image or one that is too large."""
    if height < 1 or width < 1:
        raise Refusal("bad_image", f"an image of {height} x {width} pixels", time_s=time_s)
    if max(height, width) > MOST_OBLONG * min(height, width):
        oblong = f"{height} x {width} pixels: one side is more than {MOST_OBLONG} times the other"
        raise Refusal("bad_image", oblong, time_s=time_s)
    if height * width > limits.max_image_pixels:
        allowed = f"{height} x {width} pixels are more than {limits.max_image_pixels}"
        raise Refusal("image_too_large", f"{allowed}; send smaller images", time_s=time_s)
