"""Where the time of one prediction goes: a CT from its file to the file of its mask, phase by phase.

python -m benchmarks.predict_profile [--base_model lite_medsam] [--image_size 56] [--slices 200] [--side 512] [--air 10] [--classes 3]
    [--tta] [--device cpu]

The CT is made up, in voxels of 2.5 x 0.8 x 0.8 mm, and the plan's are 3 x 1 x 1 mm, so that image and scores are resampled along all axes;
its planes are seen whole. Weights are random. The phases are those of fedsam_predict, one after the other in this process; then the command
itself is run and timed, which starts up, loads the model, judges the result, and reads and writes beside the prediction. Appends a line to
benchmarks/results/predict_profile.jsonl.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import records
from benchmarks.made_up_ct import ORGANS, ct_plan, ct_volume
from benchmarks.nnunet import timed
from benchmarks.predict_memory import write_model
from benchmarks.watched_model import WatchedModel
from fedsam_pipeline.dataset.geometry import Geometry
from fedsam_pipeline.dataset.volume import read_image, write_image, write_labels
from fedsam_pipeline.inference.export import export_stream
from fedsam_pipeline.inference.predictor import Predictor
from fedsam_pipeline.model.bundle import FoldModels
from fedsam_pipeline.model.device import autocast_dtype, choose_device
from fedsam_pipeline.preprocessing.preprocess import preprocess_image
from fedsam_pipeline.specs.plans import Plans

RESULTS = records.RESULTS / "predict_profile.jsonl"
SPACING, PLANNED = (2.5, 0.8, 0.8), (3.0, 1.0, 1.0)
"""mm, (z, y, x)"""


def write_ct(path: Path, slices: int, side: int, air: int) -> None:
    """A compressed NIfTI file."""
    geometry = Geometry((slices, side, side), SPACING, (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    write_image(path, ct_volume(slices, side, air), geometry)


def phases(image: Path, mask: Path, plans: Plans, model: Path, device: torch.device, *, tta: bool) -> dict[str, float]:
    """Seconds of every phase, in their order.

    Args:
        image: to read.
        mask: to write.
        plans: of the model.
        model: fold folder.
        device: where it computes.
        tta: mirror as the plan says.
    """
    models = FoldModels([model], device)
    watched = WatchedModel(models.model, device)
    axes = plans.training.mirror_axes if tta else ()
    predictor = Predictor(watched, plans, device, autocast_dtype(device), mirror_axes=axes)
    found = {}
    clock = time.perf_counter()
    volume = read_image([image])
    found["read the image"], clock = time.perf_counter() - clock, time.perf_counter()
    array, properties = preprocess_image(volume, plans)
    found["crop, normalize, resample"], clock = time.perf_counter() - clock, time.perf_counter()
    waited = 0.0

    def parts() -> Iterator[NDArray[np.float32]]:
        nonlocal waited
        stream = predictor.stream_case(array)
        while True:
            started = time.perf_counter()
            part = next(stream, None)
            waited += time.perf_counter() - started
            if part is None:
                return
            yield part

    labels = export_stream(parts(), properties, plans)
    exported, clock = time.perf_counter() - clock - waited, time.perf_counter()
    found["encode"], found["decode"] = watched.encode_seconds, watched.decode_seconds
    found["cut windows, scale, add up"] = waited - watched.encode_seconds - watched.decode_seconds
    found["resample scores, arg max"] = exported
    write_labels(mask, labels, volume.geometry, image, plans.labels)
    found["write the mask"] = time.perf_counter() - clock
    return found


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base_model", default="lite_medsam")
    parser.add_argument("--image_size", type=int, default=56)
    parser.add_argument("--slices", type=int, default=200)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--air", type=int, default=10, help="slices at each end that show air alone")
    parser.add_argument("--classes", type=int, default=3, help="background included")
    parser.add_argument("--tta", action="store_true", help="mirror images, which fedsam_predict does unless told not to")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    device = choose_device(given.device)
    window = -(-round(given.side * SPACING[1] / PLANNED[1]) // 8) * 8
    plans = ct_plan(given.base_model, given.image_size, classes=given.classes, window=window, spacing=PLANNED, clip=ORGANS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        image = folder / "imgs" / "ct_0000.nii.gz"
        write_ct(image, given.slices, given.side, given.air)
        write_model(folder / "model", plans)
        found = phases(image, folder / "mask.nii.gz", plans, folder / "model" / "fold_0", device, tta=given.tta)
        call = "import sys; from fedsam_pipeline.entrypoints.predict import main; sys.exit(main())"
        flags = ["-device", given.device, *([] if given.tta else ["--disable_tta"])]
        paths = ["-i", str(image.parent), "-o", str(folder / "masks"), "-m", str(folder / "model")]
        command = timed([sys.executable, "-c", call, *paths, *flags], {})
    total = sum(found.values())
    print(
        f"{given.base_model} at {given.image_size} px, CT of {given.slices} x {given.side} x {given.side} voxels, {given.classes} classes, "
        f"{'mirrored' if given.tta else 'not mirrored'}, {device.type}, {torch.get_num_threads()} thread(s)"
    )
    for phase, seconds in found.items():
        print(f"{phase:<28}{seconds:>9.2f} s{seconds / total:>7.0%}")
    print(f"{'all phases':<28}{total:>9.2f} s")
    print(f"{'the command, start to end':<28}{command.seconds:>9.2f} s, peak {command.peak_bytes / 2**20:.0f} MiB")
    record = vars(given) | {"phases": found, "command_seconds": command.seconds, "command_peak_bytes": command.peak_bytes}
    records.keep(RESULTS, record | {"threads": torch.get_num_threads(), **records.machine()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
