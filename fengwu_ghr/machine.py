"""The machine: what a measured number was measured on."""

import os
import platform
from pathlib import Path


def describe_machine() -> str:
    """Processor, usable cores, memory and system, in words."""
    return f"{processor()}, {usable_cores()} cores, {memory_bytes() / 2**30:.0f} GiB, {platform.system()}"


def processor() -> str:
    """The name of the processor."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int:
    """All of the machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
