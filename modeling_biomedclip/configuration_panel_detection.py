"""Configuration of the network that finds the panels of a figure and their printed labels."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class PanelDetectionConfig(PreTrainedConfig):
    r"""Configuration of [`PanelDetectionModel`].

    Args:
        image_size (`int`, defaults to 512): Width and height of the input in pixels, a multiple of 64.
        widths (`list[int]`): Channels after each halving of the resolution, from stride 2 to stride 64.
        depths (`list[int]`): Residual blocks at each of these resolutions.
        neck_width (`int`, defaults to 64): Channels of the map of stride 8 that the heads read.
        printed_labels (`list[str]`): Labels that can be read, such as `A`, `12` and `iv`, in lower case where they are
            Roman numerals.
        image_types (`list[str]`): Names of the types of images. The published detector has those of ImageCLEF 2015.

    Example:
    ```python
    >>> from biomedclip import PanelDetectionConfig, PanelDetectionModel

    >>> model = PanelDetectionModel(PanelDetectionConfig(image_types=["radiology", "microscopy"]))
    ```
    """

    model_type = "biomedclip_panel_detection"

    image_size: int = 512
    widths: list[int] | tuple[int, ...] = (16, 32, 64, 128, 160, 192)
    depths: list[int] | tuple[int, ...] = (0, 1, 2, 2, 2, 1)
    neck_width: int = 64
    printed_labels: list[str] | tuple[str, ...] = ()
    image_types: list[str] | tuple[str, ...] = ()

    def __post_init__(self, **kwargs: Any) -> None:
        if self.image_size % 64:
            raise ValueError(f"`image_size` is {self.image_size}, and must be a multiple of 64")
        if len(self.widths) != 6 or len(self.depths) != 6:
            raise ValueError("`widths` and `depths` must have 6 entries each, one for each halving of the resolution")
        kwargs.setdefault("id2label", {0: "panel"})
        super().__post_init__(**kwargs)
