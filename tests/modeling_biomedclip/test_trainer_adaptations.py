"""Private methods of transformers' Trainer are used in one module only."""

import ast
import inspect
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


def adaptations(tree: ast.AST) -> list[str]:
    """Return the places that override, borrow or replace methods of other objects."""
    classes = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and any("Trainer" in ast.unparse(base) for base in node.bases):
            for statement in node.body:
                if isinstance(statement, ast.FunctionDef) and statement.name in PRIVATE:
                    found.append(f"overrides Trainer.{statement.name}")
                if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Attribute):
                    found.append(f"borrows {ast.unparse(statement.value)}")
        elif isinstance(node, ast.Attribute) and node.attr == "_total_loss_scalar":
            found.append("reads _total_loss_scalar")
        elif isinstance(node, ast.Attribute) and node.attr in PRIVATE and ast.unparse(node.value).endswith("trainer"):
            found.append(f"uses Trainer.{node.attr}")
        elif isinstance(node, ast.Call):
            function = ast.unparse(node.func)
            owner = function.rpartition(".")[0]
            first = ast.unparse(node.args[0]) if node.args else ""
            if "MethodType" in function:
                found.append("binds a function to an object")
            if first == "None" and (owner in classes or owner.endswith("Trainer")):
                found.append(f"calls {function} without self")
        elif isinstance(node, ast.Assign):
            for target in (target for target in node.targets if isinstance(target, ast.Attribute)):
                if target.attr == "__module__":
                    found.append("rewrites __module__")
                if target.attr in dir(Trainer) and ast.unparse(target.value) == "trainer":
                    found.append(f"replaces trainer.{target.attr}")
                if target.attr in ("train", "forward"):
                    found.append(f"replaces {ast.unparse(target)}")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_other_module_adapts_the_trainer(path):
    assert adaptations(ast.parse(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "code",
    [
        "class T(Trainer):\n    def _save(self): ...",
        "class T(Trainer):\n    get_eval_dataloader = ContrastiveTrainer.get_eval_dataloader",
        "names = ContrastiveTrainer.get_decay_parameter_names(None, model)",
        "trainer.get_train_dataloader = list",
        "tower.train = MethodType(stay, tower)",
        "type(model).__module__ = 'module'",
        "loss = trainer._total_loss_scalar",
        "trainer._save_checkpoint(model, None)",
    ],
)
def test_each_forbidden_pattern_is_found(code):
    assert adaptations(ast.parse(code))
