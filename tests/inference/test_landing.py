"""What lies between the model and main memory."""

from collections.abc import Iterator

import torch

from fedsam_pipeline.inference.landing import Landing, one_ahead, send


def test_each_item_is_made_before_the_one_before_it_leaves() -> None:
    order: list[str] = []

    def made() -> Iterator[int]:
        for item in range(3):
            order.append(f"made {item}")
            yield item

    for item in one_ahead(made()):
        order.append(f"used {item}")
    assert order == ["made 0", "made 1", "used 0", "made 2", "used 1", "used 2"]
    assert list(one_ahead(iter([]))) == []


def test_on_a_cpu_nothing_travels() -> None:
    tensor = torch.arange(6.0)
    assert send(tensor, torch.device("cpu")) is tensor and Landing(tensor).wait() is tensor
