"""Where networks run: what is chosen on machines with and without GPUs."""

from __future__ import annotations

import pytest
import torch

from ammd.distill.device import choose_device, matrix_dtype
from ammd.distill.settings import Device
from ammd.errors import DistillError


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Let torch find as many CUDA GPUs as the test says; none of them is used."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: request.param)


@pytest.mark.parametrize(
    ("gpus", "wanted", "processes", "expected"),
    [
        (0, "auto", 1, "cpu"),
        (1, "auto", 1, "cuda:0"),
        (1, "cpu", 1, "cpu"),
        (1, "auto", 2, "cpu"),  # two processes do not share one
        (2, "auto", 2, "cuda:1"),
        (2, "cuda", 2, "cuda:1"),
    ],
    indirect=["gpus"],
)
@pytest.mark.usefixtures("gpus")
def test_each_process_takes_a_gpu_of_its_own(
    monkeypatch: pytest.MonkeyPatch, wanted: Device, processes: int, expected: str
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    monkeypatch.setenv("LOCAL_RANK", str(processes - 1))
    assert choose_device(wanted) == torch.device(expected)


@pytest.mark.parametrize(("gpus", "processes"), [(0, 1), (1, 2)], indirect=["gpus"])
@pytest.mark.usefixtures("gpus")
def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, processes: int) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    with pytest.raises(
        DistillError, match=rf"finds {processes - 1} CUDA GPUs for {processes} process"
    ) as found:
        choose_device("cuda")
    assert found.value.hint is not None
    assert '"cpu"' in found.value.hint


def test_products_are_bfloat16_where_the_device_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr("ammd.distill.device.has_fast_bfloat16", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert matrix_dtype("auto", cpu) == torch.float32
    assert matrix_dtype("auto", gpu) == torch.bfloat16
    assert matrix_dtype("float32", gpu) == torch.float32
    assert matrix_dtype("bfloat16", cpu) == torch.bfloat16
