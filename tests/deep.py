"""Small whole files of the formats that keep more than Pillow's 8 bits and 4 channels, written by
other people's encoders or by hand.
"""

import io
import struct
import zlib

import imagecodecs
import numpy as np
import pydicom
import tifffile
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

import heics
import mutants

HEIGHT, WIDTH = 20, 28


def ramp(channels: int = 3, bits: int = 16, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """(H, W, C), or (H, W) of one: all different, up to the last bit; the corner is black, the
    opposite one white.
    """
    count = height * width * channels
    values = np.round(np.linspace(0, (1 << bits) - 1, count)).astype(np.uint16)
    found = values.astype(np.uint8 if bits <= 8 else np.uint16).reshape(height, width, channels)
    return found[..., 0] if channels == 1 else found


def png16(values: np.ndarray, key: tuple[int, ...] = ()) -> bytes:
    """Of 16 bits, by hand: the colour `key` is transparent."""
    shape = values if values.ndim == 3 else values[..., None]
    height, width, channels = shape.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in shape)
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    parts = [mutants.chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))]
    if key:
        parts.append(mutants.chunk(b"tRNS", struct.pack(f">{len(key)}H", *key)))
    parts.append(mutants.chunk(b"IDAT", zlib.compress(rows)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + mutants.chunk(b"IEND", b"")


def netpbm(form: int, values: np.ndarray, white: int, comment: str = "") -> bytes:
    """PBM, PGM or PPM; of a PBM 1 is black."""
    height, width = values.shape[:2]
    head = f"P{form}\n{comment}{width} {height}\n" + (f"{white}\n" if form not in (1, 4) else "")
    if form < 4:
        return (head + " ".join(map(str, values.astype(int).ravel().tolist())) + "\n").encode()
    if form == 4:
        return head.encode() + np.packbits(values, axis=1).tobytes()
    return head.encode() + values.astype("u1" if white < 256 else ">u2").tobytes()


def pam(values: np.ndarray, white: int, kind: str = "") -> bytes:
    """Of any number of channels."""
    height, width, channels = values.shape
    head = f"P7\n# words\nWIDTH {width}\nHEIGHT {height}\nDEPTH {channels}\nMAXVAL {white}\n"
    head += f"TUPLTYPE {kind}\n" * bool(kind) + "ENDHDR\n"
    return head.encode() + values.astype("u1" if white < 256 else ">u2").tobytes()


def npy(values: np.ndarray) -> bytes:
    """As NumPy saves it."""
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def tiff(values: np.ndarray, **how: object) -> bytes:
    """By tifffile."""
    file = io.BytesIO()
    tifffile.imwrite(file, values, **how)
    return file.getvalue()


def icon(image: Image.Image, form: str = "png", **how: object) -> bytes:
    """A Windows icon in some sizes."""
    file = io.BytesIO()
    image.save(file, "ICO", bitmap_format=form, **how)
    return file.getvalue()


def dicom(values: np.ndarray, bits: int, code: str = "", **tags: object) -> bytes:
    """Of one frame, or, of shape (N, H, W), of several; `code`: RLE, J2K, LS, JPEG, or lossless."""
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.3.4"
    colour = values.ndim == 3 and values.shape[-1] == 3
    shape = values.shape if colour or values.ndim == 2 else values.shape[1:]
    dataset.Rows, dataset.Columns = shape[:2]
    dataset.SamplesPerPixel = 3 if colour else 1
    dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        dataset.PlanarConfiguration = 0
    if values.ndim == 3 and not colour:
        dataset.NumberOfFrames = len(values)
    dataset.BitsAllocated = 8 * values.dtype.itemsize
    dataset.BitsStored, dataset.HighBit = bits, bits - 1
    dataset.PixelRepresentation = int(values.dtype.kind == "i")
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.PixelData = values.tobytes() + bytes(values.nbytes % 2)
    dataset["PixelData"].VR = "OW" if values.dtype.itemsize == 2 else "OB"
    if code:
        _compress(dataset, values, bits, code)
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def _compress(dataset: pydicom.Dataset, values: np.ndarray, bits: int, code: str) -> None:
    if code == "RLE":
        dataset.compress(RLELossless, generate_instance_uid=False)
        return
    if code == "J2K":
        made = imagecodecs.jpeg2k_encode(
            values, level=0, codecformat="j2k", reversible=True, bitspersample=bits
        )
    elif code == "LS":
        made = imagecodecs.jpegls_encode(values)
    elif code == "JPEG":
        made = imagecodecs.jpeg8_encode(values, level=100)
    else:
        made = imagecodecs.ljpeg_encode(values, bitspersample=bits)
    dataset.PixelData = pydicom.encaps.encapsulate([made])
    dataset["PixelData"].is_undefined_length = True
    dataset["PixelData"].VR = "OB"
    syntaxes = {"J2K": JPEG2000Lossless, "LS": JPEGLSLossless, "JPEG": JPEGBaseline8Bit}
    dataset.file_meta.TransferSyntaxUID = syntaxes.get(code, JPEGLosslessSV1)


def jp2(values: np.ndarray, bits: int, form: str = "jp2") -> bytes:
    """Without loss."""
    return imagecodecs.jpeg2k_encode(
        values, level=0, codecformat=form, reversible=True, bitspersample=bits
    )


def avif(values: np.ndarray, bits: int) -> bytes:
    """At the best quality: without loss where the encoder can."""
    return imagecodecs.avif_encode(values, level=100, bitspersample=bits, speed=8, numthreads=1)


def jxl(values: np.ndarray, **how: object) -> bytes:
    """Without loss."""
    return imagecodecs.jpegxl_encode(values, lossless=True, effort=1, numthreads=1, **how)


def images() -> dict[str, bytes]:
    """Whole files of every form, small."""
    rgb, grey, small = ramp(3, 8), ramp(1, 8), ramp(3, 8, 16, 16)
    deep, bands = ramp(3, 16), ramp(5, 16)
    share = ramp(1, 16) / np.float32(65535)
    return {
        "16 bit rgb.png": png16(deep),
        "16 bit keyed.png": png16(deep, (0, 39, 78)),
        "p1.pbm": netpbm(1, grey > 90, 1, "# words\n"),
        "p2.pgm": netpbm(2, ramp(1, 12), 4095),
        "p3.ppm": netpbm(3, rgb, 255),
        "p4.pbm": netpbm(4, grey > 90, 1),
        "p5.pgm": netpbm(5, ramp(1, 16), 65535),
        "p6.ppm": netpbm(6, rgb, 255),
        "p7.pam": pam(ramp(4, 8), 255, "RGB_ALPHA"),
        "rgb.jp2": jp2(rgb, 8),
        "rgb.j2k": jp2(rgb, 8, "j2k"),
        "12 bit.jp2": jp2(ramp(1, 12), 12),
        "bands.jp2": jp2(bands, 16),
        "rgb.avif": avif(rgb, 8),
        "12 bit.avif": avif(ramp(3, 12), 12),
        "alpha.avif": avif(ramp(4, 10), 10),
        "rgb.jxl": jxl(rgb),
        "16 bit.jxl": jxl(deep),
        "float.jxl": jxl(share),
        "8 bit.heic": heics.heic(8),
        "12 bit.heic": heics.heic(12, turned=1),
        "png.ico": icon(Image.fromarray(small), "png", sizes=[(16, 16), (8, 8)]),
        "bmp.ico": icon(Image.fromarray(small), "bmp", sizes=[(16, 16)]),
        "u2.npy": npy(bands),
        "f4.npy": npy(share),
        "bands.tif": tiff(bands, photometric="minisblack", planarconfig="contig"),
        "planar.tif": tiff(
            np.moveaxis(bands, -1, 0).copy(), photometric="minisblack", planarconfig="separate"
        ),
        "big tiled.tif": tiff(
            bands,
            bigtiff=True,
            photometric="minisblack",
            planarconfig="contig",
            tile=(16, 16),
            compression="zlib",
        ),
        "predicted.tif": tiff(deep, photometric="rgb", compression="lzw", predictor=True),
        "double.tif": tiff(share.astype(np.float64), compression="zlib"),
        "packed.tif": tiff(ramp(1, 12), compression="zlib", photometric="miniswhite"),
        "raw.dcm": dicom(ramp(1, 12), 12, RescaleSlope="1", RescaleIntercept="-1024"),
        "rle.dcm": dicom(ramp(1, 12), 12, "RLE", PhotometricInterpretation="MONOCHROME1"),
        "j2k.dcm": dicom(ramp(1, 12), 12, "J2K"),
        "rgb.dcm": dicom(rgb, 8),
        "lossless.dcm": dicom(ramp(1, 12), 12, "lossless"),
        "ls.dcm": dicom(ramp(1, 12), 12, "LS"),
        "jpeg.dcm": dicom(rgb, 8, "JPEG", PhotometricInterpretation="YBR_FULL"),
    }
