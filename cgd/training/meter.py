"""What a run logs: means of the training figures, image rate, and the share of time spent waiting for data."""

import json
import time

from cgd.system.errors import InputError


class Meter:
    """Means of training figures, images/s, and the share of time spent waiting for data, since the last log line.

    An evaluation restarts it, too.
    """

    def __init__(self):
        self.restart()

    def restart(self):
        self.values = []
        self.restart_clock()

    def restart_clock(self):
        """Starts the rates anew, and keeps the figures: those of a resumed run are in its state."""
        self.start, self.waited, self.images = time.time(), 0.0, 0

    def timed(self, batches):
        """Yields the same batches; the time to get each one counts as waiting."""
        batches = iter(batches)
        while True:
            start = time.time()
            batch = next(batches, None)
            self.waited += time.time() - start
            if batch is None:
                return
            yield batch

    def add(self, values, images):
        self.values.append(values)
        self.images += images

    def means(self):
        """{name: mean} over the steps that have this figure."""
        columns = {}
        for values in self.values:
            for name, value in values.items():
                columns.setdefault(name, []).append(value)
        return {name: sum(column) / len(column) for name, column in columns.items()}

    def text(self, lr):
        means = self.means()
        return "ranking {:.3f}, classification {:.3f}, lr {:.0e}, {:.0f} images/s".format(
            means["ranking_loss"], means["classification_loss"], lr, self.images / (time.time() - self.start)
        )

    def take(self):
        """The figures for a log line. Starts the next interval."""
        seconds = time.time() - self.start
        figures = dict(self.means(), images_per_second=self.images / seconds, data_time=self.waited / seconds)
        self.restart()
        return figures


def write_line(log, figures):
    try:
        log.write(json.dumps(figures) + "\n")
        log.flush()
    except OSError as error:
        raise InputError(f"{log.name}: cannot be written ({error.strerror})")
