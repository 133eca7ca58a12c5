"""The loss curve as a picture: events.jsonl -> loss.png."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgetune.figure import figure
from edgetune.train.events import read_events

SMOOTHING = 0.05
MARGINS = {"left": 0.13, "right": 0.97, "top": 0.91, "bottom": 0.13}
"""Shares of the picture: a layout that measures its labels takes as long as the drawing."""
SMOOTHED_STEPS = 10
"""Weight of a new step in the drawn moving average: 0.05 in long runs, 10 / steps in short ones."""


def draw_curve(events: Path, out: Path, *, title: str, per: str) -> None:
    """Training loss (each step, and its moving average) and eval loss over steps, as a PNG. Raises RunError.

    `per`: what the loss is a mean over, one of them.

    A dotted line stands where the learning rate was lowered, with what it became.
    """
    from matplotlib.ticker import MaxNLocator

    seen = read_events(events)
    training = [(event["step"], event["loss"]) for event in seen if "loss" in event]
    evaluation = [(event["step"], event["eval_loss"]) for event in seen if "eval_loss" in event]
    with figure(out, (7.0, 4.0), layout=None) as drawn:
        axes = drawn.add_subplot()
        drawn.subplots_adjust(**MARGINS)
        for event in seen:
            if "cut_to" in event:
                axes.axvline(event["step"], color="tab:gray", linestyle=":", linewidth=1.0)
                place = (event["step"], 1.0)
                text = f" {event['cut_to']:.1e}"
                axes.annotate(text, place, xycoords=axes.get_xaxis_transform(), va="top", fontsize=7, color="tab:gray")
        if training:
            steps, losses = zip(*training, strict=True)
            axes.plot(steps, losses, color="tab:blue", alpha=0.25, linewidth=0.8)
            averages = moving_average(losses, kept=1 - min(0.6, max(SMOOTHING, SMOOTHED_STEPS / len(losses))))
            axes.plot(steps, averages, color="tab:blue", label="training (moving average)")
        if evaluation:
            steps, losses = zip(*evaluation, strict=True)
            best = min(range(len(losses)), key=losses.__getitem__)
            axes.plot(steps, losses, color="tab:orange", marker="o", markersize=3, label="evaluation")
            text, place = f"{losses[best]:.4f}", (steps[best], losses[best])
            axes.annotate(text, place, textcoords="offset points", xytext=(0, 8), ha="center")
        axes.set(xlabel="optimizer step", ylabel=f"loss (nats per {per})", title=title)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        axes.margins(y=0.12)
        if training or evaluation:
            axes.legend(frameon=False)


def moving_average(values: Sequence[float], *, kept: float) -> list[float]:
    """The exponential moving average after each value; a new value leaves the share `kept`, in 0..1, of the old ones.

    The start does not pull it (Adam's correction, arXiv:1412.6980, section 3): the first average is the first value.
    """
    averages, average = [], 0.0
    for number, value in enumerate(values, 1):
        average = kept * average + (1 - kept) * value
        averages.append(average / (1 - kept**number))
    return averages
