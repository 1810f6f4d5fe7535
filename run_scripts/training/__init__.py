"""Tasks of `biomedclip train`, and the code that they share."""
