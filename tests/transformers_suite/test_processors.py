"""transformers' own tests of processors and image processors, against ours. Skips and overrides give their reason."""

import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import numpy as np
import pytest
from transformers import BertTokenizer
from transformers_suite.source_archive import load

import biomedclip  # noqa: F401 (registers the parts that a saved processor is loaded from)
from biomedclip.processing import BiomedCLIPImageProcessor, BiomedCLIPProcessor


pytestmark = pytest.mark.slow
image_processing_common = load("test_image_processing_common")
ProcessorTesterMixin = load("test_processing_common").ProcessorTesterMixin

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"size": {"shortest_edge": 20}, "crop_size": {"height": 18, "width": 18}}


class Tester(image_processing_common.ImageProcessingTester):
    """The image processor tester of the mixin: sizes of random images, and settings other than the defaults."""

    batch_size, num_channels, min_resolution, max_resolution = 7, 3, 30, 400
    size, crop_size = SIZES["size"], SIZES["crop_size"]

    def __init__(self):
        """Do not search for image processors under the name of the test's folder, as the mixin does."""

    def prepare_image_processor_dict(self):
        return SIZES


class ImageProcessorTest(image_processing_common.ImageProcessingTestMixin, unittest.TestCase):
    image_processing_classes = {"pil": BiomedCLIPImageProcessor}
    image_processor_dict = SIZES

    def setUp(self):
        self.image_processor_tester = Tester()

    @unittest.skip("there is one backend: torchvision's resampling gives other pixels than the published transform")
    def test_new_models_require_torchvision_backend(self):
        pass

    def test_call_numpy_4_channels(self):
        # Four channels are kept only without the conversion to RGB. The mixin of 5.17 does not disable it.
        self.image_processor_dict = {**SIZES, "do_convert_rgb": False}
        super().test_call_numpy_4_channels()

    def test_override_instance_attributes_does_not_affect_other_instances(self):
        # The mixin expects a `dict` and a `list`. Here sizes are a `SizeDict`, and means are a tuple.
        first, second = BiomedCLIPImageProcessor(), BiomedCLIPImageProcessor()
        first.size["shortest_edge"] = 7
        first.crop_size["height"] = 7
        for other in (second, BiomedCLIPImageProcessor()):
            self.assertEqual((other.size["shortest_edge"], other.crop_size["height"]), (224, 224))
        self.assertIsInstance(first.image_mean, tuple)

    def test_pil_can_run_without_torchvision(self):
        # The script of the mixin does not import this package, so the image processor would not be registered.
        script = (
            "import sys; sys.modules['torchvision'] = None; import biomedclip, numpy\n"
            "from transformers.models.auto.image_processing_auto import AutoImageProcessor\n"
            "processor = AutoImageProcessor.from_pretrained(sys.argv[1])\n"
            "numpy.save(sys.argv[1] + '/out.npy', processor(numpy.load(sys.argv[1] + '/in.npy'))['pixel_values'][0])\n"
        )
        image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        processor = BiomedCLIPImageProcessor(**SIZES)
        with tempfile.TemporaryDirectory() as folder:
            processor.save_pretrained(folder)
            np.save(f"{folder}/in.npy", image)
            subprocess.run([sys.executable, "-c", script, folder], cwd=ROOT, check=True)
            np.testing.assert_array_equal(np.load(f"{folder}/out.npy"), processor(image)["pixel_values"][0])


class ProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = BiomedCLIPProcessor

    @classmethod
    def _setup_image_processor(cls):
        return BiomedCLIPImageProcessor(**SIZES)

    @classmethod
    def _setup_tokenizer(cls):
        words = ["lower newer upper older longer string"]
        tokenizer = BertTokenizer(model_max_length=64)
        return tokenizer.train_new_from_iterator(words, vocab_size=80, show_progress=False)
