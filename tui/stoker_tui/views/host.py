"""The machine and its devices."""

from __future__ import annotations

from stoker.types.host import Device, Host
from stoker_tui.chart import Figure, draw
from stoker_tui.clock import Clock
from stoker_tui.model import HISTORY_SECONDS, View
from stoker_tui.table import Column, widths
from stoker_tui.text import Line, fit, line, printable, width_of, wrapped
from stoker_tui.views.common import heading
from stoker_tui.words import NOTHING, bar, duration, of_gib, percent

GAP = 2


def height(view: View, room: int) -> int:
    """Rows for the host out of *room* rows of the terminal: the machine, then its devices."""
    host = view.host
    if host is None:
        return 1
    if is_tall(room):
        return max(7, 5 + max(1, len(host.devices)))
    if not host.devices:
        return 2
    return 1 + min(len(host.devices), max(2, room // 8))


def is_tall(room: int) -> bool:
    """Whether the terminal has rows enough for more than numbers."""
    return room >= 36


def lines(view: View, clock: Clock, width: int, rows: int, *, tall: bool) -> list[Line]:
    """The machine in one row, or (*tall*) with bars; its devices below."""
    host = view.host
    if host is None:
        return []
    made = _tall(host, clock, width) if tall else [_short(host, width)]
    return [*made, *device_lines(host, width, rows - len(made), label="  GPU     " if tall else "  GPU  ")]


def _short(host: Host, width: int) -> Line:
    cpu = None if host.cpu_percent is None else host.cpu_percent / 100
    parts = line(
        ("  CPU ", "muted"),
        bar(cpu, 10),
        f" {percent(host.cpu_percent):>5}",
        ("   memory ", "muted"),
        of_gib(host.memory_used, host.memory_total),
        ("   disk ", "muted"),
        f"{host.disk_free / 2**30:.1f} GiB free",
    )
    load = "" if host.load_1m is None else f"load {host.load_1m:.2f}"
    more = (("   load ", "muted"), (load[5:], ""))
    return (*parts, *more) if load and width_of(parts) + width_of(more) <= width else parts


def _tall(host: Host, clock: Clock, width: int) -> list[Line]:
    """Heading, CPU, memory, disk, blank."""
    up = duration(clock.since(host.started_at))
    load = "" if host.load_1m is None else f"load {host.load_1m:.2f}"
    size = max(10, min(40, width - 46))
    memory = host.memory_used / host.memory_total if host.memory_total else None
    disk = 1 - host.disk_free / host.disk_total if host.disk_total else None
    cpu = None if host.cpu_percent is None else host.cpu_percent / 100
    daemon = f"stokerd {host.version}, up {up}"
    return [
        heading("HOST", width, daemon if width > len(daemon) + 10 else ""),
        line(
            ("  CPU     ", "muted"),
            bar(cpu, size),
            f" {percent(host.cpu_percent):>5}   ",
            (f"{host.cpu_count} cores, {load}", "muted"),
        ),
        line(
            ("  memory  ", "muted"),
            bar(memory, size),
            f" {percent(memory and memory * 100):>5}   ",
            (of_gib(host.memory_used, host.memory_total), "muted"),
        ),
        line(
            ("  disk    ", "muted"),
            bar(disk, size),
            f" {percent(disk and disk * 100):>5}   ",
            (f"{host.disk_free / 2**30:.1f} GiB free", "muted"),
        ),
        line(),
    ]


_DEVICE_COLUMNS = (
    Column("", 5),
    Column("", 8, flex=True, drop=3),
    Column("", 16),
    Column("", 16, "right"),
    Column("", 5, "right", drop=1),
    Column("", 5, "right", drop=2),
)


def device_lines(host: Host, width: int, rows: int, label: str = "  ") -> list[Line]:
    """A row for each device; when there are too many, the last row sums up the rest."""
    if rows < 1:
        return []
    if not host.devices:
        text = host.devices_message or "no GPU on this host; models run on the CPU."
        said = wrapped(line((label, "muted")), text, width, "muted")
        return said if len(said) <= rows else [fit(line((label + printable(text), "muted")), width)]
    shown = host.devices if len(host.devices) <= rows else host.devices[: rows - 1]
    table = [_device(d) for d in shown]
    natural = [max((width_of(row[i]) for row in table), default=0) for i in range(len(_DEVICE_COLUMNS) + 1)]
    # An error may be long: it takes what is left, an owner's name always fits.
    columns = (*_DEVICE_COLUMNS, Column("", min(natural[-1], 24), flex=True))
    sizes = widths(columns, natural, width - GAP, GAP)
    made: list[Line] = []
    for cells in table:
        spans: list[tuple[str, str]] = []
        for cell, size, column in zip(cells, sizes, columns, strict=True):
            if size:
                spans.extend(((" " * GAP, ""), *fit(cell, size, column.align)))
        made.append(tuple(spans))
    rest = host.devices[len(shown) :]
    if rest:
        used = [d.utilisation for d in rest if d.utilisation is not None]
        mean = percent(sum(used) / len(used)) if used else NOTHING
        made.append(line((f"  … and {len(rest)} more GPUs, {mean} used on average", "muted")))
    return made


def _model(device: Device) -> str:
    return printable(device.name).removeprefix("NVIDIA ")


def _device(device: Device) -> tuple[Line, ...]:
    if device.error:
        why = line((f"✗ {printable(device.error)}", "bad"))
        return (line(f"GPU {device.index}"), line((_model(device), "muted")), *(line() for _ in range(4)), why)
    share = None if device.utilisation is None else device.utilisation / 100
    memory = NOTHING if device.memory_used is None else of_gib(device.memory_used, device.memory_total)
    return (
        line(f"GPU {device.index}"),
        line((_model(device), "muted")),
        line(bar(share, 10), f" {percent(device.utilisation):>5}"),
        line(memory),
        line(NOTHING if device.power is None else f"{device.power:.0f} W"),
        line(NOTHING if device.temperature is None else f"{device.temperature:.0f} °C"),
        _holder(device),
    )


def _holder(device: Device) -> Line:
    """Its owners; else what else is on it, or that it is free."""
    if device.owner:
        return line(device.owner)
    others = ", ".join(f"{printable(p.name) or 'ended'} ({p.pid})" for p in device.foreign)
    return line((f"! not Stoker's: {others}", "warn")) if others else line(("free", "muted"))


def history(view: View, clock: Clock, width: int, rows: int) -> list[Line]:
    """The last ten minutes of GPU utilisation, or of the CPU's where there's no GPU.

    The edges stand on whole multiples of what a cell covers, so that the curve moves a cell at a time and the wire
    stays quiet in between.
    """
    key = "gpu" if view.host is not None and view.host.devices else "cpu"
    words = "GPU utilisation, mean of all" if key == "gpu" else "CPU utilisation"
    cell = max(1.0, HISTORY_SECONDS / max(1, width - 10))
    end = (clock.now().timestamp() // cell + 1) * cell
    past = view.history.get(key, ())
    latest = percent(past[-1][1]) if past else ""
    figure = Figure(
        title=heading(f"{words}, last 10 min", width, latest),
        points=[p for p in past if p[0] >= end - HISTORY_SECONDS],
        left="10 min ago",
        right="now",
        xs=(end - HISTORY_SECONDS, end),
        ys=(0.0, 100.0),
        label=percent,
        empty="nothing measured yet",
    )
    return draw(figure, width, rows)
