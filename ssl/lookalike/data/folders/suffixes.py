"""What a file's name says of it: an image, surely none, or nothing at all."""

SUFFIXES = tuple(
    b".jpg .jpeg .jpe .jfif .png .webp .bmp .dib .tif .tiff .gif .ppm .pgm .pbm .pnm .pam .jp2 .j2k"
    b" .jpx .avif .ico .heic .heif .jxl .dcm .dicom".split()
)
"""Of image files, in lower case."""

LISTED = (*SUFFIXES, b".npy")
"""Of files that are images of a folder by their name alone. In a shard an array beside an image is
more often what was computed of it.
"""

_NO_IMAGES = frozenset(
    b".txt .csv .tsv .json .jsonl .ndjson .xml .yaml .yml .toml .ini .cfg .html .htm .css .js .md"
    b" .rst .log .tex .pdf .doc .docx .xls .xlsx .ppt .pptx .rtf .odt .svg .eps .ai .mp4 .avi .mov"
    b" .mkv .webm .mpg .mpeg .m4v .wmv .flv .mp3 .wav .flac .ogg .m4a .zip .tar .gz .tgz .bz2 .xz"
    b" .7z .rar .zst .iso .py .pyc .ipynb .sh .c .cpp .h .java .m .mat .pkl .npz .pt .pth"
    b" .ckpt .safetensors .onnx .h5 .hdf5 .parquet .arrow .feather .db .sqlite .mdb .lmdb .idx"
    b" .lock .md5 .sha1 .sha256 .url .lnk .exe .dll .so .part .crdownload .aria2 .tmp .bak".split()
)
_HIDDEN = (
    *b"thumbs.db ehthumbs.db desktop.ini __macosx @eadir $recycle.bin lost+found".split(),
    b"system volume information",
)
_LONGEST = 10

HIDDEN = "hidden"


def is_hidden(name: bytes) -> bool:
    """Whether a file or folder of this name is not for people: a dot before it, or made by a
    system for itself.
    """
    return name.startswith(b".") or name.lower() in _HIDDEN


def is_listed(name: bytes) -> bool:
    """Whether the name alone says that the file is an image."""
    return name.lower().endswith(LISTED)


def is_other(name: bytes) -> bool:
    """Whether the name alone says that the file is none."""
    return _suffix(name) in _NO_IMAGES


def kind(name: bytes) -> str:
    """How files like it are counted: `.txt`, `no suffix`, or `other suffix` for what is none."""
    suffix = _suffix(name)
    if not suffix:
        return "no suffix"
    word = suffix[1:]
    plain = len(word) <= _LONGEST and word.isalnum() and not word.isdigit()
    return suffix.decode("ascii") if plain and suffix.isascii() else "other suffix"


def _suffix(name: bytes) -> bytes:
    stem, dot, word = name.rpartition(b"/")[2].rpartition(b".")
    return (dot + word).lower() if stem and word else b""
