"""Images: reading, DICOM, high bit depths, folders of images and their tables."""
