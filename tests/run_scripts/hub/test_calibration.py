"""The calibration of a model on the Hub."""

import json

from biomedclip.run_scripts.classification.calibrations import load_calibration


def test_a_model_on_the_hub_brings_its_calibration(hub, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    content = {"schema": 1, "temperature": 2.5, "labels": ["a", "b"], "weights": "00"}
    content |= {"prompts": None, "fitted_on": {}}
    hub.add("lab/classifier", {"calibration.json": json.dumps(content).encode(), "config.json": b"{}"})
    hub.add("lab/plain", {"config.json": b"{}"})
    assert load_calibration(None, "lab/classifier").temperature == 2.5
    assert load_calibration("none", "lab/classifier").temperature == 1
    assert load_calibration(None, "lab/plain").temperature == 1
