"""Rows, captions and overlays of `biomedclip panels`."""
