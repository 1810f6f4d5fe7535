"""transformers' own tests of models, configurations and training, applied to our classes.

A test that cannot apply is overridden or skipped, with the reason. All other skips are those of the mixins.
"""

import tempfile
import unittest
from unittest import mock

import pytest
import torch
from torch import nn
from transformers_suite.source_archive import load

from biomedclip import (
    BiomedCLIPConfig,
    BiomedCLIPForImageClassification,
    BiomedCLIPForVisualQuestionAnswering,
    BiomedCLIPModel,
    BiomedCLIPTextConfig,
    BiomedCLIPTextModel,
    BiomedCLIPTextModelWithProjection,
    BiomedCLIPVisionConfig,
    BiomedCLIPVisionModel,
    BiomedCLIPVisionModelWithProjection,
)


pytestmark = pytest.mark.slow
modeling_common = load("test_modeling_common")
ConfigTester = load("test_configuration_common").ConfigTester
TrainingTesterMixin = load("test_training_mixin").TrainingTesterMixin

TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = TOWER | {"projection_dim": 16, "vocab_size": 99, "max_position_embeddings": 64}
VISION = TOWER | {"projection_dim": 16, "image_size": 16, "patch_size": 4}
WHOLE = {"text_config": TEXT, "vision_config": VISION, "co_attention_config": TOWER, "projection_dim": 16}


class Tester:
    """The model tester of the mixins: a small configuration, inputs, and the expected sizes."""

    batch_size, seq_length = 3, 7
    num_hidden_layers, hidden_size, num_attention_heads = 2, 32, 4
    is_training = True

    def __init__(self, config_class, values, *, texts=False, images=False):
        self.config_class, self.values, self.texts, self.images = config_class, values, texts, images
        if not texts:
            self.seq_length = 17  # a class token and 4 x 4 patches

    def get_config(self):
        return self.config_class(**self.values)

    def prepare_config_and_inputs_for_common(self):
        inputs = {}
        if self.texts:
            inputs["input_ids"] = torch.randint(1, 99, (self.batch_size, self.seq_length))
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
            inputs["attention_mask"][0, 5:] = 0
        if self.images:
            inputs["pixel_values"] = torch.rand(self.batch_size, 3, 16, 16)
        return self.get_config(), inputs


class ModelTesterMixin(modeling_common.ModelTesterMixin):
    def test_can_init_all_missing_weights(self):
        # The mixin skips models from before 2023. It reads the year from the copyright line of the configuration's
        # file, which ours does not have.
        with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
            file.write("# Copyright 2026\n")
            file.flush()
            with mock.patch.object(modeling_common.inspect, "getfile", return_value=file.name):
                super().test_can_init_all_missing_weights()


class NoWordsMixin:
    """For models without text."""

    test_resize_embeddings = False  # there is no vocabulary

    def test_model_get_set_embeddings(self):
        # As in the mixin, but the input embedding is a convolution.
        for model_class in self.all_model_classes:
            model = model_class(self.model_tester.get_config())
            self.assertIsInstance(model.get_input_embeddings(), nn.Conv2d)
            new = nn.Conv2d(3, 32, 4, 4)
            model.set_input_embeddings(new)
            self.assertIs(model.get_input_embeddings(), new)
            self.assertIsNone(model.get_output_embeddings())


class NoLossMixin:
    """For single towers."""

    skip = unittest.skip("a tower has no loss; it is trained in ModelTest and ImageClassificationTest")
    test_training = skip(lambda self: None)
    test_training_gradient_checkpointing = skip(lambda self: None)
    test_training_gradient_checkpointing_use_reentrant_false = skip(lambda self: None)
    test_training_gradient_checkpointing_use_reentrant_true = skip(lambda self: None)


class OverfitMixin(TrainingTesterMixin):
    """The mixin supports only batches of token ids and labels. `overfit_batch` returns other batches."""

    def _get_model_modality(self):
        return "text"  # the only modality that is implemented

    def _create_text_training_batch(self, batch_size, seq_length, vocab_size):
        generator = torch.Generator().manual_seed(0)
        return self.overfit_batch(batch_size, torch.rand(batch_size, 3, 16, 16, generator=generator))

    def test_training_overfit(self):
        get_config = self.model_tester.get_config

        def with_vocab_size():  # the mixin passes it to the method above
            config = get_config()
            config.vocab_size = 99
            return config

        with mock.patch.object(self.model_tester, "get_config", with_vocab_size):
            super().test_training_overfit()


class TextModelTest(NoLossMixin, ModelTesterMixin, unittest.TestCase):
    all_model_classes = (BiomedCLIPTextModel, BiomedCLIPTextModelWithProjection)
    model_tester = Tester(BiomedCLIPTextConfig, TEXT, texts=True)

    def test_config(self):
        ConfigTester(self, config_class=BiomedCLIPTextConfig, **TEXT).run_common_tests()


class VisionModelTest(NoLossMixin, NoWordsMixin, ModelTesterMixin, unittest.TestCase):
    all_model_classes = (BiomedCLIPVisionModel, BiomedCLIPVisionModelWithProjection)
    model_tester = Tester(BiomedCLIPVisionConfig, VISION, images=True)

    def test_config(self):
        ConfigTester(self, config_class=BiomedCLIPVisionConfig, has_text_modality=False, **VISION).run_common_tests()


class BothTowersMixin:
    """For models of both towers, which return hidden states and attentions in the output of each tower."""

    additional_model_inputs = ["pixel_values"]
    _is_composite = True

    def check_towers(self, outputs):
        for tower, length in (outputs.text_model_output, 7), (outputs.vision_model_output, 17):
            self.assertEqual([state.shape for state in tower.hidden_states], [(3, length, 32)] * 3)
            self.assertEqual([weights.shape for weights in tower.attentions], [(3, 4, length, length)] * 2)

    def test_hidden_states_output(self):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        (model_class,) = self.all_model_classes
        model = model_class._from_config(config, attn_implementation="eager").eval()
        self.check_towers(model(**inputs, output_hidden_states=True, output_attentions=True))

    def test_attention_outputs(self):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        config._attn_implementation = "eager"
        for name in ("output_hidden_states", "output_attentions"):
            self._set_subconfig_attributes(config, name, True)
        (model_class,) = self.all_model_classes
        self.check_towers(model_class(config).eval()(**inputs))

    def test_retain_grad_hidden_states_attentions(self):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        (model_class,) = self.all_model_classes
        model = model_class._from_config(config, attn_implementation="eager")
        outputs = model(**inputs, output_hidden_states=True, output_attentions=True)
        towers = outputs.text_model_output, outputs.vision_model_output
        inner = [tensor for tower in towers for tensor in (tower.hidden_states[0], tower.attentions[0])]
        for tensor in inner:
            tensor.retain_grad()
        outputs[0][0, 0].backward()
        self.assertTrue(all(tensor.grad is not None for tensor in inner))


class LabelsMixin:
    """For models that are trained with labels. The mixin finds them by the lists of transformers' own classes."""

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        return inputs | {"labels": torch.zeros(3, dtype=torch.long)} if return_labels else inputs


class ModelTest(BothTowersMixin, OverfitMixin, ModelTesterMixin, unittest.TestCase):
    all_model_classes = (BiomedCLIPModel,)
    model_tester = Tester(BiomedCLIPConfig, WHOLE, texts=True, images=True)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        return {**inputs, "return_loss": True} if return_labels else inputs

    def overfit_batch(self, batch_size, pixel_values):
        input_ids = torch.arange(1, 1 + 5 * batch_size).view(batch_size, 5)
        return {"input_ids": input_ids, "pixel_values": pixel_values, "return_loss": True}

    def test_config(self):
        options = {"has_text_modality": False, "common_properties": ["projection_dim", "logit_scale_init_value"]}
        ConfigTester(self, config_class=BiomedCLIPConfig, **options).run_common_tests()


class ImageClassificationTest(LabelsMixin, OverfitMixin, NoWordsMixin, ModelTesterMixin, unittest.TestCase):
    all_model_classes = (BiomedCLIPForImageClassification,)
    model_tester = Tester(BiomedCLIPConfig, WHOLE, images=True)
    _is_composite = True

    def overfit_batch(self, batch_size, pixel_values):
        return {"pixel_values": pixel_values, "labels": torch.arange(batch_size) % 2}


class VisualQuestionAnsweringTest(LabelsMixin, BothTowersMixin, OverfitMixin, ModelTesterMixin, unittest.TestCase):
    all_model_classes = (BiomedCLIPForVisualQuestionAnswering,)
    model_tester = Tester(BiomedCLIPConfig, WHOLE, texts=True, images=True)

    def setUp(self):
        if "eager_matches_sdpa" in self._testMethodName:
            # The mixin compares logits for a class of this name, otherwise hidden states at the top of the output.
            self.all_model_classes = (type("Classification", self.all_model_classes, {}),)

    def overfit_batch(self, batch_size, pixel_values):
        input_ids = torch.arange(1, 1 + 5 * batch_size).view(batch_size, 5)
        labels = torch.arange(batch_size) % 2
        return {"input_ids": input_ids, "pixel_values": pixel_values, "labels": labels}
