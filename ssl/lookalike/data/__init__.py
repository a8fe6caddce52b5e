"""Pictures from a source, read by number and decoded to uint8 canvases, in a purely computed order."""

from lookalike.data.manifest import Manifest
from lookalike.data.shards import Shards
from lookalike.data.sources import Digits, Folder, Idx, Source

SOURCES: dict[str, type[Source]] = {
    "digits": Digits,
    "idx": Idx,
    "folder": Folder,
    "shards": Shards,
    "manifest": Manifest,
}
