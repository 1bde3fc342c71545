"""Single encoded images, as robots send them, to small RGB images."""

import io

import numpy as np
from PIL import Image as Picture
from PIL import UnidentifiedImageError

from sarm_ray.core.live_frames import Image, check_pixels
from sarm_ray.core.live_protocol import LiveLimits, Refusal
from sarm_ray.data.resizing import resize_and_crop

START_OF_SCAN = b"\xff\xda"
MAX_SCANS = 64  # of a progressive JPEG; each takes as long as a whole picture, and twenty thousand fit into a few bytes


def decode_image(image: Image, size: int, limits: LiveLimits) -> np.ndarray:
    """One image, as the encoder takes it: (size, size, 3) uint8, resized and cropped as every frame of a dataset is.

    Raises:
        Refusal: no image of its format, a broken one, or one with too many pixels (looked up before it is decoded).
    """
    return resize_and_crop(_pixels(image, limits), size)


def _pixels(image: Image, limits: LiveLimits) -> np.ndarray:
    """(H, W, 3) uint8."""
    if image.kind == "raw":
        return np.frombuffer(image.data, dtype=np.uint8).reshape(image.height, image.width, 3)
    if image.kind == "jpeg" and bytes(image.data).count(START_OF_SCAN) > MAX_SCANS:
        raise Refusal("bad_image", f"a JPEG of more than {MAX_SCANS} scans")
    try:
        with Picture.open(io.BytesIO(image.data), formats=[image.kind]) as picture:
            check_pixels(picture.height, picture.width, limits)
            return np.asarray(picture.convert("RGB"))
    except Refusal:
        raise
    except Picture.DecompressionBombError as error:  # Pillow's own bound, far above ours
        raise Refusal("image_too_large", f"{error}; send smaller images") from None
    except Exception as error:  # noqa: BLE001  # Pillow raises whatever a broken file leads it to
        reason = (
            "cannot be identified" if isinstance(error, UnidentifiedImageError) else str(error) or type(error).__name__
        )
        raise Refusal("bad_image", f"not a readable {image.kind.upper()} image ({reason})") from None


def jpeg(image: np.ndarray, quality: int = 70) -> bytes:
    """(H, W, 3) uint8 as a JPEG."""
    stream = io.BytesIO()
    Picture.fromarray(image).save(stream, "jpeg", quality=quality)
    return stream.getvalue()
