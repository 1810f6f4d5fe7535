"""Serve a model over HTTP: the engine, the API and the page of `biomedclip demo`."""
