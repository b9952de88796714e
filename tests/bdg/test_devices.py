"""Devices are named or refused; memory is what machine and cgroups leave, and what a call takes is seen."""

from pathlib import Path

import pytest
import torch

from bdg import devices

CPU = torch.device("cpu")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Writes the files in which Linux says how much memory there is."""
    monkeypatch.setattr(devices, "PROC", tmp_path / "proc")
    monkeypatch.setattr(devices, "CGROUPS", tmp_path / "cgroup")

    def write(**files: str) -> None:
        for name, text in files.items():
            path = tmp_path.joinpath(*name.split("__"))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return write


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"device=cuda:99 cannot be used \(.+\): give auto or cpu"):
        devices.device("cuda:99")
    with pytest.raises(ValueError, match="device=toaster cannot be used"):
        devices.device("toaster")


def test_auto_is_a_gpu_if_there_is_one():
    assert devices.device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_free_is_what_the_machine_has_available(machine):
    machine(proc__meminfo="MemTotal:       9000 kB\nMemAvailable:   5000 kB\n")
    assert devices.free_bytes(CPU) == 5000 * 1024


def test_nothing_is_claimed_where_nothing_is_said(machine):
    assert devices.free_bytes(CPU) is None
    assert devices.held_bytes(CPU) is None
    assert devices.needed_bytes(lambda: None, CPU) is None


def test_a_cgroup_of_version_2_bounds_what_is_free_and_so_does_every_parent(machine):
    machine(proc__meminfo="MemAvailable: 5000 kB\n", proc__self__cgroup="0::/slurm/job_1\n")
    machine(cgroup__slurm__job_1__x="")
    Path(devices.CGROUPS / "slurm/job_1/memory.max").write_text("max\n")
    Path(devices.CGROUPS / "slurm/memory.max").write_text("3000\n")
    Path(devices.CGROUPS / "slurm/memory.current").write_text("2500\n")
    Path(devices.CGROUPS / "slurm/memory.stat").write_text("anon 7\ninactive_file 100\n")
    assert devices.free_bytes(CPU) == 600


def test_a_cgroup_of_version_1_bounds_what_is_free(machine):
    machine(proc__meminfo="MemAvailable: 5000 kB\n", proc__self__cgroup="3:cpu:/\n4:memory:/job\n0::/\n")
    machine(cgroup__memory__job__x="")
    Path(devices.CGROUPS / "memory/job/memory.limit_in_bytes").write_text("4000\n")
    Path(devices.CGROUPS / "memory/job/memory.usage_in_bytes").write_text("1000\n")
    assert devices.free_bytes(CPU) == 3000


def test_a_container_that_sees_itself_as_the_root_is_bounded(machine):
    machine(proc__meminfo="MemAvailable: 5000 kB\n", proc__self__cgroup="0::/outside/of/here\n")
    machine(cgroup__x="")
    Path(devices.CGROUPS / "memory.max").write_text("2000\n")
    Path(devices.CGROUPS / "memory.current").write_text("500\n")
    assert devices.free_bytes(CPU) == 1500


def test_what_a_call_needs_is_its_peak_and_not_what_it_leaves():
    def call():
        torch.ones(2**24)  # 64 MiB, freed at once
        torch.ones(2**22)

    needed = devices.needed_bytes(call, CPU)
    if needed is None:
        pytest.skip("memory cannot be measured here")
    # malloc may take the second from another place, and keep the first until then
    assert 0.9 * 2**26 < needed < 1.1 * (2**26 + 2**24)


def test_errors_of_memory_are_told_from_others():
    refused = RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes")
    assert all(devices.is_out_of_memory(error) for error in (refused, MemoryError(), torch.OutOfMemoryError("CUDA")))
    assert not devices.is_out_of_memory(RuntimeError("shapes do not fit"))
