"""Build workers stay small: reading articles and images imports no deep learning library."""

import subprocess
import sys


CODE = """
import io, sys
import numpy as np
from helpers.dicom_writer import dicom
from helpers.tiff_writer import png16
from biomedclip.processing import read_image
from biomedclip.processing.images.perceptual_hash import perceptual_hash
from biomedclip.processing.pmc import jats, steps

pixels = np.random.default_rng(0).integers(0, 65536, (40, 40, 3), dtype=np.uint16)
for content in (png16(pixels), dicom(pixels[..., 0])):
    perceptual_hash(read_image(content))
print([name for name in ("torch", "transformers", "datasets") if name in sys.modules])
"""


def test_reading_articles_and_deep_images_imports_no_deep_learning_library():
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path}\n{CODE}"], capture_output=True, text=True
    )
    assert done.stdout == "[]\n", done.stderr
