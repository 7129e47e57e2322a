"""From prompts in the patient, in mm, to prompts on the plan's grid: scanner, canonical axes, crop, resampling, slice axis."""

from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedsam_pipeline.dataset.geometry import numbers_text
from fedsam_pipeline.errors import FedsamError, fault_list
from fedsam_pipeline.inference.export import original_geometry
from fedsam_pipeline.inference.prompts import VolumePrompt
from fedsam_pipeline.model.prompts import PromptKind
from fedsam_pipeline.specs.case import CaseProperties
from fedsam_pipeline.specs.plans import Plans
from fedsam_pipeline.specs.prompts import ClassPrompts, Point, PromptsFile

KINDS = {"box": frozenset({"boxes"}), "point": frozenset({"points", "negative_points"})}
"""what a model can be told by its plan's ``prompts.mode``: what it was trained with"""


def require_prompted(plans: Plans) -> None:
    """Refuses a model that was trained without prompts.

    Raises:
        FedsamError: ``prompts.mode`` of its plan is ``auto``.
    """
    if plans.prompts.mode not in KINDS:
        raise FedsamError(
            "the model was trained without prompts and takes none",
            found=f"prompts.mode {plans.prompts.mode} in its plan",
            expected=" or ".join(KINDS),
            fix="predict without prompts, or set prompts.mode to box in plans.json and train again",
        )


def check_prompts(file: PromptsFile, path: Path | str | None, cases: Collection[str], plans: Plans, *, others: bool) -> None:
    """Whether a model can be given these prompts for these images; where they lie is seen once an image is read.

    Args:
        file: the prompts.
        path: of the file, for the message.
        cases: names of the images.
        plans: of the model.
        others: whether the file may hold images that are not among ``cases``; it must hold all of these, then.

    Raises:
        FedsamError: the model takes no prompts; or names every unknown case, unknown class, and prompts of a kind that the model was not
            trained with.
    """
    require_prompted(plans)
    faults = [f"cases: nothing for {case}" for case in sorted(cases) if case not in file.cases] if others else []
    for case, classes in file.cases.items():
        if case in cases:
            faults += (f"cases.{case}.{fault}" for fault in _class_faults(classes, plans))
        elif not others:
            faults.append(f"cases.{case}: no such image{_guess(case, cases)}")
    if faults:
        mode = plans.prompts.mode
        raise FedsamError(
            "the prompts do not fit the images or the model",
            path=path,
            found=fault_list(faults),
            expected=f"names of images, classes among {', '.join(_classes(plans))}, and {' or '.join(sorted(KINDS[mode]))}: the model was "
            f"trained with prompts.mode {mode}",
            fix="correct these names, or leave these prompts out",
        )


def _classes(plans: Plans) -> list[str]:
    return [name for name, label in plans.labels.items() if label]


def _class_faults(classes: Mapping[str, ClassPrompts], plans: Plans) -> Iterator[str]:
    known = _classes(plans)
    for name, prompts in classes.items():
        if name not in known:
            yield f"{name}: no such class{_guess(name, known)}"
        yield from (f"{name}.{kind}: the model was not trained with them" for kind in sorted(prompts.kinds - KINDS[plans.prompts.mode]))


def _guess(name: str, known: Collection[str]) -> str:
    near = get_close_matches(name, list(known), n=1)
    return f", did you mean {near[0]}?" if near else ""


def volume_prompts(prompts: Mapping[str, ClassPrompts], properties: CaseProperties, plans: Plans) -> list[VolumePrompt]:
    """The prompts of one case on the plan's grid.

    A box holds the voxels whose centres lie in it, and where there is none, as in a box drawn on one slice, the nearest. What leaves the
    image is cut off. Where the image's axes are oblique, the smallest box of voxels around the eight corners is taken.

    Args:
        prompts: class name to prompts, LPS, mm.
        properties: what preprocessing did to the case.
        plans: the plan.

    Raises:
        FedsamError: names every prompt that lies outside the image, or where the image is empty (all zero) and was cropped.
    """
    found: list[VolumePrompt] = []
    faults: list[str] = []
    for name, label, kind, place, corners in _each(prompts, plans):
        canonical = _canonical_voxels(corners, properties)
        first, last = _inside(canonical, properties.canonical_size)
        on_grid = _inside(_grid_voxels(canonical, properties), properties.stored_size)
        if np.any(first > last):
            faults.append(f"{name}.{place} lies outside the image")
        elif np.any(on_grid[0] > on_grid[1]):
            faults.append(f"{name}.{place} lies where the image is empty (all zero)")
        else:
            found.append(VolumePrompt(kind, label, *_centres(*on_grid, properties.stored_size)))
    if faults:
        low, high = (numbers_text(end) for end in _extent(properties))
        raise FedsamError(
            f"prompts of {properties.case} lie outside the image",
            found=fault_list(faults),
            expected=f"mm within {low} to {high} in LPS (x, y, z)",
            fix="check coordinates (LPS or RAS) and the names of the cases in the file of prompts",
        )
    return found


def _each(prompts: Mapping[str, ClassPrompts], plans: Plans) -> Iterator[tuple[str, int, PromptKind, str, NDArray[np.float64]]]:
    """Class name, class, kind, place in the file and (N, 3) corners (x, y, z) of every prompt."""
    for name, marked in prompts.items():
        for number, (first, second) in enumerate(marked.boxes):
            corners = np.array(list(product(*zip(first, second, strict=True))))
            yield name, plans.labels[name], "box", f"boxes.{number}", corners
        points: tuple[tuple[PromptKind, str, tuple[Point, ...]], ...] = (
            ("point", "points", marked.points),
            ("negative_point", "negative_points", marked.negative_points),
        )
        for kind, key, places in points:
            for number, point in enumerate(places):
                yield name, plans.labels[name], kind, f"{key}.{number}", np.array([point])


def _canonical_voxels(points: NDArray[np.float64], properties: CaseProperties) -> NDArray[np.float64]:
    """(N, 3) mm (x, y, z) to voxels (z, y, x) of the canonical image, 0 the centre of the first."""
    geometry = original_geometry(properties).canonical()
    offsets = points - np.asarray(geometry.origin)
    along = np.linalg.solve(np.reshape(geometry.direction, (3, 3)), offsets.T).T
    voxels: NDArray[np.float64] = along[:, ::-1] / np.asarray(geometry.spacing)
    return voxels


def _grid_voxels(canonical: NDArray[np.float64], properties: CaseProperties) -> NDArray[np.float64]:
    """(N, 3) voxels of the canonical image to voxels (s, h, w) of the plan's grid: the outer faces of crop and grid coincide."""
    scale = np.divide(properties.resampled_size, properties.crop_size)
    resampled = (canonical - properties.crop_start + 0.5) * scale - 0.5
    return np.asarray(resampled[:, [properties.slice_axis, *(axis for axis in range(3) if axis != properties.slice_axis)]])


def _inside(corners: NDArray[np.float64], size: tuple[int, int, int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lower and upper faces of the box around the corners, cut at the outer faces of a grid; a lower above an upper one: it is outside."""
    return np.maximum(corners.min(axis=0), -0.5), np.minimum(corners.max(axis=0), np.asarray(size) - 0.5)


def _centres(low: NDArray[np.float64], high: NDArray[np.float64], size: tuple[int, int, int]) -> tuple[Point, Point]:
    """From the faces of a box to the centres of its outermost voxels."""
    middle = (low + high) / 2
    thin = high - low < 1
    first, last = np.where(thin, middle, low + 0.5), np.where(thin, middle, high - 0.5)
    ends = np.clip([first, last], 0, np.asarray(size) - 1).tolist()
    (a, b, c), (d, e, f) = ends
    return (a, b, c), (d, e, f)


def _extent(properties: CaseProperties) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    corners = original_geometry(properties).corners()
    return corners.min(axis=0), corners.max(axis=0)
