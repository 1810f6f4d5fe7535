"""What the tasks of `biomedclip train` share."""
