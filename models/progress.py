"""Showing a run: a tqdm bar on a terminal, one plain line per epoch anywhere else."""

from __future__ import annotations

import sys

from tqdm import tqdm


class ProgressDisplay:
    """Reports samples done, loss, accuracy and speed to stderr; silent when ``quiet``.

    Use as a context manager: leaving it restores the terminal, also after an error.
    """

    def __init__(self, title: str, total_samples: int, done_samples: int, *, quiet: bool) -> None:
        self._quiet = quiet
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

    def update(self, samples: int, loss: float, accuracy: float) -> None:
        """``samples`` more are done; ``loss`` and ``accuracy`` are those of the running epoch."""
        self._bar.set_postfix_str(f"loss {loss:.4f}, accuracy {accuracy:.4f}", refresh=False)
        self._bar.update(samples)

    def epoch(self, epoch: int, num_epochs: int, row: dict[str, float], samples_per_second: float) -> None:
        """Epoch number ``epoch`` (from 1) is over, or cut short; ``row`` holds its results."""
        if self._plain:
            self.note(
                f"epoch {epoch}/{num_epochs}  loss {row['train_loss']:.4f}  "
                f"accuracy {row['train_accuracy']:.4f}  test accuracy {row['test_accuracy']:.4f}  "
                f"{samples_per_second:,.0f} samples/s"
            )

    def note(self, line: str) -> None:
        """Print a line without damaging the bar."""
        if not self._quiet:
            self._bar.write(line, file=sys.stderr)
