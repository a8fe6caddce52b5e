"""Clips of video, of unknown worth -> what they are, and their frames at given times, or else
BadClip with the reason; by PyAV (extra `video`).

FFmpeg's demuxers can be made to open other files and addresses (playlists, lists of parts), so only
containers that hold their own data are let in, only as files, and no frame of more pixels than
allowed is decoded. One thread decodes: loaders have processes.
"""

import contextlib
import os
import stat
from collections.abc import Iterator
from fractions import Fraction
from math import ceil
from typing import Any, NamedTuple

import numpy as np

from lookalike.errors import DataError, printable

# Demuxers, as FFmpeg calls them.
_CONTAINERS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,ogg,asf"
MAX_PIXELS = 40_000_000
"""Of a frame; 8K has 33 million."""
LONGEST = 86_400
"""Seconds that a clip may have."""
MOST_DECODED = 10_000
"""Frames that are decoded for one; a keyframe comes every few hundred."""
_TAIL = 10  # seconds, in which the last frame is looked for
_STEPS_BACK = (0, 2, 30)  # seconds, where a seek ends behind its aim


class BadClip(Exception):
    """No clip, or no frame, in a few words."""


class Clip(NamedTuple):
    """What a clip is: times of its first and last frame in units of `numerator`/`denominator`
    seconds, and its sides in pixels as they are stored.
    """

    first: int
    last: int
    numerator: int
    denominator: int
    height: int
    width: int

    @property
    def base(self) -> Fraction:
        """Seconds of a unit."""
        return Fraction(self.numerator, self.denominator)

    def frames(self, every: Fraction) -> int:
        """How many times 0, `every`, 2 · `every`, … seconds after its first frame the clip has."""
        return int((self.last - self.first) * self.base / every) + 1


def look(path: str, max_pixels: int | None = None) -> Clip:
    """What the clip is, from its first frame and the packets of its end.

    Raises BadClip, DataError where PyAV is missing.
    """
    with OpenClip(path, max_pixels) as clip, _as_bad():
        return clip.look()


class OpenClip:
    """A clip to take frames from, for one thread. `max_pixels`: how many a frame may have, by
    default 40 million. Raises BadClip, DataError where PyAV is missing.
    """

    def __init__(self, path: str, max_pixels: int | None = None) -> None:
        # Whatever its name looks like, it is a file.
        self._path = os.path.abspath(path)  # noqa: PTH100 (names of any bytes)
        self._most = max_pixels or MAX_PIXELS
        self._container: Any = None
        self._open()

    def _open(self) -> None:
        av = _pyav(self._path)
        # FFmpeg counts what its decoders pad; the exact number is held below.
        limit = {"max_pixels": str(2 * self._most + (1 << 20))}
        options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file", **limit}
        with _as_bad():
            if not stat.S_ISREG(os.stat(self._path).st_mode):  # noqa: PTH116
                raise BadClip("not a regular file")  # no pipe is waited for
            self._container = av.open(self._path, options=options)
            self._stream = _video(self._container)
            context = self._stream.codec_context
            context.options, context.thread_count = limit, 1
            self._hold(context.height, context.width)

    def _hold(self, height: int, width: int) -> None:
        """Raises BadClip for more pixels than allowed."""
        if height * width > self._most:
            what = f"frames of {width} × {height} pixels, more than the {self._most:,} allowed"
            raise BadClip(f"{what}: max_pixels allows more")

    def __del__(self) -> None:
        self.close()  # PyAV's own objects hold each other

    def __enter__(self) -> "OpenClip":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets the file go."""
        if self._container is not None:
            self._container.close()

    def look(self) -> Clip:
        """See `look`."""
        stream = self._stream
        frame = next(self._container.decode(stream), None)
        if frame is None:
            raise BadClip("no frames")
        if frame.pts is None or not stream.time_base:
            raise BadClip("its frames have no times")
        first, last = frame.pts, self._last(frame.pts)
        base = stream.time_base.numerator, stream.time_base.denominator
        if (last - first) * Fraction(*base) > LONGEST:
            raise BadClip(f"longer than {LONGEST // 3600} hours")
        return Clip(first, last, *base, frame.height, frame.width)

    def _last(self, first: int) -> int:
        """The time of the last frame: of the packets near the end, else of all."""
        stream, base = self._stream, self._stream.time_base
        length = self._container.duration or 0  # microseconds
        near = stream.duration or int(Fraction(length, 1_000_000) / base)
        for start in (first + near - int(_TAIL / base), first):
            # A container that cannot seek is read through.
            with contextlib.suppress(Exception):
                self._container.seek(max(first, start), stream=stream)
            if (last := max(self._times(), default=None)) is not None:
                return max(first, last)
        return first

    def _times(self) -> Iterator[int]:
        # A clip that was cut short ends where it ends.
        with contextlib.suppress(Exception):
            for packet in self._container.demux(self._stream):
                time = packet.dts if packet.pts is None else packet.pts
                if time is not None and packet.size:
                    yield int(time)

    def frame(self, clip: Clip, seconds: Fraction) -> np.ndarray:
        """The first frame at or after `seconds` after the clip's first, uint8 (H, W, 3), upright
        RGB. Exact, but for AVI with B-frames, which keeps no times: there some frames off, always
        the same ones. Raises BadClip.
        """
        aim = clip.first + ceil(seconds / clip.base)
        with _as_bad():
            for back in _STEPS_BACK:
                early = max(clip.first, aim - int(back / clip.base))
                self._container.seek(early, stream=self._stream)
                if (found := self._from(aim)) is not None:
                    return self._upright(found)
            self.close()
            self._open()  # and read from its beginning
            if (found := self._from(aim, whole=True)) is not None:
                return self._upright(found)
            raise BadClip(f"no frame at {float(seconds):.3f} s")

    def _from(self, aim: int, whole: bool = False) -> Any:
        """The first frame at or after the time; None where none is, or where frames before may have
        been passed by, as where a seek has ended behind its aim.
        """
        damaged = False
        for number, frame in enumerate(self._container.decode(self._stream)):
            if frame.pts is None:
                raise BadClip("its frames have no times")
            # What is made from a damaged frame is damaged too, and not marked.
            damaged = frame.is_corrupt or (damaged and not frame.key_frame)
            if frame.pts >= aim and not (number or whole or frame.pts == aim):
                return None
            if frame.pts >= aim and damaged:
                raise BadClip("damaged")
            if frame.pts >= aim:
                return frame
            if number >= MOST_DECODED:
                raise BadClip(f"no keyframe in {MOST_DECODED} frames")
        return None

    def _upright(self, frame: Any) -> np.ndarray:
        self._hold(frame.height, frame.width)
        pixels_HW3: np.ndarray = frame.to_ndarray(format="rgb24")
        return np.ascontiguousarray(np.rot90(pixels_HW3, round(frame.rotation / 90) % 4))


def _video(container: Any) -> Any:
    """The stream of moving images; a cover picture is none."""
    for stream in container.streams.video:
        if "attached_pic" not in str(getattr(stream, "disposition", "")):
            return stream
    raise BadClip("no video stream")


def _pyav(path: str) -> Any:
    # Late: an extra, and 0.2 s.
    try:
        import av
    except ImportError as error:
        needs = "needs av: pip install 'lookalike[video]'"
        raise DataError(f"{printable(path)}: {needs}") from error
    av.logging.set_level(None)  # damage is said in our words
    return av


@contextlib.contextmanager
def _as_bad() -> Iterator[None]:
    """Turns whatever a library raises into a BadClip."""
    try:
        yield
    except (BadClip, DataError):
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise BadClip(printable(" ".join(reason.split()))[:200]) from None
