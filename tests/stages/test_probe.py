"""The probe: what it scores, where it goes on, what it keeps and what it refuses."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import toy
from lookalike import comm, load_backbone, load_recipe
from lookalike.data.sources import Digits
from lookalike.errors import DataError, RecipeError, RunError
from lookalike.evaluation import quality
from lookalike.evaluation.features import embedder, extract
from lookalike.evaluation.protocols.lbfgs import Lbfgs
from lookalike.models.taps import Tap
from lookalike.runs import Run
from lookalike.stages import probe as stage
from lookalike.stages.probe import probe

HALF = "probe.data={half: {name: digits, test_fraction: 0.5}}"
FEW = "probe.few={shots: [1], share: [0.01], draws: 2}"
FAST = ("probe.max_iterations=3", "probe.grid=[0.1]")


@pytest.fixture
def run(tmp_path, whole) -> Path:
    """A run whose backbone is trained, to be probed."""
    shutil.copytree(whole / "backbone", tmp_path / "run" / "backbone")
    return tmp_path / "run"


def held(run: Path) -> dict:
    return json.loads((run / "probe.json").read_text())


def test_each_data_set_has_its_scores_with_their_protocols(run, capsys):
    words = ("probe.baselines=[pixels]", "probe.k=[5, 20]", "probe.protocols=[lbfgs, prototype]")
    scores = probe(run / "backbone", toy.recipe(*FAST, *words, HALF, FEW), run)
    for start in ("", "pixels/", "half/", "half/pixels/"):
        for family in ("linear", "prototype", "prototype_euclidean", "knn5", "knn20"):
            assert 0 < scores[f"{start}{family}/top1"] < 1
            for few in ("1-shot", "1 %"):
                name = f"{start}few/{few}/{family}/top1"
                low, high = held(run)["intervals"][name]
                assert low <= scores[name] <= high
                assert len(held(run)["draws"][name]) == 2
    assert not any("untrained" in name for name in scores)
    protocols = held(run)["protocols"]
    assert protocols["linear"]["train images"] == 1438
    assert protocols["half/linear"]["test images"] == 898
    assert protocols["half/few/1-shot"]["labels"] == 10
    assert {name: held(run)[name] for name in scores} == scores
    said, told = capsys.readouterr()
    assert "probe.data.half: 1,797 images in 10 classes (train 899, test 898)" in told
    assert "half (top-1)" in said
    assert "chosen on 0.2 of each class of train" in said


def recipe(*words: str):
    return toy.recipe(*FAST, "probe.baselines=[pixels]", FEW, *words)


def test_a_killed_probe_goes_on_and_ends_with_the_same_bytes(run, monkeypatch):
    probe(run / "backbone", recipe(), run)
    whole = (run / "probe.json").read_bytes()
    (run / "probe.json").unlink()
    shutil.rmtree(run / "probe")
    with monkeypatch.context() as patch:
        patch.setattr(stage, "_neighbours", kill)
        with pytest.raises(KeyboardInterrupt):
            probe(run / "backbone", recipe(), run)
    assert "linear/top1" in held(run)
    assert "knn20/top1" not in held(run)
    fitted = []
    monkeypatch.setattr(Lbfgs, "score", spy(Lbfgs.score, fitted))
    probe(run / "backbone", recipe(), run)
    assert len(fitted) == 1  # that of the pixels
    assert (run / "probe.json").read_bytes() == whole
    probe(run / "backbone", recipe(), run)
    assert len(fitted) == 1
    probe(run / "backbone", recipe("probe.k=5", "probe.few=null"), run)
    probe(run / "backbone", recipe(), run)
    assert (run / "probe.json").read_bytes() == whole


def kill(*words):
    raise KeyboardInterrupt


def spy(function, calls):
    def spied(*words, **more):
        calls.append(words)
        return function(*words, **more)

    return spied


def test_only_what_a_change_touches_is_scored_again(run, monkeypatch):
    fitted, voted = [], []
    monkeypatch.setattr(Lbfgs, "score", spy(Lbfgs.score, fitted))
    monkeypatch.setattr(stage, "_neighbours", spy(stage._neighbours, voted))
    probe(run / "backbone", recipe("probe.baselines=false"), run)
    probe(run / "backbone", recipe("probe.baselines=false", "probe.k=3"), run)
    assert (len(fitted), len(voted)) == (1, 2)
    assert "knn20/top1" not in held(run)
    last = recipe("probe.baselines=false", "probe.k=3", "probe.grid=[1.0]", "probe.few=null")
    probe(run / "backbone", last, run)
    assert (len(fitted), len(voted)) == (2, 3)
    probe(toy.architecture().build().eval(), last, run)
    assert (len(fitted), len(voted)) == (3, 4)


def test_a_file_of_an_earlier_release_is_read_and_its_others_stay(run):
    others = {"resnet50": {"linear/top1": 0.5}}
    text = json.dumps({"linear/top1": 0.1, "knn20/top1": 0.2, "others": others})
    (run / "probe.json").write_text(text)
    scores = probe(run / "backbone", recipe("probe.few=null"), run)
    assert held(run)["others"] == others
    assert held(run)["linear/top1"] == scores["linear/top1"] != 0.1


@pytest.mark.parametrize("done", [3, {"x": 4}, {"x": {"scores": 3}}, {"x": {"scores": [[]]}}])
def test_strange_records_are_forgotten(run, done):
    (run / "probe.json").write_text(json.dumps({"done": done, "protocols": 7}))
    scores = probe(run / "backbone", recipe("probe.few=null", "probe.baselines=false"), run)
    assert set(held(run)) == {*scores, "protocols", "done"}


def test_the_best_head_becomes_a_classifier_that_scores_as_the_probe(run, monkeypatch):
    written = []
    monkeypatch.setattr(stage, "write_classifier", spy(stage.write_classifier, written))
    scores = probe(run / "backbone", toy.recipe("probe.baselines=false", HALF), run)
    ((target, backbone, weight_CD, bias_C, classes, facts),) = written
    assert target == run / "probe" / "classifier"
    assert classes == [str(digit) for digit in range(10)]
    assert facts["held_out_top1"] == scores["linear/held_out_top1"]
    found = extract(embedder(backbone, backbone.architecture), Digits().split("test"))
    guess_M = (found.x_ND @ weight_CD.T + bias_C).argmax(1)
    assert float((guess_M == found.labels_N).double().mean()) == scores["linear/top1"]
    shutil.rmtree(target)
    probe(run / "backbone", toy.recipe("probe.baselines=false", HALF), run)
    assert len(written) == 2  # it is made again


def test_no_head_is_kept_of_another_model_or_of_a_tap(run, monkeypatch):
    monkeypatch.setattr(stage, "write_classifier", pytest.fail)
    probe(run / "backbone", recipe("probe.few=null", "probe.baselines=false"), run, name="other")
    job = stage.job(Run(recipe("probe.blocks=2"), run), toy.architecture())
    assert stage._classifier_of(job, None) is None
    assert job.settings.tap == Tap(blocks=2)


def test_features_of_another_tap_have_another_name(monkeypatch):
    monkeypatch.setattr(stage, "tapped", lambda backbone, tap: backbone)
    backbone = toy.architecture().build().eval()
    plain, tapped = (
        stage._models(backbone, toy.recipe(*words).probe, 0)[""].digest
        for words in (("probe.baselines=false",), ("probe.baselines=false", "probe.layer=-2"))
    )
    assert plain != tapped


def test_quality_needs_no_labels_and_stands_beside_the_untrained_one(run, monkeypatch):
    monkeypatch.setattr(quality, "IMAGES", 24)
    words = ("probe.quality=true", "probe.baselines=[untrained]", "probe.k=1")
    scores = probe(run / "backbone", toy.recipe(*FAST, *words), run)
    for prefix in ("", "untrained/"):
        assert 1 <= scores[f"{prefix}quality/rankme"] <= 16
        assert 1 <= scores[f"{prefix}quality/lidar"] <= 16
        assert scores[f"{prefix}quality/uniformity"] < 0 < scores[f"{prefix}quality/alignment"]
    assert held(run)["protocols"]["quality/lidar"]["views"] == 10


def _views(run: str):
    backbone = load_backbone(run)
    viewed = quality.Viewed(toy.recipe().pretrain.views.build(), 5)
    images = Digits().split("train")
    return quality.of_views(backbone, backbone.architecture, images, viewed)


def test_views_are_the_same_on_two_ranks_and_differ_among_themselves(run, ranks, monkeypatch):
    monkeypatch.setattr(quality, "IMAGES", 20)
    alone_NQD = _views(run / "backbone")
    assert alone_NQD.shape == (20, 10, 16)
    assert len(torch.unique(alone_NQD[0], dim=0)) == 10
    first_NQD, second_NQD = ranks.run(_views_of_few, str(run / "backbone"), world=2)
    torch.testing.assert_close(first_NQD, alone_NQD, rtol=1e-4, atol=1e-5)
    assert torch.equal(first_NQD, second_NQD)


def _views_of_few(run: str):
    quality.IMAGES = 20
    return _views(run)


def _probed(folder: str):
    text = load_recipe(Path(folder) / "toy.yaml", [*FAST, "probe.baselines=[pixels]", FEW])
    return probe(Path(folder) / "run" / "backbone", text, Path(folder) / "run"), comm.rank()


def test_two_ranks_find_what_one_does_and_write_one_file(run, ranks):
    toy.write(run.parent / "toy.yaml")
    answers = ranks.run(_probed, str(run.parent), world=2)
    shared = held(run)
    (run / "probe.json").unlink()
    alone, _ = _probed(str(run.parent))
    for found, _ in answers:
        assert found == pytest.approx(alone, abs=1e-9)
    assert shared.keys() == held(run).keys()
    assert shared["done"] == held(run)["done"]


REFUSED = {
    "untrained: {name: digits}": (RecipeError, "data: untrained is a name of scores"),
    "knn20: {name: digits}": (RecipeError, "data: knn20 is a name of scores"),
    "a/b: {name: digits}": (RecipeError, r'probe\.data: "a/b" is no name'),
    "flat: {name: folder, path: 'FLAT', channels: 1}": (
        DataError,
        r"probe\.data\.flat: no labels, which probe needs",
    ),
    "one: {name: folder, path: 'ONE', channels: 1, labels: folders}": (
        DataError,
        r"probe\.data\.one: all 3 train images are of one class",
    ),
}


@pytest.mark.parametrize("data", REFUSED)
def test_other_data_is_refused_by_its_key_before_any_work(tmp_path, data):
    kind, said = REFUSED[data]
    toy.folder_of_images(tmp_path / "flat", 6)
    one = toy.folder_of_images(tmp_path / "ones", 3)
    for split in ("train", "test"):
        (one / split).rename(one / "a")
        (tmp_path / "one" / split).mkdir(parents=True)
        (one / "a").rename(tmp_path / "one" / split / "a")
    places = {"FLAT": tmp_path / "flat", "ONE": tmp_path / "one"}
    for word, place in places.items():
        data = data.replace(word, str(place))
    with pytest.raises(kind, match=said):
        stage.job(Run(toy.recipe(f"probe.data={{{data}}}")), toy.architecture())


def test_a_list_of_names_is_a_draw_of_its_own(run, tmp_path):
    images = Digits().split("train")
    names = [images.name(i) for i in range(60)]
    (tmp_path / "sixty.txt").write_text("\n".join(names))
    few = f"probe.few={{lists: {{sixty: '{tmp_path / 'sixty.txt'}'}}}}"
    scores = probe(run / "backbone", toy.recipe(*FAST, "probe.baselines=false", few), run)
    assert 0 < scores["few/sixty/linear/top1"] < 1
    assert "intervals" not in held(run)
    assert held(run)["protocols"]["few/sixty"]["labels"] == 60


def test_shots_beyond_a_class_and_k_beyond_the_set_are_said(capsys):
    words = ("probe.few={shots: [500]}", "probe.data={other: {name: digits, test_fraction: 0.99}}")
    stage.job(Run(toy.recipe(*words, "probe.k=30")), toy.architecture())
    told = capsys.readouterr().err
    assert "probe.few.shots: 500, but 10 of 10 classes of probe.data.other have fewer" in told
    assert "probe.k: 30, but there are 20 train images of probe.data.other: all" in told


def test_classes_that_train_lacks_are_named(run, tmp_path):
    for split, names in (("train", "ab"), ("test", "abz")):
        for name in names:
            toy.folder_of_images(tmp_path / "made", 4)
            target = tmp_path / "data" / split / name
            target.parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "made" / "train").rename(target)
            shutil.rmtree(tmp_path / "made")
    data = f"data={{name: folder, path: '{tmp_path / 'data'}', canvas: 16, channels: 1}}"
    words = (data, "probe.baselines=false", "probe.k=1", "pretrain.batch=4", *FAST)
    probe(toy.architecture().build().eval(), toy.recipe(*words), run)
    about = held(run)["protocols"]["data"]
    assert about["classes"] == 2
    assert about["not in train"] == ["z"]


def test_scores_of_a_model_from_elsewhere_lie_beside_their_recipe(run, tmp_path):
    out = tmp_path / "scores"
    probe(run / "backbone", toy.recipe(*FAST, "probe.baselines=false"), out)
    assert load_recipe(out / "recipe.yaml").probe.max_iterations == 3
    probe(run / "backbone", toy.recipe("probe.max_iterations=4", *FAST[1:]), out)
    assert load_recipe(out / "recipe.yaml").probe.max_iterations == 3
    probe(run / "backbone", toy.recipe(*FAST, "probe.baselines=false"), run)
    assert not (run / "recipe.yaml").exists()  # what trained this backbone is not known


def test_a_folder_of_images_is_no_place_for_scores(run, tmp_path):
    mine = tmp_path / "images"
    mine.mkdir()
    (mine / "photo.jpg").write_bytes(b"mine")
    for place, words in ((mine, "holds files but no run"), (mine / "photo.jpg", "is a file")):
        with pytest.raises(RunError, match=words):
            probe(run / "backbone", toy.recipe(*FAST), place)
    assert [path.name for path in mine.iterdir()] == ["photo.jpg"]
