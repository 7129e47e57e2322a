"""Our merged fingerprint and plan beside nnU-Net's own extractor and planner, on the same cases.

python -m benchmarks.nnunet_fingerprint RAW/Dataset004_Hippocampus

Intensities may differ by 1 % (nnU-Net samples voxels); spacing, median size and scheme must be equal. Exit code 1 where they are not.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.nnunet import DEFAULT_ENVIRONMENT, NnUnet, timed
from fedsam_pipeline.planning.grids import intensity_value, quantile
from fedsam_pipeline.planning.rules import median_size
from fedsam_pipeline.specs.fingerprint import Fingerprint
from fedsam_pipeline.specs.plans import Plans

TOLERANCE = 0.01
SCHEMES = {"ZScoreNormalization": "zscore", "CTNormalization": "ct"}


def compare(ours: dict[str, Any], theirs: dict[str, Any]) -> tuple[list[str], bool]:
    """Table lines, and whether all values agree: numbers of ``intensity`` keys within ``TOLERANCE``, the rest exactly."""
    lines, agree = [f"{'':<26}{'ours':>26}{'nnU-Net':>26}  difference"], True
    for key, value in ours.items():
        other = theirs[key]
        if isinstance(value, float):
            difference = abs(value - other) / max(abs(other), 1e-12)
            good, shown = difference <= TOLERANCE, f"{100 * difference:.3f} %"
            lines.append(f"{key:<26}{value:>26.6g}{other:>26.6g}  {shown}")
        else:
            good = value == other
            lines.append(f"{key:<26}{value!s:>26}{other!s:>26}  {'equal' if good else 'DIFFERS'}")
        agree &= good
    return lines, agree


def our_values(preprocessed: Path) -> dict[str, Any]:
    """From ``fingerprint.json`` and ``plans.json``."""
    fingerprint = Fingerprint.load(preprocessed / "fingerprint.json")
    plans = Plans.load(preprocessed / "plans.json")
    values: dict[str, Any] = {
        "spacing": [round(length, 6) for length in plans.target_spacing],
        "median size": [float(round(extent, 3)) for extent in median_size(fingerprint, plans.target_spacing)],
    }
    for number, (channel, planned) in enumerate(zip(fingerprint.channels, plans.channels, strict=True)):
        values |= {
            f"channel {number} scheme": planned.scheme,
            f"channel {number} mean": channel.moments.mean,
            f"channel {number} std": channel.moments.std,
            f"channel {number} p0.5": intensity_value(quantile(channel.histogram, 0.005)),
            f"channel {number} p99.5": intensity_value(quantile(channel.histogram, 0.995)),
        }
    return values


def their_values(preprocessed: Path) -> dict[str, Any]:
    """From ``dataset_fingerprint.json`` and ``nnUNetPlans.json``."""
    fingerprint = json.loads((preprocessed / "dataset_fingerprint.json").read_text())
    plan = json.loads((preprocessed / "nnUNetPlans.json").read_text())["configurations"]["3d_fullres"]
    values: dict[str, Any] = {
        "spacing": [round(float(length), 6) for length in plan["spacing"]],
        "median size": [float(round(extent, 3)) for extent in plan["median_image_size_in_voxels"]],
    }
    for number, intensities in fingerprint["foreground_intensity_properties_per_channel"].items():
        scheme = SCHEMES[plan["normalization_schemes"][int(number)]]
        masked = plan["use_mask_for_norm"][int(number)]
        values |= {
            f"channel {number} scheme": scheme + ("_nonzero" if masked else ""),
            f"channel {number} mean": float(intensities["mean"]),
            f"channel {number} std": float(intensities["std"]),
            f"channel {number} p0.5": float(intensities["percentile_00_5"]),
            f"channel {number} p99.5": float(intensities["percentile_99_5"]),
        }
    return values


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, help="the raw dataset's folder")
    parser.add_argument("--environment", type=Path, default=DEFAULT_ENVIRONMENT, help="nnU-Net's virtual environment")
    parser.add_argument("-np", default="2", help="worker processes of both")
    arguments = parser.parse_args()
    dataset = arguments.dataset.absolute()
    with tempfile.TemporaryDirectory() as folder:
        nnunet = NnUnet(arguments.environment, dataset.parent, Path(folder) / "nnunet")
        number = dataset.name.removeprefix("Dataset")[:3]
        theirs = nnunet.run("nnUNetv2_extract_fingerprint", "-d", number, "-np", arguments.np)
        nnunet.run("nnUNetv2_plan_experiment", "-d", number)
        ours_folder = Path(folder) / "ours"
        variables = {"fedsam_raw": str(dataset.parent), "fedsam_preprocessed": str(ours_folder)}
        command = str(Path(sys.executable).parent / "fedsam_plan_and_preprocess")
        ours = timed([command, "-d", number, "--no_pp", "--privacy_floor", "1", "-np", arguments.np], variables)
        lines, agree = compare(our_values(ours_folder / dataset.name), their_values(nnunet.preprocessed / dataset.name))
    print("\n".join(lines))
    print(f"seconds, both with checks and start-up: ours {ours.seconds:.1f}, nnU-Net's extraction {theirs.seconds:.1f}")
    print("agree" if agree else f"DISAGREE: intensities by more than {100 * TOLERANCE:g} %, or another value at all")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
