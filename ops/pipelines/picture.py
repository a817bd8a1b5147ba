"""A run of a pipeline as a picture: the steps as a graph, each with its state, time and what it found. SVG.

Called by `fednc pipeline show` and the console. Uses no package.
"""

from __future__ import annotations

from collections.abc import Iterator
from xml.sax.saxutils import escape

from fednc.common.peer_text import one_line
from fednc.ops.pipelines.journal import PipelineRun, StepRecord, StepState

_COLOURS = {
    StepState.PENDING: "#9aa0a6",
    StepState.RUNNING: "#1a73e8",
    StepState.ASKING: "#b06000",
    StepState.DONE: "#188038",
    StepState.CACHED: "#12806a",
    StepState.SKIPPED: "#9aa0a6",
    StepState.REJECTED: "#c5221f",
    StepState.REPLACED: "#7b5ea7",
    StepState.FAILED: "#c5221f",
}
_WIDTH, _TOP, _ROW, _BOX_W, _BOX_H, _LEFT = 940, 64, 60, 150, 38, 20
_NOTE_CHARS = 92
_STYLE = (
    "text{font-family:system-ui,sans-serif;font-size:14px;fill:#202124}"
    ".title{font-size:17px;font-weight:600}.small{font-size:12.5px;fill:#5f6368}.line{stroke:#9aa0a6}"
    ".head{fill:#9aa0a6}.paper{fill:#ffffff}.box{fill:#ffffff;stroke-width:2}"
    "@media(prefers-color-scheme:dark){text{fill:#e8eaed}.small{fill:#bdc1c6}.paper,.box{fill:#202124}}"
)


def svg_of(name: str, run: PipelineRun, *, is_at_work: bool) -> str:
    """The picture. `is_at_work`: a process runs the pipeline; a step that only seems to run was interrupted."""
    height = _TOP + _ROW * len(run.steps)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" '
            f'height="{height}" role="img"><style>{_STYLE}</style>',
            f'<rect class="paper" width="{_WIDTH}" height="{height}"/>',
            _text(_LEFT, 26, f"{name}, run {run.number}", "title"),
            _text(_LEFT, 46, f"on = {run.on}; began because {run.why}"[:_NOTE_CHARS], "small"),
            *_rows(run, is_at_work=is_at_work),
            "</svg>",
        ]
    )


def shown_state(step: StepRecord, *, is_at_work: bool) -> str:
    """The state of a step for people."""
    return "interrupted" if step.state is StepState.RUNNING and not is_at_work else str(step.state)


def _rows(run: PipelineRun, *, is_at_work: bool) -> Iterator[str]:
    for place, step in enumerate(run.steps):
        top = _TOP + _ROW * place
        if place:
            yield from _arrow(_LEFT + _BOX_W / 2, top - _ROW + _BOX_H, top)
        colour = _COLOURS[step.state]
        dashed = ' stroke-dasharray="5 4"' if step.state in (StepState.SKIPPED, StepState.PENDING) else ""
        yield (
            f'<rect class="box" x="{_LEFT}" y="{top}" width="{_BOX_W}" height="{_BOX_H}" rx="7" '
            f'stroke="{colour}"{dashed}/>'
        )
        yield f'<circle cx="{_LEFT + 18}" cy="{top + _BOX_H / 2}" r="6" fill="{colour}"/>'
        yield _text(_LEFT + 34, top + 24, step.name)
        took = f", {step.seconds:.1f} s" if step.seconds else ""
        yield _text(_LEFT + _BOX_W + 18, top + 16, shown_state(step, is_at_work=is_at_work) + took)
        yield _text(_LEFT + _BOX_W + 18, top + 34, _cut(step.note), "small")


def _arrow(x: float, top: float, bottom: float) -> Iterator[str]:
    yield f'<line class="line" x1="{x}" y1="{top}" x2="{x}" y2="{bottom - 6}" stroke-width="1.5"/>'
    yield f'<path class="head" d="M{x - 4},{bottom - 7} L{x + 4},{bottom - 7} L{x},{bottom - 1} Z"/>'


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text x="{x}" y="{y}"{named}>{escape(one_line(text))}</text>'


def _cut(note: str) -> str:
    return note if len(note) <= _NOTE_CHARS else f"{note[: _NOTE_CHARS - 1]}…"
