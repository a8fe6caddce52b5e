"""Cars196: cars of 196 makes, models and years (Krause et al., 3D Object Representations, ICCV
workshops 2013).
"""

from pathlib import Path

from lookalike.data.folders.index import os_errors_as
from lookalike.data.published import Divided, Layout, Listing, file_in
from lookalike.data.published.matlab import variable
from lookalike.errors import DataError, printable

ZERO_SHOT = {"train images": 8054, "train classes": 98, "test images": 8131, "test classes": 98}
CLOSED_SET = {"train images": 8144, "train classes": 196, "test images": 8041, "test classes": 196}
TRAIN, TEST = "devkit/cars_train_annos.mat", "devkit/cars_test_annos_withlabels.mat"


class Cars196(Divided):
    """`cars_train/`, `cars_test/`, their annotations in `devkit/`; `devkit/cars_meta.mat`, if
    there, names the classes.

    `cars_test_annos_withlabels.mat` may lie beside `devkit`. Classes 1 to 98 of both folders are
    the train set, 99 to 196 the test set; under `protocol: closed_set` the folders are.
    """

    layout = Layout("Cars196", "Stanford Cars, 3D Object Representations 2013", ZERO_SHOT)
    closed_set = CLOSED_SET

    def listing(self, root: Path) -> Listing:
        listing = Listing(root, ("train", "test"))
        train = file_in(root, self.layout, TRAIN)
        test = file_in(root, self.layout, TEST, "cars_test_annos_withlabels.mat")
        for file, folder, part in ((train, "cars_train", "train"), (test, "cars_test", "test")):
            annotations = f"{printable(file)}:annotations"
            for row, record in enumerate(variable(file, "annotations", "fname", "class"), 1):
                if not (isinstance(record, dict) and {"fname", "class"} <= record.keys()):
                    raise DataError(
                        f"{printable(file)}: annotations has no fname and class: fetch the file "
                        "again"
                    )
                place, name, number = f"{annotations}({row})", record["fname"], record["class"]
                if not (
                    isinstance(name, str)
                    and isinstance(number, int | float)
                    and number in range(1, 197)
                ):
                    what = "a file name and a class from 1 to 196 belong here"
                    raise DataError(f"{place}: {what}: fetch the file again")
                zero_shot = "train" if number <= 98 else "test"
                listing.add(part if self._closed else zero_shot, folder, name, int(number), place)
        meta = root / "devkit" / "cars_meta.mat"
        with os_errors_as(root):
            named = meta.is_file()
        if named:
            names = enumerate(variable(meta, "class_names"), 1)
            listing.names |= {
                number: printable(name) for number, name in names if isinstance(name, str)
            }
        return listing
