"""In-Shop Clothes Retrieval, of DeepFashion: clothes in a shop's images (Liu et al., CVPR 2016)."""

from pathlib import Path

from lookalike.data.folders.index import os_errors_as
from lookalike.data.published import AGAIN, Layout, Listing, Published, file_in, read
from lookalike.errors import DataError, printable

LIST = "list_eval_partition.txt"
COLUMNS = "image_name item_id evaluation_status"
COUNTS = {
    "train images": 25882,
    "train classes": 3997,
    "query images": 14218,
    "query classes": 3985,
    "gallery images": 12612,
    "gallery classes": 3985,
}


class InShop(Published):
    """`Eval/list_eval_partition.txt` and `Img/img/`, or both without those folders. Test: query and
    gallery.
    """

    layout = Layout(
        "In-Shop Clothes Retrieval",
        "mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html",
        COUNTS,
    )

    def listing(self, root: Path) -> Listing:
        listing = Listing(root, ("train", "query", "gallery"))
        with os_errors_as(root):
            folder = "Img" if (root / "Img" / "img").is_dir() else ""
        for line in read(file_in(root, self.layout, f"Eval/{LIST}", LIST), header=f"#\n{COLUMNS}"):
            path, item, part = line.fields(COLUMNS)
            if part not in listing.parts:
                what = f"evaluation_status {part[:40]!r} is none of train, query, gallery"
                raise DataError(f"{line.place}: {what}: {AGAIN}")
            listing.add(part, folder, path, printable(item), line.place)
        return listing
