"""Peak memory of fedsam_predict on one large image: a synthetic CT, a model with random weights, everything through the command.

python -m benchmarks.predict_memory [--size 600 512 512] [--classes 20] [--folds 1] [--cases 1] [--base_model lite_medsam] [--image_size 56]
    [--window 512] [--configuration main|triplanar] [--tta] [--save_probabilities] [--max_memory GB] [--limit_gb 8]

The plan's spacing is the image's own, so that the scores are as large as they can be; the slices of the image are seen through windows
of --window voxels, each shrunk to --image_size pixels. Memory depends on neither weights nor anatomy. Printed: seconds, peak memory of the
process, what the scores of all classes would take whole (float32), and whether the peak is within --limit_gb; the exit code says that, too.
Appends a line to benchmarks/results/predict_memory.jsonl.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import get_args

import numpy as np

from benchmarks import records
from benchmarks.made_up_ct import ct_plan
from benchmarks.nnunet import timed
from fedsam_pipeline.dataset.geometry import Geometry
from fedsam_pipeline.dataset.volume import write_image
from fedsam_pipeline.model.build import build_planned
from fedsam_pipeline.model.trained_files import BundleInfo, write_adapter, write_documents
from fedsam_pipeline.specs.configuration import Configuration
from fedsam_pipeline.specs.plans import Plans
from fedsam_pipeline.specs.recipe import load_recipe

RESULTS = records.RESULTS / "predict_memory.jsonl"
SPACING = (1.0, 0.8, 0.8)
"""mm, (z, y, x)"""


def write_case(path: str, size: list[int]) -> None:
    """Noise in HU, drawn slice by slice, int16; (z, y, x)."""
    generator = np.random.default_rng(0)
    array = np.empty(size, dtype=np.int16)
    for plane in array:
        plane[...] = generator.integers(-1000, 400, plane.shape)
    write_image(Path(path), array, Geometry((size[0], size[1], size[2]), SPACING, (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0)))


def write_model(folder: Path, plans: Plans, *, folds: int = 1, configuration: Configuration = "main") -> None:
    """Trained folds as prediction wants them, with random base weights and the adapter as drawn."""
    recipe = load_recipe("flap_sam")
    adapted = build_planned(plans, recipe, rank=plans.training.lora_rank, weights=None)
    info = BundleInfo(
        base_model=plans.base_model,
        base_weights_sha256="random",
        configuration=configuration,
        lora_rank=plans.training.lora_rank,
        rounds_done=1,
        adapter_sha256="0" * 64,
    )
    for fold in range(folds):
        write_documents(folder / f"fold_{fold}", plans, recipe, adapted.manifest)
        write_adapter(folder / f"fold_{fold}", adapted.trained_tensors(), info)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=3, default=[600, 512, 512], metavar=("Z", "Y", "X"))
    parser.add_argument("--classes", type=int, default=20, help="background included")
    parser.add_argument("--folds", type=int, default=1)
    parser.add_argument("--cases", type=int, default=1)
    parser.add_argument("--base_model", default="lite_medsam")
    parser.add_argument("--image_size", type=int, default=56)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--configuration", choices=get_args(Configuration), default="main")
    parser.add_argument("--tta", action="store_true")
    parser.add_argument("--save_probabilities", action="store_true")
    parser.add_argument("--max_memory", type=float)
    parser.add_argument("--limit_gb", type=float, default=8.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(arguments.cases):  # apart: a process inherits the peak of the one that starts it
            path = folder / "imgs" / f"case{number}_0000.nii.gz"
            call = f"from benchmarks.predict_memory import write_case as f; f({str(path)!r}, {arguments.size})"
            timed([sys.executable, "-c", call], {})
        plans = ct_plan(arguments.base_model, arguments.image_size, classes=arguments.classes, window=arguments.window, spacing=SPACING)
        write_model(folder / "model", plans, folds=arguments.folds, configuration=arguments.configuration)
        flags = [] if arguments.tta else ["--disable_tta"]
        flags += ["--save_probabilities"] if arguments.save_probabilities else []
        flags += [] if arguments.max_memory is None else ["--max_memory", str(arguments.max_memory)]
        paths = ["-i", str(folder / "imgs"), "-o", str(folder / "masks"), "-m", str(folder / "model")]
        call = "import sys; from fedsam_pipeline.entrypoints.predict import main; sys.exit(main())"
        run = timed([sys.executable, "-c", call, *paths, "-device", "cpu", *flags], {})
    voxels = int(np.prod(arguments.size))
    peak, whole = run.peak_bytes / 1e9, 4 * arguments.classes * voxels / 1e9
    print(
        f"{arguments.base_model} at {arguments.image_size} px, windows of {arguments.window}, {arguments.configuration}, "
        f"{arguments.folds} fold(s) {' '.join(flags)}"
    )
    print(f"{arguments.cases} image(s) of {' x '.join(map(str, arguments.size))} voxels, {arguments.classes} classes: {run.seconds:.0f} s")
    print(f"peak memory {peak:.2f} GB; one volume in float32 {4 * voxels / 1e9:.2f} GB; all scores {whole:.2f} GB")
    within = peak <= arguments.limit_gb
    print(f"{'within' if within else 'NOT within'} {arguments.limit_gb:g} GB")
    record = vars(arguments) | {
        "seconds": run.seconds,
        "peak_bytes": run.peak_bytes,
        **records.machine(),
    }
    records.keep(RESULTS, record)
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
