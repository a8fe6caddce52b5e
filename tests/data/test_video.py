"""Frames of clips: exactly the one of its time, whatever the container; no clip in both sets; what
is no clip is counted, and nothing that a clip may hold does any harm.
"""

import os
import pickle
import random
import shutil
import struct
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from test_shards import descriptors
from torch import Tensor

from lookalike.data import Video, cache, clips
from lookalike.data import video as source_of
from lookalike.data.clips import BadClip, OpenClip, look
from lookalike.data.decode import BadImage
from lookalike.data.images import subset
from lookalike.data.loader import one_by_one
from lookalike.data.pack import Packing, encode
from lookalike.data.passport import passport
from lookalike.errors import DataError

av = pytest.importorskip("av")
HEIGHT, WIDTH, BITS = 32, 80, 10
LOSSLESS = {"codec": "ffv1", "form": "gray"}


def drawn(number: int) -> Tensor:
    """A frame with its number written in ten bars, black or white: uint8 (H, W)."""
    bits = torch.tensor([number >> k & 1 for k in range(BITS)], dtype=torch.uint8)
    return (255 * bits).repeat_interleave(WIDTH // BITS).expand(HEIGHT, WIDTH).contiguous()


def number_in(pixels_CHW: Tensor) -> int:
    height, width = pixels_CHW.shape[1:]
    step = width // BITS
    bars = pixels_CHW[1, height // 2, step // 2 :: step]
    return sum(int(bars[k] > 127) << k for k in range(BITS))


def write(
    path: Path,
    times: Sequence[Fraction],
    codec: str = "libx264",
    form: str = "yuv420p",
    base: Fraction = Fraction(1, 1000),
    gop: int = 12,
    first: int = 0,
    **options: str,
) -> Path:
    """A clip whose frames, at these seconds, show the numbers from `first` on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, form
        stream.codec_context.gop_size = gop
        stream.time_base = stream.codec_context.time_base = base
        for number, time in enumerate(times, first):
            frame = av.VideoFrame.from_ndarray(drawn(number).numpy(), format="gray")
            frame.pts, frame.time_base = round(time / base), base
            container.mux(stream.encode(frame.reformat(format=form)))
        container.mux(stream.encode())
    return path


def even(count: int, rate: int = 25) -> list[Fraction]:
    return [Fraction(i, rate) for i in range(count)]


def numbers(images) -> list[int]:
    return [number_in(images.open(i).pixels()) for i in range(len(images))]


def source(path: Path, **keys) -> Video:
    return Video(str(path), **{"test_fraction": 0, "canvas": (HEIGHT, WIDTH), **keys})


def left(path: Path, **keys) -> dict[str, int]:
    made = source(path, **keys)
    made.split("train")
    return {each.why: each.number for each in made.inventory}


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """Ten seconds."""
    return write(tmp_path_factory.mktemp("clip") / "one.mkv", even(250), **LOSSLESS)


# ---- the frame of a time


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "ts", "flv"])
@pytest.mark.parametrize("options", [{"bf": "3", "x264-params": "open-gop=1"}, {"bf": "0"}])
def test_the_frame_of_every_time_is_the_first_at_or_after_it_in_any_order(
    tmp_path, suffix, options
):
    base = Fraction(1, 25) if suffix in ("mp4", "mov") else Fraction(1, 1000)
    path = write(tmp_path / f"a.{suffix}", even(90), base=base, **options)
    asked = [(i, half) for i in range(1, 90) for half in (0, 1)]
    random.Random(0).shuffle(asked)
    with OpenClip(str(path)) as opened:
        known = opened.look()
        for i, half in asked:
            pixels = opened.frame(known, Fraction(2 * i - half, 50))
            assert number_in(torch.from_numpy(pixels).permute(2, 0, 1)) == i
        with pytest.raises(BadClip, match=r"no frame at 3\.600 s"):
            opened.frame(known, Fraction(90, 25))
    assert known.frames(Fraction(1, 25)) == 90


def test_a_frame_a_second_with_its_bytes_name_and_group(clip):
    images = source(clip.parent).split("train")
    assert len(images) == 10
    assert numbers(images) == [25 * k for k in range(10)]
    assert [images.name(k) for k in (0, 7)] == [f"{clip}@0.000s", f"{clip}@7.000s"]
    assert images.groups.tolist() == [0] * 10
    for k in range(10):
        assert torch.equal(images.open(k).pixels(), drawn(25 * k).expand(3, -1, -1))
        assert torch.equal(images.read(k), drawn(25 * k).expand(3, -1, -1))
    assert (images.form.channels, images.form.depth, images.labels) == (3, "uint8", None)
    out = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8)
    assert images.read(3, out) is out
    with pytest.raises(IndexError):
        images.open(10)


@pytest.mark.parametrize(
    ("every", "count", "third"), [(0.04, 250, 3), (0.1, 100, 8), (2.5, 4, 188), (60.0, 1, None)]
)
def test_every_is_the_number_that_was_written_and_not_the_float_beside_it(
    clip, every, count, third
):
    """0.1 times 3 is above 0.3 as a float, and would give the frame behind."""
    images = source(clip.parent, every=every).split("train")
    assert len(images) == count
    if third:
        assert number_in(images.open(3).pixels()) == third


def test_a_clip_of_varying_rate_and_one_that_begins_late(tmp_path):
    times = [Fraction(t, 100) for t in (0, 4, 99, 100, 101, 250, 251, 390, 400)]
    write(tmp_path / "a.mkv", times, **LOSSLESS)
    write(tmp_path / "b.mkv", [time + 7 for time in times], **LOSSLESS)
    images = source(tmp_path).split("train")
    # At 0, 1, 2, 3 and 4 seconds; 2 and 3 fall into gaps.
    assert numbers(images) == [0, 3, 5, 7, 8] * 2
    assert images.groups.tolist() == [0] * 5 + [1] * 5


def test_a_time_between_two_units_of_the_container_is_not_rounded_down(tmp_path):
    times = [Fraction(t, 1000) for t in (0, 333, 334, 1000)]
    write(tmp_path / "a.mkv", times, **LOSSLESS)
    assert numbers(source(tmp_path, every=0.3335).split("train")) == [0, 2, 3]


def test_a_canvas_is_cut_as_of_image_files(clip):
    images = source(clip.parent, canvas=16).split("train")
    assert images.read(4).shape == (3, 16, 16)
    box = images.open(4).pixels()[:, :, (WIDTH - HEIGHT) // 2 : (WIDTH + HEIGHT) // 2]
    wanted = torch.nn.functional.interpolate(box[None], (16, 16), mode="bicubic", antialias=True)
    assert torch.equal(images.read(4), wanted[0])
    whole = source(clip.parent, canvas=(HEIGHT, BITS * 4), fit="squash").split("train")
    assert number_in(whole.read(4)) == 100
    assert source(clip.parent, canvas=None).split("train", 28).shape == (3, 32, 32)


# Of the movie header's matrix (ISO/IEC 14496-12, 8.3.2): what x' = ax + cy, y' = bx + dy turn.
TURNS = {"right": ((0, 1, -1, 0), 3), "left": ((0, -1, 1, 0), 1), "over": ((-1, 0, 0, -1), 2)}


@pytest.mark.parametrize("turn", TURNS)
def test_frames_are_upright_as_the_container_says(tmp_path, turn):
    (a, b, c, d), quarters = TURNS[turn]
    path = write(tmp_path / "a.mp4", even(3), qp="0")
    plain = source(tmp_path).split("train").open(0).pixels()
    data, one = path.read_bytes(), 1 << 16
    identity = struct.pack(">9i", one, 0, 0, 0, one, 0, 0, 0, 1 << 30)
    turned = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    at = data.index(identity, data.index(b"tkhd"))
    path.write_bytes(data[:at] + turned + data[at + len(identity) :])
    found = source(tmp_path).split("train").open(0)
    assert torch.equal(found.pixels(), torch.rot90(plain, quarters, (1, 2)))
    assert (found.height, found.width) == found.pixels().shape[1:]


# ---- sets, labels, groups


def test_no_clip_is_in_both_sets_and_the_hash_keeps_it_in_its_set(tmp_path, clip):
    for i in range(20):
        shutil.copy(clip, tmp_path / f"{i}.mkv")
    train, test = (source(tmp_path, test_fraction=0.3).split(split) for split in ("train", "test"))
    names = [{images.name(i).split("@")[0] for i in range(len(images))} for images in (train, test)]
    assert not names[0] & names[1]
    assert len(names[0]) + len(names[1]) == 20
    assert 2 <= len(names[1]) <= 12
    assert not set(train.groups.tolist()) & set(test.groups.tolist())
    assert len(train) + len(test) == 200
    (tmp_path / "0.mkv").rename(tmp_path / "new.mkv")
    again = source(tmp_path, test_fraction=0.3).split("test")
    assert names[1] - {again.name(i).split("@")[0] for i in range(len(again))} <= {
        f"{tmp_path}/0.mkv"
    }


def test_folders_are_splits_and_classes(tmp_path, clip):
    for place in ("Train/dog/a", "Train/cat/b", "Train/cat/c", "VALID/cat/d", "VALID/emu/e"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, tmp_path / f"{place}.mkv")
    train, test = (source(tmp_path, every=5).split(split) for split in ("train", "test"))
    assert (train.classes, test.classes) == (("cat", "dog"), ("cat", "dog", "emu"))
    assert train.labels.tolist() == [0, 0, 0, 0, 1, 1]
    assert test.labels.tolist() == [0, 0, 2, 2]
    assert train.groups.tolist() == [0, 0, 1, 1, 2, 2]
    assert source(tmp_path, labels="none").split("train").labels is None
    shutil.copy(clip, tmp_path / "Train/stray.mkv")
    with pytest.raises(DataError, match=r"stray\.mkv: in no class folder"):
        source(tmp_path, labels="folders").split("train")


def test_a_subset_has_its_rows_and_annotations(clip):
    images = source(clip.parent).split("train")
    some = subset(subset(images, [9, 3, 5]), [2, 0])
    assert numbers(some) == [125, 225]
    assert some.name(0) == f"{clip}@5.000s"
    assert some.groups.tolist() == [0, 0]
    assert len({images.fingerprint, some.fingerprint}) == 2
    assert passport(some) == {"data": some.fingerprint, "images": 2}


def test_the_fingerprint_changes_with_the_frames_and_not_with_the_place(tmp_path, clip):
    shutil.copy(clip, tmp_path / clip.name)
    prints = [source(folder).split("train").fingerprint for folder in (clip.parent, tmp_path)]
    assert prints[0] == prints[1]
    prints.append(source(tmp_path, every=2).split("train").fingerprint)
    shutil.copy(clip, tmp_path / "two.mkv")
    prints.append(source(tmp_path).split("train").fingerprint)
    write(tmp_path / "two.mkv", even(250), first=1, **LOSSLESS)
    prints.append(source(tmp_path).split("train").fingerprint)
    assert len(set(prints)) == 4


# ---- processes


def test_two_workers_read_what_one_process_reads(clip):
    images = source(clip.parent, every=0.2).split("train")
    assert number_in(images.open(7).pixels()) == 35  # open here before the workers fork
    rows = Rows(images)
    alone = [rows[i] for i in range(len(images))]
    order = list(range(len(images)))[::-1]
    found = list(one_by_one(rows, sampler=order, num_workers=2))
    assert found == alone[::-1] == [5 * k for k in order]
    assert number_in(pickle.loads(pickle.dumps(images)).open(8).pixels()) == 40


class Rows(torch.utils.data.Dataset):
    def __init__(self, images):
        self.images = images

    def __getitem__(self, i: int) -> int:
        return number_in(self.images.open(i).pixels())


def test_a_fork_shares_no_position_in_a_file(clip):
    images = source(clip.parent, every=0.2).split("train")
    wanted = numbers(images)
    (handle,) = (
        int(entry.name)
        for entry in Path("/proc/self/fd").iterdir()
        if entry.is_symlink() and entry.readlink() == clip
    )
    os.lseek(handle, 7, os.SEEK_SET)
    child = os.fork()
    if not child:
        os._exit(0 if numbers(images) == wanted else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert os.lseek(handle, 0, os.SEEK_CUR) == 7
    assert numbers(images) == wanted


def test_open_clips_are_bounded_and_let_go(tmp_path, clip):
    for i in range(12):
        shutil.copy(clip, tmp_path / f"{i:02}.mkv")
    images = source(tmp_path, every=9).split("train")
    before = descriptors()
    for i in (*range(24), *range(24)):
        images.open(i)
        assert descriptors() <= before + 8
    del images
    assert descriptors() == before


# ---- what is no clip, and what does harm


def test_what_is_no_clip_is_counted_by_kind(tmp_path, clip):
    shutil.copy(clip, tmp_path / "no_suffix")
    shutil.copy(clip, tmp_path / "wrong.txt")
    (tmp_path / "notes.txt").write_text("a")
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "noise.avi").write_bytes(os.urandom(3000))
    (tmp_path / ".hidden.mkv").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.mp4")
    with av.open(str(tmp_path / "sound.mkv"), "w") as container:
        stream = container.add_stream("flac", rate=8000)
        stream.layout, stream.format = "mono", "s16"
        stream.time_base = Fraction(1, 8000)
        frame = av.AudioFrame(format="s16", layout="mono", samples=800)
        frame.sample_rate, frame.pts, frame.time_base = 8000, 0, Fraction(1, 8000)
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    for suffix in ("png", "avif"):
        from PIL import Image

        Image.new("RGB", (32, 32)).save(tmp_path / f"cover.{suffix}")
    made = source(tmp_path)
    assert len(made.split("train")) == 20
    found = {each.why: each.number for each in made.inventory}
    damaged = {why: found.pop(why) for why in list(found) if why.startswith("clip: Invalid data")}
    assert sum(damaged.values()) == 2
    assert found == {
        ".txt": 1,
        ".png": 1,
        ".avif": 1,
        "hidden": 1,
        "pipe or device": 1,
        "clip: no video stream": 1,
    }


def test_a_list_of_other_files_is_no_clip_whatever_its_name(tmp_path, clip):
    """FFmpeg would open what they name: other folders, other machines."""
    shutil.copy(clip, tmp_path / "a.mkv")
    write(tmp_path / "other" / "b.ts", even(30), bf="0")
    hls = "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nother/b.ts\n#EXT-X-ENDLIST\n"
    lists = {
        "hls.m3u8": hls,
        "hls.ts": hls,
        "concat.mp4": f"ffconcat version 1.0\nfile {clip}\n",
        "dash.mkv": "<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011'></MPD>",
        "sdp.mov": "v=0\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n",
    }
    for name, text in lists.items():
        (tmp_path / name).write_text(text)
    with av.open(str(tmp_path / "hls.m3u8")) as container:
        assert next(container.decode(video=0)).width == WIDTH  # it would
    made = source(tmp_path)
    assert len(made.split("train")) == 10 + 2
    assert sum(each.number for each in made.inventory) == len(lists)


def test_a_clip_cut_short_gives_the_frames_that_are_there(tmp_path, clip):
    data = clip.read_bytes()
    (tmp_path / "cut.mkv").write_bytes(data[: len(data) // 2])
    images = source(tmp_path).split("train")
    assert numbers(images) == [25 * k for k in range(len(images))]
    assert 3 <= len(images) <= 6
    for size in range(0, 600, 37):
        (tmp_path / "cut.mkv").write_bytes(data[:size])
        with pytest.raises(DataError, match="no clips in it"):
            source(tmp_path).split("train")


def test_a_frame_of_damaged_bytes_is_a_bad_image_and_others_are_whole(tmp_path, clip):
    data = bytearray(clip.read_bytes())
    images = source(clip.parent).split("train")
    with av.open(str(clip)) as container:
        packets = [p for p in container.demux(video=0) if p.pts is not None]
    aim = next(p for p in packets if p.pts == 4000)
    at = data.find(bytes(aim))
    data[at + 12 : at + 40] = os.urandom(28)
    (tmp_path / clip.name).write_bytes(data)
    damaged = source(tmp_path).split("train")
    bad = []
    for k in range(len(damaged)):
        try:
            assert torch.equal(damaged.open(k).pixels(), images.open(k).pixels())
        except BadImage as error:
            bad.append(error.path)
    assert bad == [f"{tmp_path}/{clip.name}@4.000s"]


def test_what_is_made_from_a_damaged_frame_is_bad_up_to_the_next_keyframe(tmp_path):
    """MPEG-4 is patched up where it is damaged, and only the first frame is marked."""
    base = Fraction(1, 25)
    path = write(tmp_path / "a.mp4", even(60), "mpeg4", base=base, gop=20)
    images = source(tmp_path, every=0.04).split("train")
    whole = [images.open(i).pixels() for i in range(60)]
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    packet = packets[25]
    after = next(i for i in range(26, 60) if packets[i].is_keyframe)
    data = bytearray(path.read_bytes())
    at, size = data.find(bytes(packet)), packet.size
    data[at + size // 3 : at + size] = random.Random(1).randbytes(size - size // 3)
    path.write_bytes(data)
    images, bad = source(tmp_path, every=0.04).split("train"), []
    for i in range(60):
        try:
            assert torch.equal(images.open(i).pixels(), whole[i]), i
        except BadImage:
            bad.append(i)
    assert bad == list(range(25, after))
    assert after > 30


def test_a_clip_that_goes_or_changes_is_a_bad_image(tmp_path, clip):
    shutil.copy(clip, tmp_path / "a.mkv")
    images = source(tmp_path).split("train")
    (tmp_path / "a.mkv").unlink()
    with pytest.raises(BadImage, match="No such file"):
        images.open(0)
    write(tmp_path / "a.mkv", even(30), **LOSSLESS)
    assert number_in(images.open(1).pixels()) == 25
    with pytest.raises(BadImage, match=r"a\.mkv@5\.000s: no frame at 5\.000 s"):
        images.open(5)


def test_limits_of_a_clip(tmp_path, clip, monkeypatch):
    shutil.copy(clip, tmp_path / "a.mkv")
    with pytest.raises(DataError, match="no clips"):
        source(tmp_path, max_pixels=HEIGHT * WIDTH - 1).split("train")
    made = source(tmp_path, max_pixels=HEIGHT * WIDTH)
    assert len(made.split("train")) == 10
    monkeypatch.setattr(source_of, "MOST_FRAMES", 9)
    with pytest.raises(DataError, match=r"10 frames, more than the 9 allowed: raise data\.every"):
        made.split("train")
    monkeypatch.setattr(clips, "LONGEST", 9)
    with pytest.raises(BadClip, match="longer than"):
        look(str(clip))
    monkeypatch.setattr(clips, "MOST_DECODED", 5)
    monkeypatch.setattr(clips, "_STEPS_BACK", (0,))
    write(tmp_path / "b.mp4", even(60), gop=60)
    with OpenClip(str(tmp_path / "b.mp4")) as opened, pytest.raises(BadClip, match="no keyframe"):
        opened.frame(opened.look(), Fraction(2))


def test_a_time_that_no_clip_can_have_is_left_out(tmp_path):
    write(tmp_path / "a.mkv", [Fraction(0), Fraction(90_000)], **LOSSLESS)
    write(tmp_path / "b.mkv", even(3), **LOSSLESS)
    assert left(tmp_path) == {"clip: longer than 24 hours": 1}


def test_without_pyav_one_line_says_what_to_install(clip, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(DataError, match=r"needs av: pip install 'lookalike\[video\]'"):
        look(str(clip))


def test_clips_are_looked_at_once_until_they_change(tmp_path, clip, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "clips"
    write(folder / "a.mkv", even(30), **LOSSLESS)
    (folder / "b.mp4").write_bytes(b"none")
    calls = []
    monkeypatch.setattr(source_of, "look", lambda *a: calls.append(a[0]) or look(*a))
    for _ in range(2):
        assert (len(source(folder).split("train")), left(folder)) == (
            2,
            {"clip: Invalid data found when processing input": 1},
        )
    assert len(calls) == 2
    write(folder / "a.mkv", even(60), **LOSSLESS)
    assert len(source(folder, every=0.5).split("train")) == 5
    assert calls[2:] == [f"{folder}/a.mkv"]
    for kept in (p for p in cache.home().iterdir() if p.suffix != ".lock"):
        kept.write_bytes(kept.read_bytes()[:-3])
    assert len(source(folder).split("train")) == 3
    assert len(calls) == 5


def test_frames_are_packed_at_full_size(clip):
    images = source(clip.parent, canvas=8).split("train")
    packed = encode(images, 2, Packing())
    assert packed.suffix == ".png"
    from lookalike.data.decode import decode

    pixels = decode(packed.data, "a", size=None, form=images.form)
    assert torch.equal(pixels, drawn(50).expand(3, -1, -1))
