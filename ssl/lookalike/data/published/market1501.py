"""Market-1501 (Zheng et al., ICCV 2015) and DukeMTMC-reID (Zheng et al., ICCV 2017): persons, by
camera.
"""

import re
from pathlib import Path

from lookalike.data.published import Layout, Listing, Published
from lookalike.data.sources import folder_at
from lookalike.errors import DataError, printable

FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
NAME = re.compile(r"(-1|\d{1,9})_c(\d{1,3})", re.ASCII)
JUNK = "-1"
"""The identity of images that are no one in particular: they are left out. 0000, the distractors,
stays.
"""


class Market1501(Published):
    """`bounding_box_train`, `query`, `bounding_box_test` with `0002_c1s1_000451_03.jpg`: identity
    0002, camera 1.

    Test: query and gallery. Identity -1 is left out, 0000 stays in the gallery as a distractor.
    """

    layout = Layout(
        "Market-1501",
        "Scalable Person Re-identification: A Benchmark, ICCV 2015",
        {
            "train images": 12936,
            "train classes": 751,
            "query images": 3368,
            "query classes": 750,
            "gallery images": 15913,
            "gallery classes": 751,
        },
        fit="squash",
    )

    def listing(self, root: Path) -> Listing:
        listing = Listing(root, tuple(FOLDERS))
        for part, folder in FOLDERS.items():
            home = folder_at(root / folder, self.layout.remedy)
            for path in self.found(home, root):
                place = printable(home / path)
                if not (known := NAME.match(path)):
                    what = "no identity and camera in its name, as in 0002_c1s1_000451_03.jpg"
                    raise DataError(f"{place}: {what}: move it away")
                identity, camera = known.groups()
                if identity == JUNK:
                    self.inventory.leave_out("of no one (-1)", f"{folder}/{path}")
                else:
                    listing.add(part, folder, path, identity, place, int(camera))
        return listing


class DukeMTMC(Market1501):
    """DukeMTMC-reID, laid out as Market-1501: `0001_c2_f0046182.jpg`. Its authors withdrew it in
    2019.
    """

    layout = Layout(
        "DukeMTMC-reID",
        "withdrawn by its authors in 2019",
        {
            "train images": 16522,
            "train classes": 702,
            "query images": 2228,
            "query classes": 702,
            "gallery images": 17661,
            "gallery classes": 1110,
        },
        fit="squash",
    )
