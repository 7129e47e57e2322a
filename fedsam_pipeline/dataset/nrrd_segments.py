"""Class names in the header of a NRRD mask, as 3D Slicer and its Python package slicerio write and read them.

Keys: "Segmentation labelmap file format" in the developer guide of 3D Slicer (modules, segmentations). Every other reader of NRRD takes
them for plain key/value pairs. Slicer opens a file that ends in ``.nrrd`` with them when it is told to load it as a segmentation.
"""

from collections.abc import Mapping

from fedsam_pipeline.dataset.class_colours import class_colour


def segment_tags(names: Mapping[str, int], size: tuple[int, int, int]) -> dict[str, str]:
    """The header's key/value pairs.

    Args:
        names: class name to value; background (0) is no segment.
        size: voxels of the mask, (z, y, x).
    """
    z, y, x = size
    tags = {"Segmentation_SourceRepresentation": "Binary labelmap", "Segmentation_ReferenceImageExtentOffset": "0 0 0"}
    foreground = sorted((value, name) for name, value in names.items() if value)
    for index, (value, name) in enumerate(foreground):
        tags |= {
            f"Segment{index}_ID": f"Segment_{value}",
            f"Segment{index}_Name": name,
            f"Segment{index}_Color": " ".join(f"{part:.4f}" for part in class_colour(value)),
            f"Segment{index}_LabelValue": str(value),
            f"Segment{index}_Layer": "0",
            f"Segment{index}_Extent": f"0 {x - 1} 0 {y - 1} 0 {z - 1}",
        }
    return tags
