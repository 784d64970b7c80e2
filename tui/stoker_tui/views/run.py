"""A run in full: its state, what it was given, where that comes from, and its curve."""

from __future__ import annotations

from stoker.types.training import Cancelling, Run, Running, Succeeded
from stoker_tui.chart import Figure, draw
from stoker_tui.clock import Clock
from stoker_tui.model import Curves
from stoker_tui.text import Line, Span, fit, line, printable, width_of, wrapped
from stoker_tui.views.common import elapsed, heading
from stoker_tui.views.overview import run_result
from stoker_tui.words import NOTHING, mark, number, short


def title(run: Run, clock: Clock, width: int) -> list[Line]:
    """Its name, its state and for how long; then why, if there's a reason to tell."""
    found = mark(run.phase)
    time = elapsed(run, clock)
    when = f", {time}" if time.endswith("ago") or time == "now" else f" for {time}"
    attempt = f", attempt {run.attempt} of {run.spec.retries + 1}" if run.spec.retries else ""
    lines = [line(" ", (run.name, "strong"), "   ", (found.text, f"{found.role} strong"), f"{when}{attempt}")]
    match run.state:
        case Succeeded(registered=str() as version):
            lines.append(line("   ", "registered as ", (version, "good strong")))
        case Cancelling(because=because):
            lines.append(line("   ", (f"its processes are being stopped ({because})", "warn")))
        case _:
            result, role = run_result(run)
            if result:
                lines.extend(wrapped(line("   "), result, width, role))
    return lines


def facts(run: Run) -> list[tuple[str, Line]]:
    """What it was given and where that comes from: (name, value). What is unknown is said to be."""
    code = short(run.code_commit or run.code_digest)
    data = run.dataset_version or NOTHING
    return [
        ("job", line(run.job)),
        ("trigger", line(printable(run.trigger))),
        ("code", line(code if code != NOTHING else "not kept")),
        ("data", line(data, *([(f" {short(run.dataset_digest)}", "muted")] if run.dataset_digest else []))),
        ("base", line(run.base_version or NOTHING)),
        *([("python", line(printable(str(run.environment["python"]))))] if run.environment.get("python") else []),
        *([("devices", line(", ".join(run.devices)))] if run.devices else []),
    ]


def params(run: Run) -> list[tuple[str, Line]]:
    """Its parameters: (name, value)."""
    return [(printable(k), line(_value(v))) for k, v in run.params.items()]


def _value(value: str | float) -> str:
    return number(value) if isinstance(value, float) else printable(str(value))


def summary(run: Run, width: int, rows: int) -> list[Line]:
    """Facts and parameters in flowing rows, for a narrow terminal; what doesn't fit is counted."""
    return [*_flow(facts(run), width, 2), *_flow(params(run), width, max(1, rows - 2))]


def sheet(run: Run, width: int) -> list[Line]:
    """Facts and parameters, one a row, for a wide terminal."""
    lines: list[Line] = []
    for title_, pairs in (("FROM", facts(run)), ("PARAMETERS", params(run))):
        if lines:
            lines.append(line())
        lines.append(line((f"{'  ' + title_:<{width}}", "head")))
        if not pairs:
            lines.append(line(("  none", "muted")))
        size = min(max((len(name) for name, _ in pairs), default=0), width // 2)
        lines.extend(fit(line("  ", *fit(((name, "muted"),), size), "  ", *value), width) for name, value in pairs)
    return lines


def _flow(pairs: list[tuple[str, Line]], width: int, rows: int) -> list[Line]:
    """``name value`` pairs one after another, at most *rows* rows."""
    made: list[list[Span]] = []
    for index, (name, value) in enumerate(pairs):
        piece: list[Span] = [(f"{name} ", "muted"), *value]
        room = width - 16 if len(made) == rows else width
        if made and width_of(tuple(made[-1])) + width_of(tuple(piece)) + 3 <= room:
            made[-1].extend([("   ", ""), *piece])
        elif len(made) < rows:
            made.append([("  ", ""), *piece])
        else:
            made[-1].append((f"   +{len(pairs) - index} more", "muted"))
            break
    return [fit(tuple(row), width) for row in made]


def keys_line(curves: Curves | None, key: str | None, width: int, *, is_log: bool) -> Line:
    """The metrics that there are, the drawn one in brackets with its last value."""
    if curves is None or not curves.by_key or key is None:
        return heading("METRICS", width)
    spans: list[Span] = [("  ", "head")]
    for name, curve in curves.by_key.items():
        if name == key:
            last = curve.last
            value = f" {number(last.value)} at step {last.step}" if last is not None else ""
            spans.append((f"[{printable(name)}]{value}{', log scale' if is_log else ''}", "head strong"))
        else:
            spans.append((printable(name), "head muted"))
        spans.append(("   ", "head"))
    return tuple((text, role or "head") for text, role in fit(tuple(spans), width))


def curve(curves: Curves | None, key: str | None, width: int, rows: int, *, is_log: bool, is_over: bool) -> list[Line]:
    """The chosen metric over its steps."""
    head = keys_line(curves, key, width, is_log=is_log)
    chosen = curves.by_key.get(key) if curves is not None and key is not None else None
    points = chosen.drawn() if chosen is not None else []
    figure = Figure(
        title=head,
        points=points,
        left=f"step {points[0][0]:.0f}" if points else "",
        right=f"{points[-1][0]:.0f}" if points else "",
        is_log=is_log,
        empty="it logged no metrics"
        if is_over
        else 'no metrics yet: stoker.log_metric("loss", value, step) draws here',
    )
    return draw(figure, width, rows)


def is_cancellable(run: Run) -> bool:
    """Whether there's anything to stop."""
    return run.phase in ("queued", "running")


def consequence(run: Run) -> str:
    """What cancelling does, in a sentence."""
    if isinstance(run.state, Running):
        return f"All processes of {run.name} are stopped. Its log, metrics and files stay; no version is registered."
    return f"{run.name} will not start."
