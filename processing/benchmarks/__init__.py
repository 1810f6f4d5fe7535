"""Published benchmarks: file readers, prompts, published values, and leaks between splits.

Each benchmark has an entry in `benchmarks.yaml` and a reader module in this folder. See [`load_benchmark`].
"""

from .benchmark import Benchmark, ClassificationBenchmark, RetrievalBenchmark, VisualQuestion, VisualQuestionBenchmark
from .facts import benchmark_names
from .loading import load_benchmark


__all__ = [
    "Benchmark",
    "ClassificationBenchmark",
    "RetrievalBenchmark",
    "VisualQuestion",
    "VisualQuestionBenchmark",
    "benchmark_names",
    "load_benchmark",
]
