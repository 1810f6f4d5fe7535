"""Published benchmarks: readers of their files, prompts, published values, and leaks between splits.

Each benchmark is one entry in `benchmarks.yaml` and one reader module in this folder, see [`load_benchmark`].
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
