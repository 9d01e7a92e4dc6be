"""From a face's crop to the array that an embedding network is fed."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipelines.faces.alignment import fit_square, letterbox

CropPolicy = Literal["deepface", "five_point_dlib", "five_point_arcface"]
Channels = Literal["RGB", "BGR"]
Layout = Literal["NCHW", "NHWC"]
Normalization = Literal["unit", "symmetric", "symmetric128", "raw"]


@dataclass(frozen=True)
class Preprocessing:
    """What a network wants of its input.

    version: how the version string of a vector names all of this; another one makes stored vectors stale.
    channels: order of the colours. layout: `NHWC` for (size, size, 3), `NCHW` for (3, size, size).
    normalization, of values x from 0 to 255: `unit` x / 255, `symmetric` (x - 127.5) / 127.5, `symmetric128`
    (x - 127.5) / 128, `raw` x.
    """

    version: str
    channels: Channels
    layout: Layout
    normalization: Normalization

    def image(self, chip: NDArray[np.uint8], size: int) -> NDArray[np.float32]:
        """The chip, (h, w, 3) uint8 RGB of any size, as the network takes it; ValueError for one without a pixel."""
        if self.normalization == "unit":
            image = letterbox(chip, size)
        else:
            pixels = fit_square(chip, size).astype(np.float32)
            scale = {"symmetric": 127.5, "symmetric128": 128}.get(self.normalization)
            image = pixels if scale is None else (pixels - np.float32(127.5)) / np.float32(scale)
        if self.channels == "BGR":
            image = image[..., ::-1]
        return image.transpose(2, 0, 1) if self.layout == "NCHW" else image


# DeepFace's normalization "base". Count up when a change here or in `letterbox` changes vectors.
DEEPFACE = Preprocessing(version="base1", channels="BGR", layout="NHWC", normalization="unit")
