"""Made pictures in the place of faces, where a network has to be tried and no photo may be at hand."""

import numpy as np
from numpy.typing import NDArray


def made_crops(count: int, size: int, seed: int) -> NDArray[np.uint8]:
    """Noise with the statistics of photos: (count, size, size, 3) uint8 RGB, the same for the same arguments.

    The amplitude falls with the spatial frequency, as in natural images (Field, "Relations between the statistics of
    natural images and the response properties of cortical cells", 1987), colours differ less than brightness does, and
    brightness and contrast vary from crop to crop.
    """
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size))
    frequency[0, 0] = np.inf  # no mean: it is drawn below
    crops = np.empty((count, size, size, 3), np.uint8)
    for crop in crops:
        spectrum = np.fft.fft2(rng.normal(size=(3, size, size)), axes=(1, 2)) / frequency
        colours = np.fft.ifft2(spectrum, axes=(1, 2)).real.transpose(1, 2, 0)
        grey = colours.mean(axis=2, keepdims=True)
        picture = grey + 0.3 * (colours - grey)
        crop[:] = np.clip(rng.uniform(70, 180) + rng.uniform(20, 60) * picture / picture.std(), 0, 255)
    return crops
