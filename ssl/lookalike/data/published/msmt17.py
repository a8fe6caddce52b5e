"""MSMT17: persons by fifteen cameras (Wei et al., Person Transfer GAN, CVPR 2018)."""

from pathlib import Path

from lookalike.data.folders.index import os_errors_as
from lookalike.data.published import Layout, Listing, Published, file_in, read, whole
from lookalike.errors import DataError, printable

COUNTS = {
    "train images": 30248,
    "train classes": 1041,
    "query images": 11659,
    "query classes": 3060,
    "gallery images": 82161,
    "gallery classes": 3060,
}
# The first release, and the second, whose faces are masked.
FOLDERS = (("train", "test"), ("mask_train_v2", "mask_test_v2"))


class MSMT17(Published):
    """`list_train.txt`, `list_query.txt`, `list_gallery.txt` (`path pid`), and `train/` and
    `test/`, or their `mask_train_v2/` and `mask_test_v2/`.

    The lists count the persons of each folder from 0, so that `train/0000` and `test/0000` are two.
    Test: query and gallery. What `list_val.txt` has is in neither set.
    """

    layout = Layout("MSMT17", "Person Transfer GAN, CVPR 2018; pkuvmc.com", COUNTS, fit="squash")

    def listing(self, root: Path) -> Listing:
        listing = Listing(root, ("train", "query", "gallery"))
        with os_errors_as(root):
            folders = next(
                (pair for pair in FOLDERS if all((root / each).is_dir() for each in pair)), None
            )
        if folders is None:
            wanted = " nor ".join(" and ".join(pair) for pair in FOLDERS)
            raise DataError(f"{printable(root)}: neither {wanted} in it; {self.layout.remedy}")
        for part in listing.parts:
            split = "train" if part == "train" else "test"
            for line in read(file_in(root, self.layout, f"list_{part}.txt")):
                path, word = line.fields("path pid")
                identity = f"{split}/{whole(word, 'pid', line.place, 0, 9999):04d}"
                third = [*path.rpartition("/")[2].split("_"), "", ""][2]
                camera = whole(third, "the camera, third in the image's name,", line.place, 1, 99)
                listing.add(part, folders[split == "test"], path, identity, line.place, camera)
        return listing
