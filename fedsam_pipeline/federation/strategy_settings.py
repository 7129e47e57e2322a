"""Which settings every strategy has, and which numbers of sites it makes sense for. The strategies are Flower's.

The defaults are ours where Flower's would do nothing or too much:

- ``fedavgm``: Flower's momentum of 0 is plain FedAvg. In the long run momentum m multiplies the step by 1 / (1 - m): 0.5 doubles it. The
  paper's 0.9 multiplies it by ten, too much for runs of a dozen rounds at full server learning rate.
- ``fedadam``, ``fedyogi``: eta is about the largest change of any one value in a round. Flower's 0.1 is larger than the values of LoRA's A;
  0.01 is the size of what a site's own AdamW does in a round. Updates smaller than tau are taken almost as they are.
- ``fedtrimmedavg``: cuts int(beta * sites) of the values on each side, so the usual 0.2 cuts nothing below 5 sites.
- ``krum``, ``bulyan``: one malicious site. Krum needs 2f + 3 sites, Bulyan 4f + 3, for f malicious ones.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import get_args

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.federation.lora_aggregation.methods import EXACT_ONLY, LINEAR, LORA_METHODS
from fedsam_pipeline.specs.manifest import Wire
from fedsam_pipeline.specs.recipe import Strategy

STRATEGIES: tuple[str, ...] = get_args(Strategy)
UNWEIGHTED = frozenset({"fedmedian", "fedtrimmedavg", "krum", "bulyan"})
"""strategies in which every site counts the same, whatever its weight: a weight would let a malicious site buy influence"""
LORA_STRATEGIES = ("fedavg", "fedprox")
"""strategies that a LoRA method can be combined with"""


@dataclass(frozen=True)
class Setting:
    """A number that a strategy takes."""

    default: float
    allowed: Callable[[float], bool]
    expected: str


_ABOVE_ZERO = ("a number above 0", lambda value: value > 0)
_DECAY = ("a number from 0 to below 1", lambda value: 0 <= value < 1)
_COUNT = ("a whole number, 1 or more", lambda value: value >= 1 and value == int(value))


def _setting(default: float, kind: tuple[str, Callable[[float], bool]]) -> Setting:
    return Setting(default, kind[1], kind[0])


_ADAPTIVE = {
    "eta": _setting(0.01, _ABOVE_ZERO),
    "beta_1": _setting(0.9, _DECAY),
    "beta_2": _setting(0.99, _DECAY),
    "tau": _setting(1e-3, _ABOVE_ZERO),
}
SETTINGS: dict[str, dict[str, Setting]] = {
    "fedavg": {},
    "fedprox": {"proximal_mu": _setting(0.01, _ABOVE_ZERO)},
    "fedavgm": {
        "server_learning_rate": _setting(1.0, _ABOVE_ZERO),
        "server_momentum": _setting(0.5, ("a number above 0 and below 1", lambda value: 0 < value < 1)),
    },
    "fedadam": _ADAPTIVE,
    "fedyogi": _ADAPTIVE,
    "fedmedian": {},
    "fedtrimmedavg": {"beta": _setting(0.2, ("a number above 0 and below 0.5", lambda value: 0 < value < 0.5))},
    "krum": {"num_malicious_nodes": _setting(1, _COUNT)},
    "bulyan": {"num_malicious_nodes": _setting(1, _COUNT)},
}
_LORA_SETTINGS: dict[str, dict[str, Setting]] = {
    "lora_fair": {"regularization": _setting(0.01, _ABOVE_ZERO)},
    "fedrot": {"alignment": _setting(0.5, ("a number above 0, at most 1", lambda value: 0 < value <= 1))},
}


def streams(name: str, lora_method: str | None) -> bool:
    """Whether updates may be summed as they arrive (``federation/streaming.py``): the strategy is then given their mean as one reply.

    Args:
        name: one of ``STRATEGIES``.
        lora_method: one of ``LORA_METHODS``, or ``None``.
    """
    return name not in UNWEIGHTED and (lora_method is None or lora_method in LINEAR)


def strategy_settings(name: str, lora_method: str | None, options: Mapping[str, float]) -> dict[str, float]:
    """The user's settings over the defaults.

    Args:
        name: one of ``STRATEGIES``.
        lora_method: one of ``LORA_METHODS``, or ``None`` to treat factors as any other tensor.
        options: settings by name.

    Raises:
        FedsamError: unknown strategy or LoRA method, the two do not go together, or settings that are unknown or out of range (all listed).
    """
    if name not in STRATEGIES:
        raise FedsamError("unknown strategy", found=name, expected=f"one of {', '.join(STRATEGIES)}", fix="change --strategy")
    if lora_method is not None and lora_method not in LORA_METHODS:
        raise FedsamError(
            "unknown LoRA method", found=lora_method, expected=f"one of {', '.join(LORA_METHODS)}", fix="change the recipe's aggregation"
        )
    if lora_method is not None and name not in LORA_STRATEGIES:
        why = (
            "picks or cuts values one by one, which mixes factors of different sites"
            if name in UNWEIGHTED
            else "keeps moments of every value, which say nothing once the method has changed the factors"
        )
        raise FedsamError(
            f"{name} {why}: it cannot be combined with a LoRA method",
            found=f"strategy {name}, LoRA method {lora_method}",
            expected=f"a LoRA method with {' or '.join(LORA_STRATEGIES)}",
            fix="use --strategy fedavg, or no LoRA method; a recipe that trains and federates only lora_B loses nothing by that",
        )
    known = SETTINGS[name] | _LORA_SETTINGS.get(lora_method or "", {})
    wrong = [f"{key} = {value:g}" for key, value in options.items() if key not in known]
    wrong += [
        f"{key} = {options[key]:g} ({setting.expected})"
        for key, setting in known.items()
        if key in options and not (math.isfinite(options[key]) and setting.allowed(options[key]))
    ]
    if wrong:
        raise FedsamError(
            f"settings that {name} cannot take",
            found="; ".join(wrong),
            expected=", ".join(f"{key}: {setting.expected}" for key, setting in known.items()) or "no settings",
            fix="change or leave out these settings",
        )
    return {key: float(options.get(key, setting.default)) for key, setting in known.items()}


def require_lossless(lora_method: str | None, wire: Wire) -> None:
    """Refuses a lossy wire under a LoRA method that needs every bit.

    Args:
        lora_method: one of ``LORA_METHODS``, or ``None``.
        wire: how updates travel.

    Raises:
        FedsamError: the two do not go together.
    """
    if wire != "fp32" and lora_method in EXACT_ONLY:
        raise FedsamError(
            f"{lora_method} cannot travel over a lossy wire",
            found=f"LoRA method {lora_method}, wire {wire}",
            expected="fp32: what rounding lost of a factor means nothing once the factors were turned, or are frozen",
            fix='use --wire fp32 (--wires in fedsam_compare; aggregation.wire = "fp32" in a recipe), or another LoRA method',
        )


def require_sites(name: str, num_sites: int, settings: Mapping[str, float]) -> None:
    """Refuses a strategy that means nothing with so many sites.

    Args:
        name: one of ``STRATEGIES``.
        num_sites: sites of the run, or those that answered in a round.
        settings: what ``strategy_settings`` gave.

    Raises:
        FedsamError: says why, and what to use.
    """
    malicious = int(settings.get("num_malicious_nodes", 0))
    needed, why, fix = 1, "there is nothing to aggregate", "check that the dataset has sites"
    robust = "use --strategy fedmedian" if num_sites >= 3 else "use --strategy fedavg"
    if name == "fedmedian":
        needed, why, fix = 3, "the median of two sites is their plain mean and of one its own value", "use --strategy fedavg"
    elif name == "fedtrimmedavg":
        needed = math.ceil(1 / settings["beta"])
        needed += int(settings["beta"] * needed) < 1  # as Flower rounds
        why = f"with beta {settings['beta']:g} nothing is cut below {needed} sites, which leaves an unweighted mean"
        fix = f"set beta to {math.ceil(100 / num_sites) / 100} or more, or {robust}" if num_sites >= 3 else robust
    elif name == "krum":
        needed, fix = 2 * malicious + 3, robust
        why = f"Krum withstands f = {malicious} malicious of at least 2f + 3 = {needed} sites (Blanchard et al., NeurIPS 2017)"
    elif name == "bulyan":
        needed = 4 * malicious + 3
        fix = "use --strategy krum or fedmedian" if num_sites >= 2 * malicious + 3 else robust
        why = f"Bulyan withstands f = {malicious} malicious of at least 4f + 3 = {needed} sites (El Mhamdi et al., ICML 2018)"
    if num_sites < needed:
        raise FedsamError(
            f"{name} makes no sense with {num_sites} {'site' if num_sites == 1 else 'sites'}: {why}",
            found=num_sites,
            expected=f"{needed} or more",
            fix=fix,
        )
