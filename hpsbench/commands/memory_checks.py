"""Whether this machine has the memory that a parameter server's tables will take."""

from __future__ import annotations

from collections.abc import Sequence

from hpsbench.commands.check import Check, failed, ok, warning
from hpsbench.hps.budget import Budget
from hpsbench.machine import free_gpu_memory_bytes, free_memory_bytes
from hpsbench.report.budget import size


def memory_checks(budget: Budget) -> list[Check]:
    """Compare what a parameter server's tables will take with what this machine has free now."""
    gpus = free_gpu_memory_bytes()
    return [_host_memory(budget, range(len(gpus))), *_gpu_memory(budget, gpus)]


def _host_memory(budget: Budget, devices: Sequence[int]) -> Check:
    locked = budget.page_locked_bytes(devices)
    for_good = budget.index_bytes + locked
    free = free_memory_bytes()
    parts = f"index {size(budget.index_bytes)}" + (
        f", page-locked {size(locked)}" if locked else ""
    )
    finding = f"{parts}, and {size(budget.mapped_bytes)} of mapped rows; {size(free)} free"
    if for_good > free:
        bounded = "; a lower overflow_margin bounds the volatile tier"
        unlocked = "; a uvm cache with a larger gpucacheper locks less"
        return failed(
            "host memory",
            f"does not fit: {finding}",
            "take a machine with more memory, or serve fewer rows"
            + bounded * bool(budget.volatile_bytes)
            + unlocked * bool(locked),
        )
    if for_good + budget.mapped_bytes > free:
        return warning(
            "host memory",
            f"fits, but not with all rows in the page cache: {finding}",
            "expect lookups to wait for the disk, or take a machine with more memory",
        )
    return ok("host memory", f"fits: {finding}")


def _gpu_memory(budget: Budget, free_bytes: Sequence[int]) -> list[Check]:
    checks = []
    for device, needed in sorted(budget.gpu_bytes().items()):
        name = f"GPU {device} memory"
        if not free_bytes:
            finding = f"{size(needed)} with a GPU; there is none, so the host answers"
            checks.append(ok(name, finding))
        elif device >= len(free_bytes):
            checks.append(
                failed(
                    name,
                    f"{size(needed)} on a GPU that is not there: this machine has "
                    f"{len(free_bytes)}",
                    "name others in deployed_device_list",
                )
            )
        else:
            checks.append(_one_gpu(budget, device, needed, free_bytes[device]))
    return checks


def _one_gpu(budget: Budget, device: int, needed: int, free: int) -> Check:
    name = f"GPU {device} memory"
    finding = f"{size(needed)} of {size(free)} free; a model's other tensors come on top"
    if needed <= free:
        return ok(name, f"fits: {finding}")
    shares = (percent / 100 for percent in range(99, 0, -1))
    fitting = (s for s in shares if budget.with_share(s).gpu_bytes()[device] <= free)
    share = next(fitting, None)
    return failed(
        name,
        f"does not fit: {finding}",
        "spread the models over more GPUs, or make static caches dynamic ones"
        if share is None
        else f"set gpucacheper to {share:g} at most",
    )
