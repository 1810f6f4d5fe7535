"""Write DICOM files."""

import io

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid


def item(**elements) -> Dataset:
    """Return a dataset with these elements, such as an item of a sequence."""
    dataset = Dataset()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def dicom(pixels: np.ndarray, preamble: bool = True, implicit: bool = False, **elements) -> bytes:
    """Return an uncompressed DICOM file. Elements are added to those that describe the pixels, or replace them."""
    bits = 8 * pixels.dtype.itemsize
    described = {
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(np.issubdtype(pixels.dtype, np.signedinteger)),
    }
    dataset = item(**described | elements)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["test"])
    dataset.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    file = io.BytesIO()
    if not preamble:
        del dataset.file_meta
    dataset.save_as(file, implicit_vr=implicit, little_endian=True, enforce_file_format=preamble)
    return file.getvalue()


def ramp(dtype, size: int = 16) -> np.ndarray:
    return np.linspace(0, 4095 if np.dtype(dtype).itemsize > 1 else 255, size * size).astype(dtype).reshape(size, size)
