"""Fixtures for tests of the build."""

from collections.abc import Callable

import pytest
from helpers.fake_slurm import install_fake_slurm

from biomedclip.processing.pmc import bucket, executors, steps
from biomedclip.processing.pmc.articles import Article


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the pauses before retries."""
    monkeypatch.setattr(bucket, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(executors, "PAUSE", 0.01)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Return a function that records the names of the articles that a step processes. `before` may raise an error."""

    def install(step: type[steps.ArticleStep], before: Callable[[Article], None] = lambda article: None) -> list[str]:
        process, names = step.process, []

        def watched(self, article: Article) -> None:
            names.append(article.name)
            before(article)
            process(self, article)

        monkeypatch.setattr(step, "process", watched)
        return names

    return install


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Install a fake Slurm that runs jobs at once, and return its folder."""
    for name, value in install_fake_slurm(tmp_path / "slurm").items():
        monkeypatch.setenv(name, value)
    return tmp_path / "slurm"
