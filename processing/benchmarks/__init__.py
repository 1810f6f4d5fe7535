"""Benchmarks as people download them: their readers, prompts and published values, and leaks between their splits."""

from .benchmark import ClassificationBenchmark, RetrievalBenchmark, VisualQuestion, VisualQuestionBenchmark
from .loading import BENCHMARK_NAMES, load_benchmark


__all__ = [
    "BENCHMARK_NAMES",
    "ClassificationBenchmark",
    "RetrievalBenchmark",
    "VisualQuestion",
    "VisualQuestionBenchmark",
    "load_benchmark",
]
