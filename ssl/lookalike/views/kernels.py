"""Views by three Triton kernels, each one pass over memory: cut, colour, finish.

The one module that imports triton; `device` imports it where there is an accelerator, and lays out
the tables. What is drawn comes as a row of whole numbers and one of floats for each view, in the
columns named below. Every view is computed by itself, sums over it in an order that its size alone
fixes: no other view of a batch changes a bit of it.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import triton
import triton.language as tl

# Columns of whole numbers: which image; the box; what moves the view; …
IMAGE = tl.constexpr(0)
TOP, LEFT, TALL, WIDE = (tl.constexpr(i) for i in range(1, 5))
FLIP, DOWN, RIGHT = (tl.constexpr(i) for i in range(5, 8))
# … before which turn of the jitter the mean is taken, at which the rest begins, where the hue's is;
UNTIL, FROM, HUE = (tl.constexpr(i) for i in range(8, 11))
GREY, RADIUS, SOLARIZE, DROP = (tl.constexpr(i) for i in range(11, 15))
# … what is erased.
ERASE_TOP, ERASE_LEFT, ERASE_TALL, ERASE_WIDE = (tl.constexpr(i) for i in range(15, 19))
INTS = tl.constexpr(19)
# Columns of floats: 4 x 3 of the blends, the hue's angle, then the taps from the middle outwards.
ANGLE, TAPS = tl.constexpr(12), tl.constexpr(13)

THRESHOLD = tl.constexpr(128 / 255)
RED, GREEN, BLUE = (tl.constexpr(share) for share in (0.299, 0.587, 0.114))
GAMMA = tl.constexpr(0x9E3779B97F4A7C15)
MULTIPLIER_1, MULTIPLIER_2 = (
    tl.constexpr(0xBF58476D1CE4E5B9),
    tl.constexpr(0x94D049BB133111EB),
)


@triton.jit
def _clamp(x, top):
    return tl.minimum(tl.maximum(x, 0.0), top)


@triton.jit
def _luma(r, g, b):
    return r * RED + g * GREEN + b * BLUE


@triton.jit
def _share(distance, CUBIC: tl.constexpr):
    """`resample`'s two kernels."""
    d = tl.abs(distance)
    if CUBIC:
        near = (1.5 * d - 2.5) * d * d + 1
        far = -0.5 * (((d - 5) * d + 8) * d - 4)
        return tl.where(d < 1, near, tl.where(d < 2, far, 0.0))
    return tl.maximum(1 - d, 0.0)


@triton.jit
def _mirrored(place, side):
    """A place beyond the edge, mirrored; any number of times."""
    period = tl.maximum(2 * (side - 1), 1)
    there = tl.abs(place) % period
    return tl.minimum(there, period - there) * tl.minimum(side - 1, 1)


@triton.jit
def _hue(r, g, b, angle):
    """`colour.hue`."""
    high, low = tl.maximum(tl.maximum(r, g), b), tl.minimum(tl.minimum(r, g), b)
    chroma = high - low
    h = tl.where(g == high, (b - r) + 2 * chroma, (r - g) + 4 * chroma)
    h = tl.where(r == high, g - b, h)
    h = h / tl.maximum(chroma * 6, 1e-12) + (angle + 1)
    h = (h - tl.floor(h)) * 6
    r = low + chroma * _clamp(tl.abs(h - 3) - 1, 1.0)
    g = low + chroma * _clamp(2 - tl.abs(h - 2), 1.0)
    b = low + chroma * _clamp(2 - tl.abs(h - 4), 1.0)
    return r, g, b


@triton.jit
def _turns_of_three(r, g, b, begin, end, hue, floats, mean):
    """The turns [begin, end) of a view's jitter; `floats`: its row."""
    for t in range(begin, end):
        if t == hue:
            r, g, b = _hue(r, g, b, tl.load(floats + ANGLE))
        else:
            a = tl.load(floats + 3 * t)
            added = tl.load(floats + 3 * t + 1) * _luma(r, g, b)
            added += tl.load(floats + 3 * t + 2) * mean
            r, g, b = (
                _clamp(r * a + added, 1.0),
                _clamp(g * a + added, 1.0),
                _clamp(b * a + added, 1.0),
            )
    return r, g, b


@triton.jit
def _turns(x, begin, end, floats, mean):
    """The same of one channel where there are not three: nothing has a colour."""
    for t in range(begin, end):
        x = _clamp(x * tl.load(floats + 3 * t) + tl.load(floats + 3 * t + 2) * mean, 1.0)
    return x


@triton.jit
def _tile(width, BY: tl.constexpr, BX: tl.constexpr):
    """Rows (BY,) and columns (BX,) of this program's tile, and which tile it is."""
    tile, across = tl.program_id(1), tl.cdiv(width, BX)
    y = (tile // across) * BY + tl.arange(0, BY)
    x = (tile % across) * BX + tl.arange(0, BX)
    return y, x, tile


@triton.jit
def _first_tap(start, extent, n, at, CUBIC: tl.constexpr):
    """Where the taps of the results `at` begin and lie, how wide each is, and how many there are
    (`resample.weights`).
    """
    step = extent.to(tl.float32) / n
    widen = tl.maximum(step, 1.0)
    centre = start.to(tl.float32) + (at.to(tl.float32) + 0.5) * step
    reach = widen * (2 if CUBIC else 1)
    first = tl.floor(centre - reach - 0.5).to(tl.int32) + 1
    return first, centre, widen, (2 * reach).to(tl.int32) + 1


@triton.jit
def _weight(pixel, start, extent, centre, widen, CUBIC: tl.constexpr):
    """Each tap's share before their sum is known, nothing outside the box."""
    within = (pixel >= start) & (pixel < start + extent)
    return tl.where(within, _share((pixel.to(tl.float32) + 0.5 - centre) / widen, CUBIC), 0.0)


@triton.jit
def _three(image, at, stride_c, there, COLOURS: tl.constexpr):
    """What lies at these places in three channels; of one, three times the same."""
    r = tl.load(image + at, mask=there, other=0).to(tl.float32)
    g, b = r, r
    if COLOURS == 3:
        g = tl.load(image + stride_c + at, mask=there, other=0).to(tl.float32)
        b = tl.load(image + 2 * stride_c + at, mask=there, other=0).to(tl.float32)
    return r, g, b


@triton.jit
def _resampled(
    image, stride_c, stride_h, stride_w, ints, y, x, height, width, top,
    COLOURS: tl.constexpr, CUBIC: tl.constexpr,
):  # fmt: skip
    """`resample.crop_resize` at the rows y and columns x of the view."""
    up, tall = tl.load(ints + TOP), tl.load(ints + TALL)
    left, wide = tl.load(ints + LEFT), tl.load(ints + WIDE)
    y0, centre_y, widen_y, taps_y = _first_tap(up, tall, height, y, CUBIC)
    x0, centre_x, widen_x, taps_x = _first_tap(left, wide, width, x, CUBIC)
    total_x, total_y = tl.zeros_like(centre_x), tl.zeros_like(centre_y)
    for k in range(taps_x):
        total_x += _weight(x0 + k, left, wide, centre_x, widen_x, CUBIC)
    zero = centre_y[:, None] * centre_x[None, :] * 0
    red, green, blue = zero, zero, zero
    for i in range(taps_y):
        row = y0 + i
        of_row = _weight(row, up, tall, centre_y, widen_y, CUBIC)
        in_row = ((row >= up) & (row < up + tall))[:, None]
        r_i, g_i, b_i = zero, zero, zero
        for k in range(taps_x):
            column = x0 + k
            share = (_weight(column, left, wide, centre_x, widen_x, CUBIC) / total_x)[None, :]
            there = in_row & ((column >= left) & (column < left + wide))[None, :]
            at = row[:, None] * stride_h + column[None, :] * stride_w
            r, g, b = _three(image, at, stride_c, there, COLOURS)
            r_i += share * r
            if COLOURS == 3:
                g_i += share * g
                b_i += share * b
        red += of_row[:, None] * _clamp(r_i, top)
        if COLOURS == 3:
            green += of_row[:, None] * _clamp(g_i, top)
            blue += of_row[:, None] * _clamp(b_i, top)
        total_y += of_row
    total = total_y[:, None]
    return _clamp(red / total, top), _clamp(green / total, top), _clamp(blue / total, top)


@triton.jit
def _of_255(x):
    """Rounded as torch rounds it: solarization asks whether a byte is 128."""
    return tl.div_rn(x, tl.full(x.shape, 255.0, tl.float32))


@triton.jit
def _seen(
    image, stride_c, stride_h, stride_w, ints, y, x, height, width,
    COLOURS: tl.constexpr, CUT: tl.constexpr, CUBIC: tl.constexpr, BYTES: tl.constexpr,
    MOVED: tl.constexpr, REFLECT: tl.constexpr, AGAIN: tl.constexpr,
):  # fmt: skip
    """(BY, BX) floats in [0, 1] of three channels of a view, or of one three times: cut or ready,
    flipped, moved.
    """
    there_y, there_x = (y < height), (x < width)
    if MOVED:
        y, x = y + tl.load(ints + DOWN), x + tl.load(ints + RIGHT)
        if not REFLECT:
            there_y, there_x = there_y & (y >= 0) & (y < height), there_x & (x >= 0) & (x < width)
        y, x = _mirrored(y, height), _mirrored(x, width)
    y, x = tl.minimum(y, height - 1), tl.minimum(x, width - 1)
    if not AGAIN:
        x = tl.where(tl.load(ints + FLIP) > 0, width - 1 - x, x)
    there = there_y[:, None] & there_x[None, :]
    if CUT:
        r, g, b = _resampled(
            image, stride_c, stride_h, stride_w, ints, y, x, height, width,
            255.0 if BYTES else 1.0, COLOURS, CUBIC,
        )  # fmt: skip
        r, g, b = tl.where(there, r, 0.0), tl.where(there, g, 0.0), tl.where(there, b, 0.0)
    else:
        at = y[:, None] * stride_h + x[None, :] * stride_w
        r, g, b = _three(image, at, stride_c, there, COLOURS)
    if BYTES:
        r, g, b = _of_255(r), _of_255(g), _of_255(b)
    return r, g, b


@triton.jit
def cut(
    images, ints, floats, out, sums, first, stride_b, stride_c, stride_h, stride_w, height, width,
    row_of_floats,
    C: tl.constexpr, CUT: tl.constexpr, CUBIC: tl.constexpr, BYTES: tl.constexpr,
    MOVED: tl.constexpr, REFLECT: tl.constexpr, AGAIN: tl.constexpr, JITTER: tl.constexpr,
    BY: tl.constexpr, BX: tl.constexpr,
):  # fmt: skip
    """First pass: crop, resize, flip, padding, the jitter before the contrast's mean, of which each
    tile writes its sum.

    images: (B, C, H, W) of these strides, or what this pass has made itself (AGAIN); the views
    `first`, `first` + 1, … of out (M, C, height, width) and sums (M, tiles).
    """
    m = first + tl.program_id(0).to(tl.int64)
    ints, floats = ints + m * INTS, floats + m * row_of_floats
    y, x, tile = _tile(width, BY, BX)
    there, at = (y < height)[:, None] & (x < width)[None, :], y[:, None] * width + x[None, :]
    plane, image = height * width, images + m * stride_b
    if not AGAIN:
        image = images + tl.load(ints + IMAGE).to(tl.int64) * stride_b
    out += m * C * plane
    until = tl.load(ints + UNTIL)
    total = tl.zeros([BY, BX], tl.float32)
    if C == 3:
        r, g, b = _seen(image, stride_c, stride_h, stride_w, ints, y, x, height, width,
                        3, CUT, CUBIC, BYTES, MOVED, REFLECT, AGAIN)  # fmt: skip
        if JITTER:
            r, g, b = _turns_of_three(r, g, b, 0, until, tl.load(ints + HUE), floats, 0.0)
            total = _luma(r, g, b)
        tl.store(out + at, r, mask=there)
        tl.store(out + plane + at, g, mask=there)
        tl.store(out + 2 * plane + at, b, mask=there)
    else:
        for c in range(C):
            v, _, _ = _seen(image + c * stride_c, 0, stride_h, stride_w, ints, y, x, height, width,
                            1, CUT, CUBIC, BYTES, MOVED, REFLECT, AGAIN)  # fmt: skip
            if JITTER:
                v = _turns(v, 0, until, floats, 0.0)
                total += v / C
            tl.store(out + c * plane + at, v, mask=there)
    if JITTER:
        total = tl.sum(tl.where(there, total, 0.0))
        tl.store(sums + m * tl.num_programs(1) + tile, total)


@triton.jit
def tint(
    images, ints, floats, out, sums, height, width, row_of_floats,
    C: tl.constexpr, TILES: tl.constexpr, BY: tl.constexpr, BX: tl.constexpr,
):  # fmt: skip
    """Second pass: the jitter from the contrast on, grey, and the blur along the rows.

    images, out: (M, C, height, width); sums: (M, tiles), of at most TILES tiles.
    """
    m = tl.program_id(0).to(tl.int64)
    ints, floats, plane = ints + m * INTS, floats + m * row_of_floats, height * width
    y, x, _ = _tile(width, BY, BX)
    there, at = (y < height)[:, None] & (x < width)[None, :], y[:, None] * width + x[None, :]
    images, out = images + m * C * plane, out + m * C * plane
    tiles, n = tl.num_programs(1), tl.arange(0, TILES)
    mean = tl.sum(tl.load(sums + m * tiles + n, mask=n < tiles, other=0.0)) / plane
    begin, hue, grey = tl.load(ints + FROM), tl.load(ints + HUE), tl.load(ints + GREY)
    radius = tl.load(ints + RADIUS)
    zero = tl.zeros([BY, BX], tl.float32)
    if C == 3:
        red, green, blue = zero, zero, zero
        for k in range(-radius, radius + 1):
            near = y[:, None] * width + _mirrored(x + k, width)[None, :]
            r = tl.load(images + near, mask=there, other=0.0)
            g = tl.load(images + plane + near, mask=there, other=0.0)
            b = tl.load(images + 2 * plane + near, mask=there, other=0.0)
            r, g, b = _turns_of_three(r, g, b, begin, 4, hue, floats, mean)
            bright, weight = _luma(r, g, b), tl.load(floats + TAPS + tl.abs(k))
            red += weight * tl.where(grey > 0, bright, r)
            green += weight * tl.where(grey > 0, bright, g)
            blue += weight * tl.where(grey > 0, bright, b)
        tl.store(out + at, red, mask=there)
        tl.store(out + plane + at, green, mask=there)
        tl.store(out + 2 * plane + at, blue, mask=there)
    else:
        for c in range(C):
            value = zero
            for k in range(-radius, radius + 1):
                near = y[:, None] * width + _mirrored(x + k, width)[None, :]
                v = tl.load(images + c * plane + near, mask=there, other=0.0)
                v = _turns(v, begin, 4, floats, mean)
                value += tl.load(floats + TAPS + tl.abs(k)) * v
            tl.store(out + c * plane + at, value, mask=there)


@triton.jit
def _random(word, place):
    """`rng.uniform(…, place)`; `word`: what the coordinates before it have come to."""
    z = (place.to(tl.uint64) ^ word.to(tl.uint64, bitcast=True)) + GAMMA
    z = (z ^ (z >> 30)) * MULTIPLIER_1
    z = (z ^ (z >> 27)) * MULTIPLIER_2
    z = z ^ (z >> 31)
    return (z >> 40).to(tl.int32).to(tl.float32) * (2.0**-24)


@triton.jit
def finish(
    images, ints, floats, words, form, out, height, width, row_of_floats,
    C: tl.constexpr, DROPS: tl.constexpr, ERASES: tl.constexpr, NOISE: tl.constexpr,
    BY: tl.constexpr, BX: tl.constexpr,
):  # fmt: skip
    """Third pass: the blur along the columns, solarization, a channel's loss, erasing,
    normalisation, layout and dtype.

    images: (M, C, height, width); out: (M, height, width, C); words: (M,) of the noise; form:
    (3, C), mean, standard deviation, and what an erased box is filled with.
    """
    m = tl.program_id(0).to(tl.int64)
    ints, floats, plane = ints + m * INTS, floats + m * row_of_floats, height * width
    y, x, _ = _tile(width, BY, BX)
    there, at = (y < height)[:, None] & (x < width)[None, :], y[:, None] * width + x[None, :]
    images, out = images + m * C * plane, out + m * C * plane
    radius, solarize, drop = tl.load(ints + RADIUS), tl.load(ints + SOLARIZE), tl.load(ints + DROP)
    up, left = tl.load(ints + ERASE_TOP), tl.load(ints + ERASE_LEFT)
    tall, wide = tl.load(ints + ERASE_TALL), tl.load(ints + ERASE_WIDE)
    gone = ((y >= up) & (y < up + tall))[:, None] & ((x >= left) & (x < left + wide))[None, :]
    for c in range(C):
        v = tl.zeros([BY, BX], tl.float32)
        for k in range(-radius, radius + 1):
            near = _mirrored(y + k, height)[:, None] * width + x[None, :]
            weight = tl.load(floats + TAPS + tl.abs(k))
            v += weight * tl.load(images + c * plane + near, mask=there, other=0.0)
        v = tl.where((solarize > 0) & (v >= THRESHOLD), 1 - v, v)
        if DROPS:
            v = tl.where(c == drop, 0.0, v)
        if ERASES:
            filling = tl.load(form + 2 * C + c)
            if NOISE:
                v = tl.where(gone, _random(tl.load(words + m), c * plane + at), v)
            else:
                v = tl.where(gone, filling, v)
        v = (v - tl.load(form + c)) / tl.load(form + C + c)
        tl.store(out + at * C + c, v.to(out.dtype.element_ty), mask=there)
