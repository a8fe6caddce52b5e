"""How a source reads its image files: the keys that all such sources share."""

from contextlib import suppress
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field
from typing_extensions import TypedDict

from lookalike.data import glimpse
from lookalike.data.images.contract import Fit, Images, Reading
from lookalike.data.images.encoded import EncodedImages
from lookalike.data.inventory import Inventory
from lookalike.errors import DataError
from lookalike.geometry import MOST_CHANNELS, Alpha, PixelFormat, sides
from lookalike.recipe import FREE, SINCE_0_2, Size

Side = Annotated[int, Field(ge=1, le=4096)]
Canvas = Side | tuple[Side, Side]
Channels = Annotated[int, Field(ge=1, le=MOST_CHANNELS)]
Percent = Annotated[float, Field(ge=0, le=100)]
Split = Literal["train", "test", "all"]


def _ordered(ends: tuple[float, float]) -> tuple[float, float]:
    if not ends[0] < ends[1]:
        raise ValueError("the smaller value comes first")
    return ends


Bounds = Annotated[tuple[float, float], AfterValidator(_ordered)]


class Percentiles(TypedDict):
    """A range that is measured: these percentiles of a set's values."""

    percentiles: Annotated[tuple[Percent, Percent], AfterValidator(_ordered)]


Percentiles.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[attr-defined]


def _shown(value: Any) -> str:
    """A key's value for people."""
    shown = list(value) if isinstance(value, tuple) else value
    return "all that the type holds" if value is None else str(shown)


class FileSource:
    """A source of image files. `inventory` says what it left out; `holds_out`: see Source;
    `names_test`: whether its test set costs little to find where no stage asks for it.

    Images are read as canvases of a side, or height and width, `canvas`, by default 8/7 of the
    views' (256 for 224): their largest central box of that shape, or with `fit: squash` all of
    them. `max_pixels`: how many pixels an image may have, whatever memory and time it takes; by
    default as many as decode below 200 MB: 100 million of a JPEG, 25 million of other formats.

    `depth`: in which type pixels are kept from the file to the view, by default as deep as the
    files, of which up to 256 are looked at; `range`: the values, as they stand in the files, that
    become 0 and 1 in a view, one pair for all images and channels, or percentiles of the values of
    up to 1,024 training images, by default all that the type holds; `measured`: what percentiles
    came to, which the run folder's recipe.yaml holds, so that nothing measures them again; `alpha`:
    what transparency lies on, or that it stays a channel.
    """

    holds_out = names_test = False

    def __init__(
        self,
        canvas: Canvas | None = None,
        channels: Channels = 3,
        fit: Fit = "crop",
        max_pixels: Annotated[int, Field(ge=1)] | None = None,
        depth: Annotated[Literal["auto", "uint8", "uint16", "float32"], SINCE_0_2] = "auto",
        range: Annotated[Bounds | Percentiles, SINCE_0_2] | None = None,
        alpha: Annotated[Alpha, SINCE_0_2] = "white",
        measured: Annotated[Bounds, SINCE_0_2, FREE] | None = None,
    ) -> None:
        self.channels: int = channels
        self.inventory = Inventory()
        self._canvas, self._fit, self._max_pixels = canvas, fit, max_pixels
        self._depth, self._range, self._alpha = depth, range, alpha
        self.measured = measured if isinstance(range, dict) else None
        self._form: PixelFormat | None = None

    def split(self, name: Split, size: Size | None = None) -> Images:
        """The train or the test set, for views of `size`. Raises DataError when there is none."""
        raise NotImplementedError

    def reading(self, size: Size | None) -> Reading:
        """For views of `size`, by default 224."""
        canvas = self._canvas or canvas_for(size or 224)
        return Reading(canvas, self._form or self._said, self._fit, self._max_pixels)

    @property
    def _said(self) -> PixelFormat:
        """What the recipe says, and what was measured for it."""
        depth = "uint8" if self._depth == "auto" else self._depth
        ends = self.measured if isinstance(self._range, dict) else self._range
        return PixelFormat(self.channels, depth, ends, self._alpha)

    def settled(self, images: EncodedImages, name: Split = "train") -> EncodedImages:
        """The images, with the depth and range that the train images turn out to have where the
        recipe leaves that open. The last thing that `split` does.

        Raises DataError where a few images show values that only a range explains.
        """
        if self._form is None and name == "test":
            with suppress(DataError):  # there is no train set
                self.split("train")
        if self._form is None:
            self._form = self._form_of(images)
        images.form = self._form
        return images

    def _form_of(self, images: EncodedImages) -> PixelFormat:
        """The form of these images."""
        form = self._said
        if self._depth == "auto":
            form = form._replace(depth=glimpse.depth_of(images))
        images.form = form
        if isinstance(self._range, dict) and self.measured is None:
            self.measured = glimpse.measured(images, self._range["percentiles"])
            form = images.form = form._replace(range=self.measured)
        if form.depth == "float32" and form.range is None:
            glimpse.refuse_unscaled(images)
        return form

    def read_as(self, form: PixelFormat) -> None:
        """Reads from now on as a model does, where the recipe leaves it open. Raises DataError
        where it does not.
        """
        ends = None if isinstance(self._range, dict) else self._range
        keys: list[tuple[str, Any, Any]] = [
            ("depth", self._depth, "auto"),
            ("range", ends, None),
            ("alpha", self._alpha, "white"),
        ]
        for key, said, unsaid in keys:
            if said not in (unsaid, getattr(form, key)):
                both = f"{_shown(said)}, but the model takes {_shown(getattr(form, key))}"
                raise DataError(f"data.{key}: {both}: delete the key, or train anew")
        self._form = form._replace(channels=self.channels)


def fit_to(source: object, form: PixelFormat) -> None:
    """Tells a source of files to read as a model does; another has pixels of one form only."""
    if isinstance(source, FileSource):
        source.read_as(form)


def refuse_other(form: PixelFormat, wanted: PixelFormat) -> None:
    """Raises DataError for images of a form in which values mean something else to a model."""
    if form[1:3] != wanted[1:3]:
        raise DataError(
            f"data: {form.words}, but for the model {wanted.words}: give it images as it was "
            "trained on"
        )


def canvas_for(size: Size) -> tuple[int, int]:
    """8/7 of the views' size: what 256 is to 224, the papers' test-time resize and crop."""
    height, width = sides(size)
    return round(height * 8 / 7), round(width * 8 / 7)
