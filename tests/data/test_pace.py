"""How many images a second `doctor` says: counted by a clock that the test turns."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import toy
from lookalike import cli
from lookalike.data import pace
from lookalike.data.images import ArrayImages, FileImages, Reading
from lookalike.geometry import PixelFormat


@pytest.fixture
def images(tmp_path) -> FileImages:
    """Ten JPEGs, and one that is none."""
    for i in range(10):
        Image.fromarray(np.full((20, 30, 3), i, np.uint8)).save(tmp_path / f"{i}.jpg")
    (tmp_path / "bad.jpg").write_bytes(b"x")
    names = [*(f"{i}.jpg" for i in range(10)), "bad.jpg"]
    return FileImages(tmp_path, names, Reading(8, PixelFormat(3)))


@pytest.mark.parametrize(("cost", "wanted"), [(0.001, 10 / 0.011), (0.1, 10), (3.0, 1 / 3)])
def test_the_pace_is_of_those_read_in_a_quarter_of_a_second(images, monkeypatch, cost, wanted):
    clock, read = [0.0], images.read

    def slow(i, out_CHW):
        clock[0] += cost
        return read(i, out_CHW)

    monkeypatch.setattr(images, "read", slow)
    monkeypatch.setattr(pace.time, "process_time", lambda: clock[0])
    monkeypatch.setattr(pace, "cores", lambda: 16)
    found = pace.pace(images)
    assert found.core == pytest.approx(wanted)
    assert clock[0] <= max(cost, 2 * pace.SECONDS)
    assert pace.Pace(480.2, 16).line == "data: 480 images/s a core, 16 cores: about 7,700 images/s"
    assert pace.Pace(9.0, 1).line == "data: 9 images/s a core, 1 core: about 9 images/s"
    assert pace.Pace(9.0, 1, 3000).line.endswith("; nvJPEG (decode: device) 3,000")


def test_a_device_is_asked_for_what_it_decodes_alone(images):
    seen = []

    def decode(files, channels):
        seen.append(len(files))
        return [torch.ops.image.decode_jpeg(file.clone(), 3, False) for file in files]

    device = torch.device("cpu")
    assert pace.of_decoder(images, list(range(9)), device, decode) > 0
    assert seen == [9, 9]


def test_nothing_is_said_of_images_in_memory_or_that_cannot_be_read(images, tmp_path):
    assert pace.pace(ArrayImages(torch.zeros(3, 3, 4, 4, dtype=torch.uint8))) is None
    assert pace.pace(FileImages(tmp_path, ["bad.jpg"], Reading(8, PixelFormat(3)))) is None


def test_doctor_says_it_with_the_machine_and_in_json(images, tmp_path, capsys):
    recipe = toy.write(tmp_path / "r.yaml")
    data = f"data={{name: folder, path: {tmp_path}, canvas: 8, channels: 1, labels: none}}"
    words = ["doctor", str(recipe), data, "--out", str(tmp_path)]
    assert cli.guarded(lambda: cli.app(words, standalone_mode=False)) == 0
    out = capsys.readouterr().out
    assert "images/s a core" in out
    assert cli.guarded(lambda: cli.app([*words, "--json"], standalone_mode=False)) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["pace"].startswith("data: ")
    assert told["images_per_second"]["core"] > 0
