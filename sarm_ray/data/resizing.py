"""Images made small as CLIP's preprocessing in LeRobot makes them: antialiased bicubic of torch, on uint8."""

import numpy as np


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """By antialiased bicubic: (H, W, 3) uint8 -> (height, width, 3) uint8."""
    import torch

    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    pixels = torch.nn.functional.interpolate(pixels, size=(height, width), mode="bicubic", antialias=True)
    return pixels[0].permute(1, 2, 0).numpy()


def resize_and_crop(image: np.ndarray, size: int) -> np.ndarray:
    """Shortest edge to `size` by antialiased bicubic, then the centre: (H, W, 3) uint8 -> (size, size, 3) uint8.

    CLIP's preprocessing as LeRobot runs it, bit for bit (torchvision's uint8 path is this torch kernel).
    """
    height, width = image.shape[:2]
    if (height, width) != (size, size):
        scaled = (size, int(size * width / height)) if height <= width else (int(size * height / width), size)
        image = resize(image, *scaled)
    top, left = round((image.shape[0] - size) / 2), round((image.shape[1] - size) / 2)
    return image[top : top + size, left : left + size]


def fit(image: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """The centre with sides of `size`, or the whole image at (height, width)."""
    return resize_and_crop(image, size) if isinstance(size, int) else resize(image, *size)


def fitted_shape(num_frames: int, size: int | tuple[int, int]) -> tuple[int, int, int, int]:
    """Of so many images that `fit` has made."""
    height, width = (size, size) if isinstance(size, int) else size
    return num_frames, height, width, 3
