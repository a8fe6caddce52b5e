"""Images from a source, read by number and decoded to uint8 canvases, in a purely computed
order.
"""

from lookalike.data.hf import Hf
from lookalike.data.idx import Idx
from lookalike.data.manifest import Manifest
from lookalike.data.masks import Masks
from lookalike.data.published.cars196 import Cars196
from lookalike.data.published.cub import Cub
from lookalike.data.published.in_shop import InShop
from lookalike.data.published.lfw import LFW
from lookalike.data.published.market1501 import DukeMTMC, Market1501
from lookalike.data.published.msmt17 import MSMT17
from lookalike.data.published.sop import StanfordOnlineProducts
from lookalike.data.shards import Shards
from lookalike.data.sources import Digits, Folder, Source
from lookalike.data.video import Video

SOURCES: dict[str, type[Source]] = {
    "digits": Digits,
    "idx": Idx,
    "folder": Folder,
    "shards": Shards,
    "video": Video,
    "manifest": Manifest,
    "hf": Hf,
    "masks": Masks,
    "cub": Cub,
    "cars196": Cars196,
    "sop": StanfordOnlineProducts,
    "in_shop": InShop,
    "market1501": Market1501,
    "duke_mtmc": DukeMTMC,
    "msmt17": MSMT17,
    "lfw": LFW,
}
