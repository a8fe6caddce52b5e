"""How a source reads its image files: the keys that all such sources share."""

from typing import Annotated, Literal

from pydantic import Field

from lookalike.data.images.contract import Fit, Reading
from lookalike.data.images.encoded import EncodedImages
from lookalike.data.inventory import Inventory
from lookalike.geometry import Alpha, PixelFormat, sides
from lookalike.recipe import SINCE_0_2, Size

Side = Annotated[int, Field(ge=1, le=4096)]
Canvas = Side | tuple[Side, Side]
MOST_CHANNELS = 512
Channels = Annotated[int, Field(ge=1, le=MOST_CHANNELS)]
Bounds = tuple[float, float]


class FileSource:
    """A source of image files. `inventory` says what it left out.

    Images are read as canvases of a side, or height and width, `canvas`, by default 8/7 of the
    views' (256 for 224): their largest central box of that shape, or with `fit: squash` all of
    them. `max_pixels`: how many pixels an image may have, whatever memory and time it takes; by
    default as many as decode below 200 MB: 100 million of a JPEG, 25 million of other formats.
    """

    def __init__(
        self,
        canvas: Canvas | None = None,
        channels: Channels = 3,
        fit: Fit = "crop",
        max_pixels: Annotated[int, Field(ge=1)] | None = None,
        depth: Annotated[Literal["auto", "uint8", "uint16", "float32"], SINCE_0_2] = "auto",
        range: Annotated[Bounds, SINCE_0_2] | None = None,
        alpha: Annotated[Alpha, SINCE_0_2] = "white",
    ) -> None:
        self.channels: int = channels
        self.inventory = Inventory()
        self._canvas, self._fit, self._max_pixels = canvas, fit, max_pixels
        self._depth, self._range, self._alpha = depth, range, alpha

    def reading(self, size: Size | None) -> Reading:
        """For views of `size`, by default 224."""
        depth = "uint8" if self._depth == "auto" else self._depth
        form = PixelFormat(self.channels, depth, self._range, self._alpha)
        canvas = self._canvas or canvas_for(size or 224)
        return Reading(canvas, form, self._fit, self._max_pixels)

    def settled(self, images: EncodedImages) -> EncodedImages:
        """The images, with the depth and range that they turn out to have where the recipe leaves
        that open. The last thing that `split` does.
        """
        return images


def canvas_for(size: Size) -> tuple[int, int]:
    """8/7 of the views' size: what 256 is to 224, the papers' test-time resize and crop."""
    height, width = sides(size)
    return round(height * 8 / 7), round(width * 8 / 7)
