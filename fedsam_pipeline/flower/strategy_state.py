"""What a strategy carries from round to round, as tensors, so that a run that continues equals one that was never interrupted.

Keys: ``momentum/NAME`` of FedAvgM; ``m/NAME`` and ``v/NAME`` of FedAdam and FedYogi; ``residual/NAME`` of FedEx-LoRA, all that was folded
into the base weights so far. The other strategies carry nothing.
"""

from collections.abc import Mapping

import torch
from flwr.serverapp.strategy import FedAvg
from torch import Tensor

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.flower.strategies import LoraFedAvg, ServerAdam, ServerMomentum, ServerYogi


def strategy_state(strategy: FedAvg) -> dict[str, Tensor]:
    """Copies of what ``strategy`` carries; empty for most strategies, and for all before the first round."""
    if isinstance(strategy, ServerMomentum) and strategy.momentum_vector is not None and strategy.current_arrays is not None:
        named = dict(zip(strategy.current_arrays, strategy.momentum_vector, strict=True))
        return {f"momentum/{name}": torch.from_numpy(value.copy()) for name, value in named.items()}
    if isinstance(strategy, ServerAdam | ServerYogi) and strategy.m_t is not None and strategy.v_t is not None:
        moments = {"m": strategy.m_t, "v": strategy.v_t}
        return {f"{kind}/{name}": torch.from_numpy(value.copy()) for kind, values in moments.items() for name, value in values.items()}
    if isinstance(strategy, LoraFedAvg):
        return {f"residual/{name}": value.clone() for name, value in strategy.residuals.items()}
    return {}


def load_strategy_state(strategy: FedAvg, state: Mapping[str, Tensor]) -> None:
    """Takes over what ``strategy_state`` gave after the last finished round. Only for a run that continues.

    Raises:
        FedsamError: the state is of another strategy, or the strategy needs one and there is none.
    """
    found, expected = {key.split("/", 1)[0] for key in state}, _kinds(strategy)
    if found != expected and not (expected == {"residual"} and not found):  # one site leaves no residual
        raise FedsamError(
            "the saved state of the strategy does not fit this run",
            found=", ".join(sorted(found)) or "no state",
            expected=", ".join(sorted(expected)) or "no state",
            fix="continue with the strategy that the run began with, or begin a new run",
        )
    parts = {kind: {key.split("/", 1)[1]: state[key].clone() for key in sorted(state) if key.startswith(f"{kind}/")} for kind in expected}
    if isinstance(strategy, ServerMomentum):
        strategy.momentum_vector = [value.numpy() for value in parts["momentum"].values()]  # sorted by name, as records are
    elif isinstance(strategy, ServerAdam | ServerYogi):
        strategy.m_t, strategy.v_t = ({name: value.numpy() for name, value in parts[kind].items()} for kind in ("m", "v"))
    elif isinstance(strategy, LoraFedAvg):
        strategy.residuals = parts.get("residual", {})


def _kinds(strategy: FedAvg) -> set[str]:
    if isinstance(strategy, ServerMomentum):
        return {"momentum"}
    if isinstance(strategy, ServerAdam | ServerYogi):
        return {"m", "v"}
    return {"residual"} if isinstance(strategy, LoraFedAvg) and strategy.lora_method == "fedex" else set()
