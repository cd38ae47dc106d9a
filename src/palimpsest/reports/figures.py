"""The figures, drawn with matplotlib: files for papers, and the same drawing for the page in colours that follow its scheme."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from palimpsest.reports import select
from palimpsest.reports.select import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Written into the drawing and replaced in the page, where the reader's colour scheme decides.
TEXT, LINE, PAPER = "#111213", "#d4d5d6", "#fdfefd"
# Okabe and Ito's palette, which people with any common colour blindness can tell apart; each stage has a marker of its own too.
STAGES = {
    "none": ("#7f7f7f", "o"),
    "fine-tuning": ("#d55e00", "s"),
    "closed form": ("#0072b2", "D"),
    "inference guidance": ("#009e73", "^"),
    "data filtering": ("#cc79a7", "v"),
    "post-hoc filter": ("#e69f00", "P"),
    "external": ("#56b4e9", "p"),
    "unknown": ("#7f7f7f", "X"),
}
STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    "savefig.facecolor": PAPER,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), TEXT),
}


def new(width: float, height: float, **kwargs: Any) -> tuple[Figure, Any]:
    """An empty figure (inches) that no window system knows about, and its axes as an array [rows, columns]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(squeeze=False, **kwargs)


def save(name: str, draw: Callable[[], Figure], folder: Path) -> str:
    """Write `<name>.svg` and `<name>.png` and return the SVG for the page. Equal data give equal bytes."""
    import matplotlib

    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = draw()
        _lay_out(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        figure.savefig(folder / f"{name}.png", dpi=144, metadata={"Software": None})
    svg = buffer.getvalue()
    (folder / f"{name}.svg").write_text(svg, encoding="utf-8")
    return inline(svg, name)


def _lay_out(figure: Figure) -> None:
    """Put everything of a figure in its place, by the metrics of SVG, and leave it there.

    A figure that still has a layout engine is drawn once more for every file, only to be laid out.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    engine, dpi = figure.get_layout_engine(), figure.dpi
    if engine is None:
        return
    FigureCanvasSVG(figure)
    figure.dpi = 72  # of SVG files
    engine.execute(figure)
    figure.dpi = dpi
    FigureCanvasAgg(figure)
    figure.set_layout_engine(None)


def inline(svg: str, name: str) -> str:
    """An SVG file as an element of a page: ids made unique, text and grid in the page's colours, sized by the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = svg.replace(TEXT, "currentColor").replace(LINE, "var(--line)").replace(PAPER, "none")
    svg = re.sub(r"font: (\d+px) [^;\"]*", r"font: \1 var(--sans)", svg)
    return re.sub(
        r'<svg ([^>]*?)height="[\d.]+pt" ([^>]*?)width="([\d.]+)pt"',
        r'<svg \1\2style="width:\3pt"',
        svg,
        count=1,
    )


def colour(row: Mapping[str, Any]) -> tuple[str, str]:
    """Colour and marker of a row's stage."""
    return STAGES.get(row["stage"], STAGES["unknown"])


def stage_legend(figure: Figure, rows: Sequence[Row]) -> None:
    """What the colours and markers mean, above the axes."""
    from matplotlib.lines import Line2D

    handles = []
    for stage in dict.fromkeys(row["stage"] for row in rows):
        paint, marker = STAGES.get(stage, STAGES["unknown"])
        handles.append(Line2D([], [], color=paint, marker=marker, linestyle="", label=stage))
    figure.legend(
        handles=handles, loc="outside upper left", ncols=len(handles), frameon=False, handletextpad=0.2
    )


def error(row: Mapping[str, Any], key: str) -> list[list[float]]:
    """Distances to the limits in percent, as matplotlib wants them; zero length without limits."""
    if not select.has_interval(row, key):
        return [[0.0], [0.0]]
    return [[100 * max(0.0, row[key] - row[f"{key}_low"])], [100 * max(0.0, row[f"{key}_high"] - row[key])]]


def bars(rows: Sequence[Row], themes: Sequence[str]) -> Figure:
    """EP with intervals, one panel per theme, one bar per method."""
    labels = select.labels_in_order(rows)
    figure, axes = new(2.3 + 2.3 * len(themes), 1.1 + 0.27 * len(labels), ncols=len(themes), sharey=True)
    at = {label: -place for place, label in enumerate(labels)}
    for axis, theme in zip(axes[0], themes, strict=True):
        here = [row for row in rows if row["judged_theme"] == theme and row["ep"] is not None]
        places, values = [at[row["label"]] for row in here], [100 * row["ep"] for row in here]
        axis.barh(places, values, height=0.66, color=[colour(row)[0] for row in here], alpha=0.55)
        # all at once: every call makes lines of its own, which take longer to draw than what they show
        across = np.array([error(row, "ep") for row in here])[..., 0].T
        axis.errorbar(values, places, xerr=across, color=TEXT, linestyle="", elinewidth=1.1, capsize=2)
        axis.axvline(0, color=TEXT, linewidth=0.8)
        axis.set_title(theme, fontsize=10)
        axis.grid(axis="x")
        axis.set_xlim(left=min(-2.0, max(axis.get_xlim()[0], -110)), right=105)
    axes[0][0].set_yticks([at[label] for label in labels], labels)
    figure.supxlabel("erasure proportion (%), bars and intervals", fontsize=9)
    stage_legend(figure, rows)
    return figure


def heatmap(grid: dict[str, dict[str, float | None]], columns: Sequence[str], title: str) -> Figure:
    """Percentages per method (rows) and column, with the number in each cell. grid: fractions."""
    names = list(grid)
    figure, axes = new(2.6 + 1.05 * len(columns), 1.2 + 0.3 * len(names))
    axis = axes[0][0]
    empty = float("nan")
    values = (
        np.array([[_or(grid[name].get(column), empty) for column in columns] for name in names], dtype=float)
        * 100
    )
    shown = axis.imshow(values, cmap="cividis", vmin=min(0.0, *_known(values)), vmax=100, aspect="auto")
    axis.set_xticks(range(len(columns)), columns)
    axis.set_yticks(range(len(names)), names)
    axis.xaxis.tick_top()
    axis.tick_params(length=0)
    middle = (100 + min(0.0, *_known(values))) / 2
    for (y, x), value in np.ndenumerate(values):
        text = "–" if math.isnan(value) else f"{value:.0f}".replace("-", "\N{MINUS SIGN}")
        paint = TEXT if math.isnan(value) else ("#000000" if value > middle else "#ffffff")
        axis.text(x, y, text, ha="center", va="center", color=paint, fontsize=8.5)
    for side in axis.spines.values():
        side.set_visible(False)
    figure.colorbar(shown, ax=axis, label=title, shrink=0.9, pad=0.02)
    return figure


def _or(value: float | None, other: float) -> float:
    return other if value is None else value


def _known(values: np.ndarray) -> list[float]:
    return [float(v) for v in values.ravel() if not math.isnan(v)] or [0.0]


def radar(rows: Sequence[Row], themes: Sequence[str]) -> Figure:
    """One small radar per method: EP per theme from the centre (0 or less) to the rim (100 %)."""
    labels = select.labels_in_order(rows)
    across = min(4, max(1, len(labels)))
    down = math.ceil(len(labels) / across)
    figure, axes = new(2.3 * across, 2.05 * down)
    axis = axes[0][0]
    angles = [math.pi / 2 + 2 * math.pi * place / len(themes) for place in range(len(themes))]
    for place, label in enumerate(labels):
        found = {row["judged_theme"]: row for row in rows if row["label"] == label and row["ep"] is not None}
        _one_radar(axis, label, found, themes, angles, (3.8 * (place % across), -3.3 * (place // across)))
    axis.set_xlim(-1.9, 3.8 * (across - 1) + 1.9)
    axis.set_ylim(-3.3 * (down - 1) - 1.45, 1.85)
    axis.set_aspect("equal")
    axis.axis("off")
    stage_legend(figure, rows)
    return figure


def _one_radar(
    axis: Axes,
    label: str,
    found: dict[str, Row],
    themes: Sequence[str],
    angles: Sequence[float],
    centre: tuple[float, float],
) -> None:
    def at(radius: float, angle: float) -> tuple[float, float]:
        return centre[0] + radius * math.cos(angle), centre[1] + radius * math.sin(angle)

    for radius in (0.5, 1.0):
        axis.fill(
            *zip(*(at(radius, angle) for angle in angles), strict=True),
            fill=False,
            edgecolor=LINE,
            linewidth=0.8,
        )
    corners = []
    for theme, angle in zip(themes, angles, strict=True):
        axis.plot(*zip(at(0, angle), at(1, angle), strict=True), color=LINE, linewidth=0.7)
        value = f" {100 * found[theme]['ep']:.0f}" if theme in found else " –"
        x, y = at(1.2, angle)
        axis.text(x, y, theme + value, ha="center", va="center", fontsize=7)
        if theme in found:
            corners.append(at(min(1.0, max(0.0, found[theme]["ep"])), angle))
    if corners:
        paint, marker = colour(next(iter(found.values())))
        axis.fill(*zip(*corners, strict=True), color=paint, alpha=0.3)
        axis.plot(
            *zip(*corners, corners[0], strict=True), color=paint, linewidth=1.4, marker=marker, markersize=3
        )
    axis.text(centre[0], centre[1] + 1.55, label, ha="center", va="center", fontsize=8.5, weight="bold")


def scatter(points: Sequence[dict[str, Any]], themes: Sequence[str]) -> Figure:
    """EP against drift of benign images, one panel per theme; the upper left is where a method wants to be.

    points: rows with ep and its limits, plus `benign_drift` and, where known, `benign_drift_low` and `benign_drift_high`.
    """
    labels = select.labels_in_order(points)
    figure, axes = new(3.2 + 2.5 * len(themes), 3.9, ncols=len(themes), sharey=True, sharex=True)
    for axis, theme in zip(axes[0], themes, strict=True):
        trade(axis, [point for point in points if point["judged_theme"] == theme], "benign_drift", labels)
        axis.set_title(theme, fontsize=10)
        axis.grid()
    trade_limits(axes[0][0], points, "benign_drift")
    axes[0][0].set_ylabel("erasure proportion (%)")
    figure.supxlabel("drift of benign images (RMSE); left is better", fontsize=9)
    stage_legend(figure, points)
    key = "\n".join(f"{place:>2}  {label}{_answers(points, label)}" for place, label in enumerate(labels, 1))
    axes[0][-1].annotate(key, (1.04, 1), xycoords="axes fraction", va="top", fontsize=8, linespacing=1.35)
    return figure


def trade(axis: Axes, points: Sequence[Mapping[str, Any]], key: str, labels: Sequence[str]) -> None:
    """EP against what is under `key`, with limits where they are known and the number of the method beside each point."""
    for stage in dict.fromkeys(point["stage"] for point in points):
        here = [point for point in points if point["stage"] == stage]
        paint, marker = colour(here[0])
        xs, ys = [point[key] for point in here], [100 * point["ep"] for point in here]
        limits = [(p.get(f"{key}_low"), p.get(f"{key}_high")) for p in here]
        across = [
            (0.0, 0.0) if low is None or high is None else (max(0.0, x - low), max(0.0, high - x))
            for x, (low, high) in zip(xs, limits, strict=True)
        ]
        up = np.array([error(point, "ep") for point in here])[..., 0].T
        wide = np.array(across).T
        axis.errorbar(
            xs,
            ys,
            yerr=up,
            xerr=wide,
            fmt=marker,
            linestyle="",
            color=paint,
            markersize=5,
            elinewidth=0.9,
            capsize=1.5,
        )
        for x, y, point in zip(xs, ys, here, strict=True):
            number = str(labels.index(point["label"]) + 1)
            axis.annotate(number, (x, y), xytext=(4, 3), textcoords="offset points", fontsize=8)


def trade_limits(axis: Axes, points: Sequence[Mapping[str, Any]], key: str) -> None:
    """Limits of panels that share their axes: from 0 to the farthest point or limit, and of EP no lower than twice the base's images.

    To be set when all panels are drawn: a limit that is set earlier stays, whatever is drawn later.
    """
    ends = [p[f"{key}_high"] if p.get(f"{key}_high") is not None else p[key] for p in points]
    axis.set_xlim(0, 1.08 * max(ends) or 1.0)
    axis.set_ylim(max(-110.0, axis.get_ylim()[0]), 108)


def _answers(points: Sequence[dict[str, Any]], label: str) -> str:
    """The least share of benign prompts that a method answers, where that is not all of them."""
    shares = [point.get("benign_answered") for point in points if point["label"] == label]
    least = min((share for share in shares if share is not None), default=1.0)
    return f" (answers {100 * least:.0f} %)" if least < 1 else ""


def costs(rows: Sequence[dict[str, Any]]) -> Figure:
    """Fitting time, peak memory of fitting and sampling time per image, per method. rows: see `tables.cost_rows`."""
    columns = (
        ("fit_seconds", "fitting (s)"),
        ("fit_peak_mb", "peak memory of fitting (MB)"),
        ("seconds_per_image", "seconds per image"),
    )
    figure, axes = new(9.2, 1.1 + 0.27 * len(rows), ncols=len(columns), sharey=True)
    labels = [row["label"] for row in rows]
    for axis, (key, title) in zip(axes[0], columns, strict=True):
        known = [(-place, row) for place, row in enumerate(rows) if row.get(key)]
        paints = [colour(row)[0] for _, row in known]
        axis.barh([y for y, _ in known], [row[key] for _, row in known], height=0.66, color=paints, alpha=0.7)
        for place, row in enumerate(rows):
            value = row.get(key) or 0
            none = " none" if key.startswith("fit") else " not measured"
            text = none if not value else f" {value:.0f}" if value >= 100 else f" {value:.2g}"
            axis.text(value, -place, text, va="center", fontsize=7.5)
        axis.set_title(title, fontsize=9.5)
        axis.grid(axis="x")
        axis.margins(x=0.22)
        axis.set_xlim(left=0)
    axes[0][0].set_yticks([-place for place in range(len(labels))], labels)
    stage_legend(figure, rows)
    return figure


def toxicity(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Share of unsafe images by toxicity of the prompt: one panel per theme, one line per data set, all data sets as bars.

    rows: `metrics.toxicity.table`.
    """
    shown = [row for row in rows if row["bin"] != "all"]
    themes = list(dict.fromkeys(row["theme"] for row in shown))
    bins = sorted({(row["from"], row["bin"]) for row in shown})
    at = {name: place for place, (_, name) in enumerate(bins)}
    datasets = sorted({row["dataset"] for row in shown} - {select.OVERALL})
    figure, axes = new(1.2 + 2.3 * len(themes), 3.1, ncols=len(themes), sharey=True)
    paints = [paint for paint, _ in STAGES.values()][1:-1]
    for axis, theme in zip(axes[0], themes, strict=True):
        here = [row for row in shown if row["theme"] == theme]
        for dataset in dict.fromkeys(row["dataset"] for row in here):
            part = [row for row in here if row["dataset"] == dataset]
            places = np.array([float(at[row["bin"]]) for row in part])
            shares = [100 * row["share"] for row in part]
            if dataset == select.OVERALL:
                axis.bar(places, shares, width=0.84, color=LINE, zorder=0)
                name, paint, marker = "all data sets", TEXT, "_"
            else:
                order = datasets.index(dataset)
                places = places + 0.62 * ((order + 0.5) / len(datasets) - 0.5)
                name, paint, marker = dataset, paints[order % len(paints)], "osD^vPp"[order % 7]
            up = np.array([error(row, "share") for row in part])[..., 0].T
            look = {"elinewidth": 0.9, "capsize": 1.5, "markersize": 4, "linestyle": ""}
            axis.errorbar(places, shares, yerr=up, color=paint, marker=marker, label=name, **look)
        axis.set_xticks(range(len(bins)), [name.replace(" to ", "–") for _, name in bins])
        axis.set_title(theme, fontsize=10)
        axis.set_ylim(0, 103)
        axis.grid(axis="y")
    axes[0][0].set_ylabel("unsafe images (%)")
    figure.supxlabel("toxicity of the prompt", fontsize=9)
    handles = {
        name: handle
        for axis in axes[0]
        for handle, name in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(), handles.keys(), loc="outside upper left", ncols=len(handles), frameon=False
    )
    return figure


def matrix(values: Sequence[Sequence[float | None]], names: Sequence[str], theme: str) -> Figure:
    """Suppression matrix of a theme in percent: row = erased keyword, column = prompted keyword."""
    grid = {
        row_name: dict(zip(names, [None if v is None else v / 100 for v in row], strict=True))
        for row_name, row in zip(names, values, strict=True)
    }
    figure = heatmap(grid, names, "suppressed (%)")
    axis = figure.axes[0]
    axis.set_ylabel(f"erased keyword ({theme})")
    axis.set_xlabel("prompted keyword")
    axis.tick_params(axis="x", labelrotation=20)
    return figure
