"""Runs beside one another: whose score is best, what their recipes say otherwise, and what is no
run.
"""

import json
from pathlib import Path

import pytest

import toy
from lookalike.errors import RunError
from lookalike.stages import compare as stage
from lookalike.stages.compare import compare

OTHER = ("pretrain.epochs=9", "export=null")


def folder(path: Path, *words: str, **files) -> Path:
    """A run's files without the run."""
    path.mkdir()
    (path / "recipe.yaml").write_text(toy.recipe(*words).text())
    for name, held in files.items():
        (path / f"{name}.json").write_text(held if isinstance(held, str) else json.dumps(held))
    return path


def probed(linear: float, rank: float, **more) -> dict:
    quality = {"quality/rankme": rank, "quality/uniformity": -rank, "quality/alpha_req": rank}
    aside = {"intervals": {"linear/top1": [0.1, 0.2]}, "done": {"x": {"held_out": 0.9}}}
    return {"linear/top1": linear, "linear/l2": 0.5, "dropped": 0, **quality, **aside, **more}


@pytest.fixture
def two(tmp_path) -> list[Path]:
    others = {"others": {"\x1b[2Jevil": {"linear/top1": 0.9}}}
    tuned = {"backbone": {"map": 0.2, "level": 0.95}, "fine-tuned": {"map": 0.4, "breakdown": {}}}
    return [
        folder(tmp_path / "a", probe=probed(0.5, 7.0), evaluate=tuned),
        folder(tmp_path / "b", *OTHER, probe=probed(0.6, 6.0, **others)),
    ]


def test_a_row_has_every_run_s_score_and_the_best_is_marked(two):
    lines = compare(two).splitlines()
    assert lines[:4] == [
        f"A  {two[0]}",
        f"B  {two[0]}: fine-tuned",
        f"C  {two[1]}",
        rf"D  {two[1]}: \x1b[2Jevil",
    ]
    rows = {line.split()[0]: line.split()[1:] for line in lines[5:] if line}
    assert rows["probe/linear/top1"] == ["0.5000", "-", "0.6000", "0.9000*"]
    assert rows["probe/quality/rankme"] == ["7.0000*", "-", "6.0000", "-"]
    assert rows["probe/quality/uniformity"] == ["-7.0000*", "-", "-6.0000", "-"]
    assert rows["probe/quality/alpha_req"] == ["7.0000", "-", "6.0000", "-"]
    assert rows["evaluate/map"] == ["0.2000", "0.4000*", "-", "-"]
    assert rows["recipe"] == ["A", "C"]
    assert rows["pretrain.epochs"] == ["2", "9"]
    assert rows["export"] == ["there", "-"]
    assert {"probe/linear/l2", "evaluate/level", "probe/done"}.isdisjoint(rows)


def test_json_says_the_same(two):
    found = json.loads(compare(two, as_json=True))
    assert [column["model"] for column in found["columns"]] == [
        None,
        "fine-tuned",
        None,
        "\x1b[2Jevil",
    ]
    assert found["columns"][0]["scores"]["probe/quality/rankme"] == 7.0
    assert found["best"]["probe/linear/top1"] == [3]
    assert found["recipes"]["differ"] == {
        "pretrain.epochs": [2, 9],
        "export": ["there", None],
    }
    assert found["recipes"]["runs"] == [str(run) for run in two]


def test_a_tie_marks_all_that_share_it_and_likeness_none():
    assert stage.best("linear/top1", [0.5, None, 0.7, 0.7]) == {2, 3}
    assert stage.best("linear/top1", [0.7, None, 0.7]) == set()
    assert stage.best("linear/top1", [None, 0.7]) == set()
    assert stage.best("classify/ece", [0.2, 0.1]) == {1}


def test_one_run_shows_all_its_rows_and_a_run_without_scores_none(tmp_path):
    one = folder(tmp_path / "a", probe=probed(0.5, 7.0))
    assert "probe/linear/top1" in compare([one])
    assert "no scores yet" in compare([folder(tmp_path / "b")])
    same = compare([tmp_path / "a", tmp_path / "b"])
    assert "the recipes say the same" in same


HOSTILE = ["[1, 2]", "{", "[" * 100_000, '{"a": NaN, "b": {"c": 1e999}}', '{"a": {"a": []}}']


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_damaged_file_is_left_out_and_that_is_said(tmp_path, text):
    good = folder(tmp_path / "a", probe=probed(0.5, 7.0))
    bad = folder(tmp_path / "b", probe=text)
    (bad / "recipe.yaml").write_text("pretrain: [\x00")
    told = compare([good, bad])
    assert "probe.json: cannot be read, its scores are left out" in told or "{" in text
    assert "its recipe is not compared" in told
    assert "nan" not in told.lower().replace("uniformity", "")
    json.loads(compare([good, bad], as_json=True))


def test_what_is_no_run_is_refused_in_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match=r"empty: no run folder, it has neither recipe\.yaml"):
        compare([tmp_path / "empty"])
    with pytest.raises(RunError, match=r"a\\x1bb: no such folder"):
        compare([tmp_path / "a\x1bb"])
