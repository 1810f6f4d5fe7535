"""Read images, including DICOM and high bit depths, and folders and tables of labeled images."""
