"""CUB-200-2011: birds of 200 species (Wah et al., Caltech-UCSD Birds-200-2011, CNS-TR-2011-001)."""

from pathlib import Path

from lookalike.data.published import AGAIN, Divided, Layout, Line, Listing, file_in, read, whole
from lookalike.errors import DataError, printable

ZERO_SHOT = {"train images": 5864, "train classes": 100, "test images": 5924, "test classes": 100}
CLOSED_SET = {"train images": 5994, "train classes": 200, "test images": 5794, "test classes": 200}


class Cub(Divided):
    """`images.txt`, `image_class_labels.txt`, `images/001.Black_footed_Albatross/*.jpg`.

    Classes 1 to 100 are the train set, 101 to 200 the test set; under `protocol: closed_set` every
    class is in both, as `train_test_split.txt` has it.
    """

    layout = Layout("CUB-200-2011", "vision.caltech.edu/datasets/cub_200_2011", ZERO_SHOT)
    closed_set = CLOSED_SET

    def listing(self, root: Path) -> Listing:
        listing = Listing(root, ("train", "test"))
        images = self._by_id(root, "images.txt", "image_id path")
        numbers = self._by_id(root, "image_class_labels.txt", "image_id class_id")
        splits = (
            self._by_id(root, "train_test_split.txt", "image_id is_training_image")
            if self._closed
            else {}
        )
        for image, (place, (_, path)) in images.items():
            at, (_, word) = _of(numbers, image, place, "image_class_labels.txt")
            number = whole(word, "the class", at, 1, 200)
            folder = path.rpartition("/")[0]
            if listing.names.setdefault(number, folder) != folder:
                where = f"in {printable(listing.names[number])}, {printable(path)[:80]} is not"
                raise DataError(f"{at}: class {number} lies {where}: {AGAIN}")
            train = number <= 100
            if self._closed:
                at, (_, word) = _of(splits, image, place, "train_test_split.txt")
                train = whole(word, "is_training_image", at, 0, 1) == 1
            listing.add("train" if train else "test", "images", path, number, place)
        return listing

    def _by_id(self, root: Path, name: str, columns: str) -> dict[str, Line]:
        found: dict[str, Line] = {}
        for line in read(file_in(root, self.layout, name)):
            image, _ = line.fields(columns)
            if image in found:
                raise DataError(f"{line.place}: image {printable(image)[:40]} again: delete one")
            found[image] = line
        return found


def _of(lines: dict[str, Line], image: str, place: str, name: str) -> Line:
    if image not in lines:
        raise DataError(
            f"{place}: image {printable(image)[:40]} is not in {name}: fetch both files again"
        )
    return lines[image]
