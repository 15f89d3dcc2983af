"""What the machine did while a run was measured, and what its lookups found, as tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from hpsbench.figures import in_order, reference_of_run
from hpsbench.report import notation
from hpsbench.report.elements import Content, Element, element
from hpsbench.report.tables import plain_table
from hpsbench.runs import Run
from hpsbench.telemetry import Telemetry
from hpsbench.telemetry_gpu import GpuTelemetry
from hpsbench.telemetry_host import HostTelemetry
from hpsbench.workload import split_row

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Watched:
    """One launch at one batch size and key stream: what all who were asked in turn had around."""

    place: str
    launch: int
    telemetry: Telemetry


def watched_of(run: Run) -> list[Watched]:
    """Return what was watched in a run, each launch, batch size and key stream once, in order."""
    found: dict[tuple[int, str, int], Watched] = {}
    for measurement in (result.measurement for result in run.results):
        keys = split_row(measurement.variant)[1]
        place = f"{measurement.batch_size}, {keys} keys" if keys else str(measurement.batch_size)
        for launch in measurement.launches:
            if launch.telemetry is not None:
                found[measurement.batch_size, keys, launch.launch] = Watched(
                    place=place, launch=launch.launch, telemetry=launch.telemetry
                )
    return [found[key] for key in sorted(found)]


def machine_section(watched: Sequence[Watched]) -> list[Content]:
    """Return what the machine did over the run in a few sentences, and every launch folded."""
    hosts = [w.telemetry.host for w in watched]
    parts: list[Content] = [element("p", _host_sentence(hosts), class_="lead")]
    gpus: dict[str, list[GpuTelemetry]] = {}
    for gpu in (gpu for w in watched for gpu in w.telemetry.gpus if gpu.used):
        gpus.setdefault(gpu.name, []).append(gpu)
    for name, seen in gpus.items():
        parts.append(element("p", _gpu_sentence(name, seen), class_="lead"))
    problems = [
        f"batch {w.place}, launch {w.launch}: {w.telemetry.problem}"
        for w in watched
        if w.telemetry.problem is not None
    ]
    if problems:
        items = [element("li", problem) for problem in problems]
        parts.append(element("ul", items, class_="verdict-list"))
    tables = [_host_table(watched), *(_gpu_table(name, watched) for name in gpus)]
    summary = element("summary", "Every launch")
    parts.append(element("details", summary, *tables, class_="fold"))
    return parts


def hit_rate_table(run: Run) -> Element | None:
    """Return the hit rate of each row and tier by batch size, None where no model told any."""
    rates: dict[tuple[str, str], dict[int, float]] = {}
    for measurement in (result.measurement for result in run.results):
        for tier, found in measurement.hit_rates.items():
            rates.setdefault((measurement.variant, tier), {})[measurement.batch_size] = found
    if not rates:
        return None
    sizes = sorted({size for of_place in rates.values() for size in of_place})
    order = in_order(dict.fromkeys(row for row, _ in rates), reference_of_run(run))
    rows = [
        (
            row,
            tier,
            *(
                f"{rates[row, tier][s]:.2%}" if s in rates[row, tier] else notation.DASH
                for s in sizes
            ),
        )
        for row, tier in sorted(rates, key=lambda place: order.index(place[0]))
    ]
    names = ("variant", "tier", *(str(size) for size in sizes))
    return plain_table("Hit rates by batch size", names, rows, left=2)


def _host_sentence(hosts: Sequence[HostTelemetry]) -> str:
    others, steal = [h.others for h in hosts], [h.steal for h in hosts]
    text = (
        f"Other processes used {fmean(others):.0%} of the CPUs ({max(others):.0%} at most), and "
        f"other machines took {fmean(steal):.1%} ({max(steal):.1%} at most); the session and its "
        f"servers used {fmean(h.own for h in hosts):.0%}. At least "
        f"{min(h.min_available_bytes for h in hosts) / GIB:.1f} GiB of memory were free."
    )
    swapped = sum(h.swapped_in_bytes + h.swapped_out_bytes for h in hosts)
    return text + (f" {swapped / 2**20:.0f} MiB were swapped." if swapped else "")


def _gpu_sentence(name: str, seen: Sequence[GpuTelemetry]) -> str:
    said = [f"{name}:"]
    clocks = [g.min_sm_clock_mhz for g in seen if g.min_sm_clock_mhz is not None]
    power = [g.power_w for g in seen if g.power_w is not None]
    memory = [g.max_memory_bytes for g in seen if g.max_memory_bytes is not None]
    energy = [g.energy_j for g in seen if g.energy_j is not None]
    facts = [
        f"SM clock {min(clocks):.0f} MHz or more" if clocks else "",
        f"{fmean(power):.0f} W" if power else "",
        f"{sum(energy) / 1e3:.1f} kJ in all" if energy else "",
        f"{max(memory) / GIB:.1f} GiB in use at most" if memory else "",
    ]
    said.append(", ".join(filter(None, facts)) or "its driver tells nothing")
    reasons = sorted({reason for gpu in seen for reason in gpu.reasons})
    said.append(f"; clocks were held back by: {', '.join(reasons)}." if reasons else ".")
    return " ".join(said[:2]) + said[2]


def _host_table(watched: Iterable[Watched]) -> Element:
    names = (
        "batch", "launch", "own CPU", "others", "steal", "disk wait", "MHz", "load", "free, GiB",
    )  # fmt: skip
    rows = [
        (
            w.place,
            str(w.launch),
            f"{h.own:.0%}",
            f"{h.others:.0%}",
            f"{h.steal:.1%}",
            f"{h.iowait:.1%}",
            notation.DASH if h.frequency_mhz is None else f"{h.frequency_mhz:.0f}",
            f"{h.load_1min:.1f}",
            f"{h.min_available_bytes / GIB:.1f}",
        )
        for w in watched
        for h in (w.telemetry.host,)
    ]
    return plain_table("CPUs", names, rows, left=1, caption=True)


def _gpu_table(name: str, watched: Iterable[Watched]) -> Element:
    names = (
        "batch", "launch", "SM, MHz", "lowest", "W", "J", "busy", "GiB", "\N{DEGREE SIGN}C",
        "held back by",
    )  # fmt: skip
    rows = [
        (
            w.place,
            str(w.launch),
            _number(gpu.sm_clock_mhz),
            _number(gpu.min_sm_clock_mhz),
            _number(gpu.power_w),
            _number(gpu.energy_j),
            notation.DASH if gpu.utilization is None else f"{gpu.utilization:.0%}",
            notation.DASH if gpu.max_memory_bytes is None else f"{gpu.max_memory_bytes / GIB:.1f}",
            _number(gpu.max_temperature_c),
            ", ".join(f"{reason} {share:.0%}" for reason, share in gpu.reasons.items()) or "-",
        )
        for w in watched
        for gpu in w.telemetry.gpus
        if gpu.name == name
    ]
    return plain_table(name, names, rows, left=1, caption=True)


def _number(value: float | None) -> str:
    return notation.DASH if value is None else f"{value:.0f}"
