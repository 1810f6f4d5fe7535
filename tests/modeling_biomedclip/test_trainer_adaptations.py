"""Private methods of transformers' Trainer are used in one module only."""

import ast
import inspect
import re
from pathlib import Path

import pytest
import transformers
from transformers import Trainer

from biomedclip.trainer_adaptations import PRIVATE_METHODS, AdaptedTrainer


ROOT = Path(__file__).parents[2]
MODULES = [
    path
    for folder in ("modeling_biomedclip", "processing", "run_scripts", "model_cards")
    for path in (ROOT / folder).rglob("*.py")
    if path.name != "trainer_adaptations.py"
]
PRIVATE = {name for name in dir(Trainer) if name.startswith("_") and not name.startswith("__")}


@pytest.mark.parametrize("name", PRIVATE_METHODS)
def test_transformers_has_the_private_methods_that_are_adapted(name):
    assert callable(getattr(Trainer, name, None)), (
        f"Trainer.{name} is missing in transformers {transformers.__version__}"
    )


@pytest.mark.parametrize("name", sorted(set(PRIVATE_METHODS) & set(vars(AdaptedTrainer))))
def test_adapted_methods_have_the_parameters_of_transformers(name):
    ours, theirs = (list(inspect.signature(getattr(owner, name)).parameters) for owner in (AdaptedTrainer, Trainer))
    assert ours == theirs


def test_the_attributes_that_are_read_exist():
    source = inspect.getsource(Trainer)
    assert "self._total_loss_scalar" in source and "self.accelerator._models" in source


def test_all_private_methods_in_use_are_listed():
    tree = ast.parse(inspect.getsource(inspect.getmodule(AdaptedTrainer)))
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    used |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert used & PRIVATE == set(PRIVATE_METHODS)


FORBIDDEN = {
    "overrides a private method": rf"class \w+\(.*Trainer.*\):(\n    .*|\n)*\n    def ({'|'.join(PRIVATE)})\(",
    "uses a private member": rf"trainer\.({'|'.join([*PRIVATE, '_total_loss_scalar'])})\b",
    "borrows a method": r"= \w*Trainer\.\w+\n",
    "calls a method without self": r"Trainer\.\w+\(None\b",
    "replaces a method": rf"\btrainer\.({'|'.join(dir(Trainer))}) = |\.(train|forward) = ",
    "binds a function to an object": r"\bMethodType\b",
    "rewrites __module__": r"\.__module__ = ",
}


def adaptations(code: str) -> list[str]:
    """Return how the code overrides, borrows or replaces methods of a trainer."""
    return [name for name, pattern in FORBIDDEN.items() if re.search(pattern, code)]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_other_module_adapts_the_trainer(path):
    assert adaptations(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "code",
    [
        "class T(Trainer):\n    def _save(self): ...",
        "class T(Trainer):\n    get_eval_dataloader = ContrastiveTrainer.get_eval_dataloader\n",
        "names = ContrastiveTrainer.get_decay_parameter_names(None, model)",
        "trainer.get_train_dataloader = list",
        "tower.train = MethodType(stay, tower)",
        "type(model).__module__ = 'module'",
        "loss = trainer._total_loss_scalar",
        "trainer._save_checkpoint(model, None)",
    ],
)
def test_each_forbidden_pattern_is_found(code):
    assert adaptations(code)
