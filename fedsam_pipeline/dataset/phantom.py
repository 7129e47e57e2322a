"""The anatomy and the scanner of the demo cohort: an image model that can be evaluated on any grid.

Nothing here is medical. An *organ* (a deformed ellipsoid) carries a *nodule* on its surface, inside a body with a rim, textured tissue,
vessels, a duct and round decoys that look like the nodule but do not touch the organ. All shapes are in mm.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Array = NDArray[np.float64]
ORGAN, NODULE = 1, 2


@dataclass(frozen=True)
class Scanner:
    """How a site's images look.

    Args:
        tissue, rim, organ, nodule, vessel, duct: mean intensity of each structure; air is 0.
        gamma: exponent applied to the finished intensities.
        noise: standard deviation of the noise; air shows its magnitude, as in MRI.
        bias: strength of the slow brightness drift across the image (0.2: up to about 20 %).
        blur_mm: standard deviation of the in-plane point spread.
    """

    tissue: float
    rim: float
    organ: float
    nodule: float
    vessel: float
    duct: float
    gamma: float
    noise: float
    bias: float
    blur_mm: float


class Waves:
    """A smooth random function of position: a sum of plane waves with unit standard deviation.

    Args:
        generator: where the waves are drawn from.
        wavelength_mm: their shortest and longest wavelength.
        count: how many.
    """

    def __init__(self, generator: np.random.Generator, wavelength_mm: tuple[float, float], count: int = 6) -> None:
        directions = generator.normal(size=(count, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        self._vectors = directions * (2 * np.pi / generator.uniform(*wavelength_mm, size=(count, 1)))
        self._phases = generator.uniform(0, 2 * np.pi, size=count)

    def __call__(self, points: Array) -> Array:
        """Values at ``points`` (3, ...) in mm, of shape (...)."""
        total = np.zeros(points.shape[1:])
        for vector, phase in zip(self._vectors, self._phases, strict=True):
            total += np.cos(np.tensordot(vector, points, axes=1) + phase)
        scaled: Array = total * np.sqrt(2 / len(self._phases))
        return scaled


def grid_points(size: tuple[int, int, int], spacing: tuple[float, float, float]) -> Array:
    """Voxel centres (3, Z, Y, X) in mm, components (z, y, x), the origin in the middle of the grid; all arguments are (z, y, x)."""
    axes = [(np.arange(extent) - (extent - 1) / 2) * step for extent, step in zip(size, spacing, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"))


def draw_case(
    generator: np.random.Generator, scanner: Scanner, size: tuple[int, int, int], spacing: tuple[float, float, float]
) -> tuple[Array, NDArray[np.uint8]]:
    """One patient in one scanner.

    Args:
        generator: decides everything that is random.
        scanner: the look of the site.
        size: voxels (z, y, x).
        spacing: mm (z, y, x).

    Returns:
        Intensities (Z, Y, X), air near 0 and none negative; labels (Z, Y, X): 0 background, 1 organ, 2 nodule.
    """
    points = grid_points(size, spacing)
    warped = points + np.stack([2.2 * Waves(generator, (25, 60))(points) for _ in range(3)])

    # the body: a long, slightly squared tube along z with a bright rim
    half_y, half_x = generator.uniform(18, 21), generator.uniform(20, 24)
    body_depth = 1 - ((np.abs(warped[1]) / half_y) ** 2.5 + (np.abs(warped[2]) / half_x) ** 2.5)
    body = body_depth > 0
    rim = body & (body_depth < 0.22)

    # the organ: an ellipsoid, turned and off centre
    centre = np.array([generator.uniform(-5, 5), generator.uniform(-4, 4), generator.uniform(-5, 5)])
    axes = np.array([generator.uniform(12, 17), generator.uniform(6.5, 9), generator.uniform(8, 11)])
    rotation = _random_rotation(generator, 0.5)
    local = np.tensordot(rotation, warped - centre[:, None, None, None], axes=1) / axes[:, None, None, None]
    organ_radius = np.sqrt((local**2).sum(axis=0)) * (1 + 0.06 * Waves(generator, (10, 20))(points))
    organ = body & (organ_radius < 1)

    # the nodule: a bumpy ball whose centre lies just below the organ's surface, away from its poles
    angle, height = generator.uniform(0, 2 * np.pi), generator.uniform(-0.45, 0.45)
    on_surface = np.array([height, np.sqrt(1 - height**2) * np.sin(angle), np.sqrt(1 - height**2) * np.cos(angle)])
    nodule_centre = rotation.T @ (on_surface * axes * 0.8) + centre
    nodule = body & _ball(generator, points, warped, nodule_centre, generator.uniform(4.2, 6.0))

    image = np.where(body, scanner.tissue, 0.0)
    image = np.where(rim, scanner.rim, image)
    keep_clear = organ_radius > 1.35
    for _ in range(generator.integers(2, 5)):
        image = np.where(body & keep_clear & _tube(generator, warped, generator.uniform(1.0, 1.8)), scanner.vessel, image)
    image = np.where(body & keep_clear & _tube(generator, warped, generator.uniform(1.6, 2.4)), scanner.duct, image)
    for _ in range(generator.integers(1, 4)):
        where = np.array([generator.uniform(-25, 25), generator.uniform(-14, 14), generator.uniform(-16, 16)])
        decoy = body & (organ_radius > 1.5) & _ball(generator, points, warped, where, generator.uniform(2.5, 4.5))
        image = np.where(decoy, scanner.nodule, image)
    image = np.where(organ, scanner.organ, image)
    image = np.where(nodule, scanner.nodule * generator.uniform(0.94, 1.06), image)

    contrast = abs(scanner.organ - scanner.tissue)
    image = image + body * contrast * (0.18 * Waves(generator, (6, 14), 12)(points) + 0.15 * Waves(generator, (14, 30))(points))
    image = gaussian_filter(image, [0.0, scanner.blur_mm / spacing[1], scanner.blur_mm / spacing[2]])
    image = np.clip(image, 0, None) ** scanner.gamma * np.exp(0.6 * scanner.bias * Waves(generator, (70, 140), 4)(points))
    real, imaginary = generator.normal(scale=scanner.noise, size=(2, *image.shape))
    image = np.hypot(image + real, imaginary)  # Rician noise: the magnitude of a complex signal

    labels = np.zeros(size, dtype=np.uint8)
    labels[organ] = ORGAN
    labels[nodule] = NODULE
    return image, labels


def _ball(generator: np.random.Generator, points: Array, warped: Array, centre: Array, radius: float) -> NDArray[np.bool_]:
    distance = np.sqrt(((warped - centre[:, None, None, None]) ** 2).sum(axis=0))
    inside: NDArray[np.bool_] = distance < radius * (1 + 0.08 * Waves(generator, (6, 12))(points))
    return inside


def _tube(generator: np.random.Generator, warped: Array, radius: float) -> NDArray[np.bool_]:
    """A winding tube that runs roughly along z."""
    start = generator.uniform(-16, 16, size=2)
    slope = generator.uniform(-0.25, 0.25, size=2)
    swing = generator.uniform(1, 4, size=2)
    phase = generator.uniform(0, 2 * np.pi, size=2)
    z = warped[0]
    y = start[0] + slope[0] * z + swing[0] * np.sin(z / 9 + phase[0])
    x = start[1] + slope[1] * z + swing[1] * np.sin(z / 9 + phase[1])
    inside: NDArray[np.bool_] = np.hypot(warped[1] - y, warped[2] - x) < radius
    return inside


def _random_rotation(generator: np.random.Generator, spread: float) -> Array:
    """A rotation by about ``spread`` radians around a random axis (Rodrigues' formula)."""
    x, y, z = generator.normal(scale=spread / np.sqrt(3), size=3)
    angle = float(np.sqrt(x * x + y * y + z * z))
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) / max(angle, 1e-12)
    rotation: Array = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    return rotation
