"""Count predictions while their rows are written."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from .predictions import Prediction
from .true_labels import Measurement


@dataclass
class Tally:
    """Count the images, their predicted labels and the unreadable ones.

    Args:
        measurement: Takes the predictions if there are true labels.
        add: Called with the number of new images.
    """

    measurement: Measurement | None
    add: Callable[[int], None]
    predicted: Counter[str] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)

    def count(self, predictions: Iterator[Prediction], labels: Sequence[str]) -> Iterator[Prediction]:
        """Yield the predictions and count each of them."""
        for prediction in predictions:
            self.add(1)
            name = prediction.image.id
            if prediction.probabilities is None:
                self.unreadable.append(name)
            else:
                self.predicted[labels[int(prediction.probabilities.argmax())]] += 1
                if self.measurement is not None:
                    self.measurement.add(name, prediction.probabilities)
            yield prediction


__all__ = ["Tally"]
