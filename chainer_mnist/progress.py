"""This module shows the progress of training: a progress bar, and plots by epoch."""

import time

from chainer import training
from chainer.training import extensions


def count(epochs):
    """Return a number of epochs in words."""
    return f'{epochs} epoch{"" if epochs == 1 else "s"}'


class Progress(training.Extension):
    """Prints a progress bar, at most once a second and a hundred times in all.

    Each line begins with a carriage return, and local mode overwrites it with the next line.
    """

    trigger = 1, 'iteration'

    def initialize(self, trainer):
        self.start = self.shown = time.monotonic()
        self.before = trainer.updater.epoch_detail

    def __call__(self, trainer):
        updater, epochs = trainer.updater, trainer.stop_trigger.period
        now, epoch = time.monotonic(), updater.epoch_detail
        left = (now - self.start) * (epochs - epoch) / (epoch - self.before)
        if now < self.shown + max(1, (now - self.start + left) / 100) or updater.is_new_epoch:
            return
        self.shown = now
        bar = '#' * round(20 * epoch / epochs)
        batches = updater.iteration / epoch
        accuracy = float(trainer.observation['main/accuracy'].array)
        where = f'epoch {int(epoch) + 1} of {epochs}, batch {epoch % 1 * batches:.0f} of {batches:.0f}'
        print(f'\r[{bar:.<20}] {where}, accuracy of the batch {accuracy:.2f}, {left:.0f} s left', flush=True)


def plot(names, file_name):
    """Return a PlotReport that draws the values of these names by epoch into a file."""
    from matplotlib import rcParams
    from matplotlib.ticker import MaxNLocator

    # For light and dark themes: a transparent background, large type, and a grey midway between both.
    parts = 'text.color axes.labelcolor axes.edgecolor xtick.color ytick.color'.split()
    rcParams.update(dict.fromkeys(parts, '#7a7a7a'))
    rcParams.update({'font.size': 14, 'grid.alpha': 0.5, 'legend.framealpha': 0, 'savefig.transparent': True})

    def mark_whole_epochs(figure, axes, summary):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))

    return extensions.PlotReport(names, 'epoch', file_name=file_name, postprocess=mark_whole_epochs)
