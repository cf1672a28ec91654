"""How long calls take, measured by turns: what slows the machine down for a while slows down all of them."""

from collections.abc import Callable, Mapping
from time import perf_counter

import torch

_WARM_UP, _LEAST_ROUNDS = 3, 3


def interleaved_seconds(
    calls: Mapping[str, Callable[[], object]], *, device: str | torch.device, rounds: int = 15, seconds: float = 3.0
) -> dict[str, list[float]]:
    """Seconds that each of `calls` took in each round, under inference mode, until the device had done it.

    Every round makes each call once, in the order given and then in the opposite one, by turns. Ends after `rounds`
    rounds, or earlier once `seconds` are over, but never before three. Up to three rounds before do not count: they
    load, compile and tune; they end once they took a fifth of the budget.
    """
    taken, order, device = {name: [] for name in calls}, list(calls), torch.device(device)
    begun = perf_counter()
    with torch.inference_mode():
        for _ in range(_WARM_UP):
            for name in order:
                calls[name]()
            _synchronise(device)
            if perf_counter() - begun > seconds / 5:
                break
        for number in range(max(rounds, _LEAST_ROUNDS)):
            if number >= _LEAST_ROUNDS and perf_counter() - begun > seconds:
                break
            for name in order:
                start = perf_counter()
                calls[name]()
                _synchronise(device)
                taken[name].append(perf_counter() - start)
            order.reverse()
    return taken


def _synchronise(device: torch.device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
