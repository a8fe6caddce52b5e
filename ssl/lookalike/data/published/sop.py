"""Stanford Online Products: things for sale (Song et al., Lifted Structured Feature Embedding, CVPR
2016).
"""

from pathlib import Path

from lookalike.data.published import Layout, Listing, Published, file_in, read, whole

COLUMNS = "image_id class_id super_class_id path"
COUNTS = {
    "train images": 59551,
    "train classes": 11318,
    "test images": 60502,
    "test classes": 11316,
}


class StanfordOnlineProducts(Published):
    """`Ebay_train.txt` and `Ebay_test.txt`; `bicycle_final/*.JPG` and eleven more folders."""

    layout = Layout("Stanford Online Products", "cvgl.stanford.edu/projects/lifted_struct", COUNTS)

    def listing(self, root: Path) -> Listing:
        listing = Listing(root, ("train", "test"))
        for part in ("train", "test"):
            for line in read(file_in(root, self.layout, f"Ebay_{part}.txt"), header=COLUMNS):
                _, word, _, path = line.fields(COLUMNS)
                listing.add(
                    part, "", path, whole(word, "class_id", line.place, 1, 10**9), line.place
                )
        return listing
