"""How much noise differential privacy of sites asks for, against the largest update that a site may send. Trains nothing.

python -m benchmarks.privacy_cost [-r default] [--rounds 10] [--delta 1e-5] [--epsilon 1 8 50 1000] [--sites 4 100 1000 10000]

For every epsilon: the noise multiplier z of a round (`flower/private_rounds.py`), and for every number of sites q the norm of the noise in
the mean, z C sqrt(values) / q, over C, the largest norm that the mean of the updates can have. Above 1 the noise is larger than all that
the sites can say in a round. The number of values is that of the recipe on LiteMedSAM at 56 px. Appends a line to
benchmarks/results/privacy_cost.jsonl.
"""

import argparse
import math
import sys
from pathlib import Path

from benchmarks import records
from fedsam_pipeline.flower.private_rounds import noise_multiplier
from fedsam_pipeline.pipeline.recipes import Setting
from fedsam_pipeline.specs.privacy_budget import PrivacyBudget

RESULTS = records.RESULTS / "privacy_cost.jsonl"


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-r", default="default", help="recipe")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--delta", type=float, default=1e-5)
    parser.add_argument("--epsilon", type=float, nargs="+", default=[1, 8, 50, 1000])
    parser.add_argument("--sites", type=int, nargs="+", default=[4, 100, 1000, 10_000])
    parser.add_argument("--keep", type=Path, default=RESULTS, help="file of the results")
    arguments = parser.parse_args()
    values = Setting("lite_medsam", 56, 2, 8).manifest(arguments.r).federated_parameters
    print(f"{arguments.r}: {values:,} values, {arguments.rounds} rounds, delta {arguments.delta:g}; norm of the noise over the clip")
    print(f"{'epsilon':>8}{'z':>9}" + "".join(f"{f'{sites:,} sites':>15}" for sites in arguments.sites))
    rows = []
    for epsilon in arguments.epsilon:
        z = noise_multiplier(PrivacyBudget(epsilon, arguments.delta, 1.0), arguments.rounds, max(arguments.sites))
        ratios = {str(sites): z * math.sqrt(values) / sites for sites in arguments.sites}
        rows.append({"epsilon": epsilon, "noise_multiplier": z, "noise_over_clip": ratios})
        print(f"{epsilon:>8g}{z:>9.4f}" + "".join(f"{ratio:>15.3g}" for ratio in ratios.values()))
    records.keep(
        arguments.keep, {"recipe": arguments.r, "values": values, "rounds": arguments.rounds, "delta": arguments.delta, "rows": rows}
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
