"""Showing a run: a tqdm bar on a terminal, one plain line per epoch anywhere else."""

from __future__ import annotations

import sys

from tqdm import tqdm


class ProgressDisplay:
    """Reports samples done, loss, measure and speed to stderr; silent when ``quiet``.

    ``measure`` is the name of the number next to the loss, None where there is none.
    Use as a context manager: leaving it restores the terminal, also after an error.
    """

    def __init__(
        self, title: str, total_samples: int, done_samples: int, *, measure: str | None, quiet: bool
    ) -> None:
        self._quiet = quiet
        self._measure = measure
        terminal = sys.stderr.isatty()
        self._plain = not quiet and not terminal
        self._bar = tqdm(
            total=total_samples,
            initial=done_samples,
            desc=title,
            unit=" samples",
            unit_scale=True,
            dynamic_ncols=True,
            disable=quiet or not terminal,
            file=sys.stderr,
        )

    def __enter__(self) -> ProgressDisplay:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def update(self, samples: int, loss: float, score: float | None) -> None:
        """``samples`` more are done; ``loss`` and ``score`` are those of the running epoch."""
        shown = "" if self._measure is None else f", {self._measure} {score:.4f}"
        self._bar.set_postfix_str(f"loss {_short(loss)}{shown}", refresh=False)
        self._bar.update(samples)

    def epoch(self, epoch: int, num_epochs: int, row: dict[str, float], samples_per_second: float) -> None:
        """Epoch number ``epoch`` (from 1) is over, or cut short; ``row`` holds its results."""
        if self._plain:
            shown = [f"loss {_short(row['train_loss'])}"]
            if self._measure is None:
                shown.append(f"test loss {_short(row['test_loss'])}")
            else:
                name = self._measure.replace("_", " ")
                shown.append(f"{name} {row[f'train_{self._measure}']:.4f}")
                shown.append(f"test {name} {row[f'test_{self._measure}']:.4f}")
            if "validation_loss" in row:
                shown.insert(1, f"validation loss {_short(row['validation_loss'])}")
            shown.append(f"{samples_per_second:,.0f} samples/s")
            self.note("  ".join((f"epoch {epoch}/{num_epochs}", *shown)))

    def note(self, line: str) -> None:
        """Print a line without damaging the bar."""
        if not self._quiet:
            self._bar.write(line, file=sys.stderr)


def _short(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.4g}"
