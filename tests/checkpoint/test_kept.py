"""What a long computation keeps: the same on all ranks, whole or not there."""

import pytest
import torch

from lookalike import comm
from lookalike.checkpoint.kept import digest, forget, keep, kept

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(3), "c": torch.zeros(0, 4)}


def exchanged(folder):
    """What rank 0 has kept, with a path that only it can see."""
    path = folder / "own.safetensors" if comm.rank() == 0 else folder / "nowhere" / "x"
    assert kept(path) is None
    keep(path, TENSORS, {"epochs": comm.rank() + 1})
    found = kept(path)
    return digest(found.tensors), found.about


def test_all_ranks_hear_what_the_first_has_kept(tmp_path, ranks):
    assert ranks.run(exchanged, tmp_path) == [(digest(TENSORS), {"epochs": 1})] * 2


def test_every_damage_is_noticed_and_said(tmp_path, capsys):
    path = tmp_path / "x" / "y.safetensors"
    keep(path, TENSORS, {"n": 1})
    whole, unharmed = path.read_bytes(), kept(path)
    for place in (*range(0, len(whole), 7), len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        found = kept(path) or unharmed
        assert found.about == {"n": 1}
        assert digest(found.tensors) == digest(TENSORS)
        path.write_bytes(whole[:place])
        assert kept(path) is None
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert kept(path) is None
    assert "computed anew" in capsys.readouterr().err
    path.write_bytes(whole)
    assert kept(path).about == {"n": 1}
    forget(path)
    forget(path)
    assert kept(path) is None


def test_a_place_that_cannot_be_written_ends_nothing(tmp_path):
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="is not kept"):
        keep(tmp_path / "file" / "y.safetensors", TENSORS, {})
    keep(None, TENSORS, {})
    assert kept(None) is None
    forget(None)


@pytest.mark.parametrize("name", ["a", "b"])
def test_the_digest_knows_bytes_shapes_types_and_names(name):
    for changed in (
        {**TENSORS, name: TENSORS[name] + 1},
        {**TENSORS, name: TENSORS[name].to(torch.float64)},
        {**TENSORS, name: TENSORS[name].reshape(-1)},
        {key + "x" if key == name else key: tensor for key, tensor in TENSORS.items()},
    ):
        assert digest(changed) != digest(TENSORS)
