/* Views of a CPU, an image at a time while it lies in the cache: cut, resize and flip, jitter, grey,
 * blur, solarization, loss of a channel, erasing, normalisation, channels-last.
 *
 * fused.py is the same in torch and the oracle of this. Resampling is torch's antialiased one of
 * bytes (Pillow's: weights of 16 bits, width first, bytes between the two passes), bit for bit. Where
 * the order of a sum could depend on the processor, lanes are explicit, and no product is contracted
 * with a sum: the same bits on every processor, thread and batch.
 *
 * No headers of Python or torch; compiled by compiling.py, called by native.py.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__SSE2__) && !defined(LOOKALIKE_PORTABLE)
#include <emmintrin.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif

#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(LOOKALIKE_NO_CLONES)
#define CLONES __attribute__((target_clones("avx2", "default")))
#else
#define CLONES
#endif
#define INLINE static inline __attribute__((always_inline))
#define API __attribute__((visibility("default")))

typedef uint8_t bytes16 __attribute__((vector_size(16)));
typedef float floats8 __attribute__((vector_size(32)));

enum { SIDE = 16, BLOCK = 1024, TURNS = 4 };
static const float LUMA_RED = 0.299f, LUMA_GREEN = 0.587f, LUMA_BLUE = 0.114f;
static const float THRESHOLD = 128.0f / 255.0f;

/* What native.py hands over; views are rows of (view, image), view · batch + image. */
typedef struct {
    int64_t views, batch, channels; /* of V views of B images of C channels */
    int64_t height, width;          /* of what comes */
    int64_t rows, columns;          /* of what is made */
    int64_t cut;                    /* whether boxes are cut of it, or it has the views' sides */
    int64_t cubic;                  /* bicubic, else bilinear */
    int64_t of_floats;              /* floats in [0, 1] come, else bytes */
    int64_t bfloat;                 /* bfloat16 goes, else float32 */
    int64_t radius;                 /* of the widest kernel of the blur */
    int64_t noise;                  /* what is erased becomes random numbers, else the filling */
    const void *const *images;      /* V times (B, C, height, width) */
    void *out;                      /* (V · B, rows, columns, C) */
    const int64_t *box;             /* (V · B, 4): top, left, height, width */
    const uint8_t *flip;            /* (V · B), and so on */
    const float *factors;           /* (…, 4), of them the hue's turn */
    const float *blends;            /* (…, 4, 3) */
    const int64_t *hue_turn;        /* TURNS without jitter */
    const uint8_t *grey, *blur, *solarize;
    const float *taps;              /* (…, radius + 1), from the middle outwards */
    const uint8_t *drop;            /* or NULL */
    const int64_t *channel;
    const uint8_t *erase;           /* or NULL */
    const int64_t *erase_box, *erase_word;
    const float *mean, *std, *filling; /* (C) each */
} Job;

/* One axis of a resampling: what each place takes from where. */
typedef struct {
    int64_t stride; /* of the weights, which is even */
    int precision;
    int64_t *from, *count;
    int16_t *weights;
    double *exact;
} Axis;

/* The memory of one call. */
typedef struct {
    Axis across, down;
    uint8_t *tall, *wide, *bytes; /* blocks of SIDE rows, upright; what is resized in width */
    float *planes, *ring, *line, *out;
    float **row;
} Room;

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE int64_t up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }
INLINE float unit(float x) { return x < 0.0f ? 0.0f : (x > 1.0f ? 1.0f : x); }

/* ---- resampling ------------------------------------------------------------------------------ */

INLINE double kernel(double x, int64_t cubic) {
    x = fabs(x);
    if (!cubic) return x < 1.0 ? 1.0 - x : 0.0;
    if (x < 1.0) return (1.5 * x - 2.5) * x * x + 1.0;
    if (x < 2.0) return ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0;
    return 0.0;
}

INLINE double support(int64_t from, int64_t to, int64_t cubic) {
    double scale = (double)from / (double)to, half = cubic ? 2.0 : 1.0;
    return scale >= 1.0 ? half * scale : half;
}

INLINE int64_t taps_of(int64_t from, int64_t to, int64_t cubic) {
    return (int64_t)ceil(support(from, to, cubic)) * 2 + 1;
}

/* Weights of `from` pixels in `to`, whole numbers of as many bits as 16 allow. */
INLINE void plan(Axis *axis, int64_t from, int64_t to, int64_t cubic) {
    double scale = (double)from / (double)to, reach = support(from, to, cubic);
    double shrink = scale >= 1.0 ? 1.0 / scale : 1.0, highest = 0.0;
    int64_t taps = taps_of(from, to, cubic), stride = axis->stride = up(taps, 2);
    for (int64_t i = 0; i < to; i++) {
        double centre = scale * ((double)i + 0.5), total = 0.0, *w = axis->exact + i * taps;
        int64_t first = most((int64_t)(centre - reach + 0.5), 0);
        int64_t count = least((int64_t)(centre + reach + 0.5), from) - first;
        count = most(0, least(count, taps));
        for (int64_t k = 0; k < count; k++) {
            w[k] = kernel(((double)(k + first) - centre + 0.5) * shrink, cubic);
            total += w[k];
        }
        for (int64_t k = 0; k < count; k++) {
            if (total != 0.0) w[k] /= total;
            if (highest < w[k]) highest = w[k];
        }
        axis->from[i] = first, axis->count[i] = count;
    }
    int bits = 0;
    while (bits < 22 && (int)(0.5 + highest * (double)(1 << (bits + 1))) < (1 << 15)) bits++;
    axis->precision = bits;
    for (int64_t i = 0; i < to; i++)
        for (int64_t k = 0; k < stride; k++) {
            double w = k < axis->count[i] ? axis->exact[i * taps + k] * (double)(1 << bits) : 0.0;
            axis->weights[i * stride + k] = (int16_t)(int)(w < 0.0 ? w - 0.5 : w + 0.5);
        }
}

#if defined(__clang__) || __GNUC__ >= 12
#define PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PICK(a, b, ...) __builtin_shuffle(a, b, (bytes16){__VA_ARGS__})
#endif

/* 16 rows of 16 bytes become columns: four times each of the first half beside its other. */
INLINE void transpose(bytes16 x[SIDE]) {
    bytes16 y[SIDE];
    for (int turn = 0; turn < 4; turn++) {
        for (int i = 0; i < SIDE / 2; i++) {
            bytes16 a = x[i], b = x[i + SIDE / 2];
            y[2 * i] = PICK(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            y[2 * i + 1] = PICK(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
        }
        for (int i = 0; i < SIDE; i++) x[i] = y[i];
    }
}

/* SIDE bytes: weighted sums of `count` times SIDE bytes that lie `stride` apart, rounded, what is
 * beyond bytes cut. Weights come in pairs, of which the last may be 0. */
#if defined(__SSE2__) && !defined(LOOKALIKE_PORTABLE)
INLINE void weigh(
    const uint8_t *from, int64_t stride, const int16_t *w, int64_t count, int precision,
    uint8_t *to) {
    const __m128i zero = _mm_setzero_si128(), shift = _mm_cvtsi32_si128(precision);
    __m128i a = _mm_set1_epi32(1 << precision >> 1), b = a, c = a, d = a;
    for (int64_t k = 0; k < count; k += 2, from += 2 * stride) {
        const uint8_t *next = k + 1 < count ? from + stride : from;
        int32_t both;
        memcpy(&both, w + k, sizeof both);
        __m128i pair = _mm_set1_epi32(both);
        __m128i x = _mm_loadu_si128((const __m128i *)from);
        __m128i y = _mm_loadu_si128((const __m128i *)next);
        __m128i low = _mm_unpacklo_epi8(x, y), high = _mm_unpackhi_epi8(x, y);
        a = _mm_add_epi32(a, _mm_madd_epi16(_mm_unpacklo_epi8(low, zero), pair));
        b = _mm_add_epi32(b, _mm_madd_epi16(_mm_unpackhi_epi8(low, zero), pair));
        c = _mm_add_epi32(c, _mm_madd_epi16(_mm_unpacklo_epi8(high, zero), pair));
        d = _mm_add_epi32(d, _mm_madd_epi16(_mm_unpackhi_epi8(high, zero), pair));
    }
    a = _mm_packs_epi32(_mm_sra_epi32(a, shift), _mm_sra_epi32(b, shift));
    c = _mm_packs_epi32(_mm_sra_epi32(c, shift), _mm_sra_epi32(d, shift));
    _mm_storeu_si128((__m128i *)to, _mm_packus_epi16(a, c));
}
#else
INLINE void weigh(
    const uint8_t *from, int64_t stride, const int16_t *w, int64_t count, int precision,
    uint8_t *to) {
    int32_t total[SIDE];
    for (int i = 0; i < SIDE; i++) total[i] = 1 << precision >> 1;
    for (int64_t k = 0; k < count; k++, from += stride)
        for (int i = 0; i < SIDE; i++) total[i] += (int32_t)from[i] * (int32_t)w[k];
    for (int i = 0; i < SIDE; i++) {
        int32_t x = total[i] >> precision;
        to[i] = (uint8_t)(x < 0 ? 0 : x > 255 ? 255 : x);
    }
}
#endif

/* `count` (at most SIDE) rows of the box, turned upright: (width, SIDE); no byte outside it is read. */
INLINE void stand(uint8_t *tall, const uint8_t *box, int64_t stride, int64_t width, int64_t count) {
    for (int64_t x = 0; x < width; x += SIDE) {
        bytes16 block[SIDE] = {{0}};
        size_t bytes = (size_t)least(SIDE, width - x);
        for (int64_t y = 0; y < count; y++) {
            if (bytes == SIDE)
                memcpy(&block[y], box + y * stride + x, SIDE);
            else
                memcpy(&block[y], box + y * stride + x, bytes);
        }
        transpose(block);
        memcpy(tall + x * SIDE, block, sizeof block);
    }
}

/* The box of one channel, resized in width: (height rounded up to SIDE, columns rounded up). */
INLINE void across(
    const Job *job, Room *room, const uint8_t *box, int64_t height, int64_t width, int flip,
    uint8_t *to) {
    const Axis *axis = &room->across;
    int64_t columns = job->columns, padded = up(columns, SIDE);
    for (int64_t y = 0; y < height; y += SIDE) {
        stand(room->tall, box + y * job->width, job->width, width, least(SIDE, height - y));
        for (int64_t x = 0; x < columns; x++) {
            weigh(
                room->tall + axis->from[x] * SIDE, SIDE, axis->weights + x * axis->stride,
                axis->count[x], axis->precision,
                room->wide + (flip ? columns - 1 - x : x) * SIDE);
        }
        for (int64_t x = 0; x < padded; x += SIDE) {
            bytes16 block[SIDE];
            memcpy(block, room->wide + x * SIDE, sizeof block);
            transpose(block);
            for (int64_t i = 0; i < SIDE; i++) memcpy(to + (y + i) * padded + x, &block[i], SIDE);
        }
    }
}

/* Bytes as shares of 255, rounded as the division rounds: 1 / 255 in two parts, of which the first
 * has so few bits that its product with a byte is exact. */
INLINE void shares(const uint8_t *restrict bytes, int64_t n, float *restrict to) {
    const float high = 0x1.01p-8f, low = (float)(1.0 / 255.0 - 0x1.01p-8);
    for (int64_t i = 0; i < n; i++) {
        float x = (float)(int32_t)bytes[i];
        to[i] = x * high + x * low;
    }
}

/* One row of one channel, resized in height. */
INLINE void down(const Job *job, const Room *room, const uint8_t *bytes, int64_t row, float *to) {
    const Axis *axis = &room->down;
    int64_t columns = job->columns, padded = up(columns, SIDE);
    const uint8_t *from = bytes + axis->from[row] * padded;
    for (int64_t x = 0; x < columns; x += SIDE)
        weigh(
            from + x, padded, axis->weights + row * axis->stride, axis->count[row],
            axis->precision, room->wide + x);
    shares(room->wide, columns, to);
}

/* A row that was cut before. */
INLINE void taken(const Job *job, const void *plane, int64_t row, int flip, float *to) {
    int64_t n = job->columns, first = row * n;
    const float *floats = (const float *)plane + first;
    const uint8_t *bytes = (const uint8_t *)plane + first;
    for (int64_t x = 0; x < n; x++) {
        int64_t from = flip ? n - 1 - x : x;
        to[x] = job->of_floats ? floats[from] : (float)bytes[from] / 255.0f;
    }
}

/* ---- colours --------------------------------------------------------------------------------- */

INLINE void blend(float *restrict x, int64_t n, float a, float added) {
    for (int64_t i = 0; i < n; i++) x[i] = unit(x[i] * a + added);
}

INLINE float luma(float red, float green, float blue) {
    return red * LUMA_RED + green * LUMA_GREEN + blue * LUMA_BLUE;
}

INLINE void blend_luma(
    float *restrict red, float *restrict green, float *restrict blue, int64_t n, float a, float b,
    float added) {
    for (int64_t i = 0; i < n; i++) {
        float l = luma(red[i], green[i], blue[i]) * b + added;
        red[i] = unit(red[i] * a + l);
        green[i] = unit(green[i] * a + l);
        blue[i] = unit(blue[i] * a + l);
    }
}

INLINE void to_luma(
    float *restrict red, const float *restrict green, const float *restrict blue, int64_t n) {
    for (int64_t i = 0; i < n; i++) red[i] = luma(red[i], green[i], blue[i]);
}

/* colour.py's rotation of the hue. */
INLINE void hue(
    float *restrict red, float *restrict green, float *restrict blue, int64_t n, float angle) {
    float turned = angle + 1.0f;
    for (int64_t i = 0; i < n; i++) {
        float r = red[i], g = green[i], b = blue[i];
        float high = r > g ? r : g, low = r < g ? r : g;
        high = high > b ? high : b, low = low < b ? low : b;
        float chroma = high - low, six = chroma * 6.0f;
        float at_red = g - b, at_green = (b - r) + chroma * 2.0f, at_blue = (r - g) + chroma * 4.0f;
        float h = g == high ? at_green : at_blue;
        h = r == high ? at_red : h;
        h = h / (six > 1e-12f ? six : 1e-12f) + turned;
        h = (h - (float)(int32_t)h) * 6.0f;
        red[i] = low + chroma * unit(fabsf(h - 3.0f) - 1.0f);
        green[i] = low + chroma * unit(2.0f - fabsf(h - 2.0f));
        blue[i] = low + chroma * unit(2.0f - fabsf(h - 4.0f));
    }
}

INLINE void solarize(float *restrict x, int64_t n) {
    for (int64_t i = 0; i < n; i++) x[i] = x[i] >= THRESHOLD ? 1.0f - x[i] : x[i];
}

/* In eight lanes, whatever the processor has. */
INLINE double sum(const float *x, int64_t n) {
    floats8 lanes = {0};
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        floats8 next;
        memcpy(&next, x + i, sizeof next);
        lanes += next;
    }
    double total = 0.0;
    for (int k = 0; k < 8; k++) total += (double)lanes[k];
    for (; i < n; i++) total += (double)x[i];
    return total;
}

/* One turn of the jitter on n pixels of all channels; `mean`: of the image's luma. */
INLINE void turn(const Job *job, int64_t m, int64_t t, float *const *c, int64_t n, float mean) {
    const float *abc = job->blends + (m * TURNS + t) * 3;
    if (job->channels == 3 && t == job->hue_turn[m]) {
        hue(c[0], c[1], c[2], n, job->factors[m * 4 + 3]);
    } else if (abc[1] != 0.0f) {
        blend_luma(c[0], c[1], c[2], n, abc[0], abc[1], mean * abc[2]);
    } else {
        for (int64_t k = 0; k < job->channels; k++) blend(c[k], n, abc[0], mean * abc[2]);
    }
}

/* ---- blur ------------------------------------------------------------------------------------ */

/* n numbers, rounded up to eight, of 2 r + 1 rows or shifts of a row, each weighted. */
INLINE void weighted(
    const float *const *from, const float *taps, int64_t r, float *restrict to, int64_t n) {
    for (int64_t x = 0; x < n; x += 8) {
        floats8 total, a, b;
        memcpy(&total, from[r] + x, sizeof total);
        total *= taps[0];
        for (int64_t k = 1; k <= r; k++) {
            memcpy(&a, from[r - k] + x, sizeof a), memcpy(&b, from[r + k] + x, sizeof b);
            total += (a + b) * taps[k];
        }
        memcpy(to + x, &total, sizeof total);
    }
}

INLINE int64_t mirrored(int64_t y, int64_t n) {
    y = y < 0 ? -y : y;
    return y >= n ? 2 * n - 2 - y : y;
}

/* A row blurred along itself; `line` has its mirrored ends. */
INLINE void blur_row(const Room *room, const float *taps, int64_t r, int64_t n, const float *from, float *to) {
    float *line = room->line;
    const float **at = (const float **)room->row;
    memcpy(line + r, from, (size_t)n * sizeof(float));
    for (int64_t k = 1; k <= r; k++) line[r - k] = from[k], line[r + n - 1 + k] = from[n - 1 - k];
    for (int64_t k = 0; k <= 2 * r; k++) at[k] = line + k;
    weighted(at, taps, r, to, n);
}

/* ---- what leaves ----------------------------------------------------------------------------- */

INLINE uint16_t bfloat(float x) {
    uint32_t word;
    memcpy(&word, &x, sizeof word);
    uint32_t near = (word + 0x7fffu + ((word >> 16) & 1u)) >> 16;
    return (uint16_t)((word & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : near);
}

INLINE uint64_t mix(uint64_t x) {
    x += 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

/* rng.uniform(word, pixel) */
INLINE float uniform(uint64_t word, uint64_t pixel) {
    return (float)(uint32_t)(mix(mix(word) ^ pixel) >> 40) * 0x1p-24f;
}

INLINE void erase(const Job *job, int64_t m, float *const *c, int64_t y, int64_t count) {
    const int64_t *box = job->erase_box + 4 * m;
    int64_t first = most(y, box[0]), last = least(y + count, box[0] + box[2]);
    int64_t left = most(0, box[1]), right = least(job->columns, box[1] + box[3]);
    int64_t area = job->rows * job->columns;
    for (int64_t k = 0; k < job->channels; k++)
        for (int64_t row = first; row < last; row++) {
            float *to = c[k] + (row - y) * job->columns;
            uint64_t pixel = (uint64_t)(k * area + row * job->columns);
            for (int64_t x = left; x < right; x++)
                to[x] = job->noise ? uniform((uint64_t)job->erase_word[m], pixel + (uint64_t)x)
                                   : job->filling[k];
        }
}

INLINE int64_t within_channels(const Job *job, int64_t m) {
    return most(0, least(job->channel[m], job->channels - 1));
}

INLINE void interleave(const Job *job, float *const *c, int64_t n, float *restrict to) {
    const float *mean = job->mean, *std = job->std;
    if (job->channels == 3) {
        const float *red = c[0], *green = c[1], *blue = c[2];
        float a = mean[0], b = mean[1], d = mean[2], s = std[0], t = std[1], u = std[2];
        for (int64_t i = 0; i < n; i++) {
            to[3 * i] = (red[i] - a) / s;
            to[3 * i + 1] = (green[i] - b) / t;
            to[3 * i + 2] = (blue[i] - d) / u;
        }
        return;
    }
    for (int64_t k = 0; k < job->channels; k++)
        for (int64_t i = 0; i < n; i++) to[i * job->channels + k] = (c[k][i] - mean[k]) / std[k];
}

/* `count` rows from y on: solarized, without a channel, erased, normalised, written. All channels
 * are the first plane where `one` holds. */
INLINE void finish(
    const Job *job, Room *room, int64_t m, float **c, int64_t y, int64_t count, int one) {
    int64_t channels = job->channels, n = count * job->columns;
    int64_t place = (m * job->rows + y) * job->columns * channels;
    int dropped = job->drop && job->drop[m], erased = job->erase && job->erase[m];
    if (job->solarize[m])
        for (int64_t k = 0; k < (one ? 1 : channels); k++) solarize(c[k], n);
    if (one && (dropped || erased))
        for (int64_t k = 1; k < channels; k++) memcpy(c[k], c[0], (size_t)n * sizeof(float));
    else if (one)
        for (int64_t k = 1; k < channels; k++) c[k] = c[0];
    if (dropped) memset(c[within_channels(job, m)], 0, (size_t)n * sizeof(float));
    if (erased) erase(job, m, c, y, count);
    if (!job->bfloat) {
        interleave(job, c, n, (float *)job->out + place);
        return;
    }
    uint16_t *restrict to = (uint16_t *)job->out + place;
    interleave(job, c, n, room->out);
    for (int64_t i = 0; i < n * channels; i++) to[i] = bfloat(room->out[i]);
}

/* Rows that are blurred along themselves wait in a ring for the r below them. */
INLINE void blurred(const Job *job, Room *room, int64_t m, int64_t y, int64_t count, int one) {
    int64_t width = job->columns, height = job->rows, padded = up(width, SIDE), r = job->radius;
    int64_t planes = one ? 1 : job->channels, area = width * height;
    const float *taps = job->taps + m * (job->radius + 1);
    while (r > 0 && taps[r] == 0.0f) r--;
    int64_t turns = 2 * r + 1;
    float *lines = room->ring + planes * turns * padded;
    for (int64_t row = y; row < y + count; row++) {
        for (int64_t k = 0; k < planes; k++)
            blur_row(room, taps, r, width, room->planes + k * area + row * width,
                     room->ring + (k * turns + row % turns) * padded);
        int64_t first = row - r, last = row == height - 1 ? height - 1 : row - r;
        for (int64_t made = most(0, first); made <= last; made++) {
            float **c = room->row + turns;
            for (int64_t k = 0; k < job->channels; k++) c[k] = lines + k * padded;
            for (int64_t k = 0; k < planes; k++) {
                for (int64_t i = -r; i <= r; i++)
                    room->row[r + i] =
                        room->ring + (k * turns + mirrored(made + i, height) % turns) * padded;
                weighted((const float *const *)room->row, taps, r, c[k], width);
            }
            finish(job, room, m, c, made, 1, one);
        }
    }
}

/* ---- a view ---------------------------------------------------------------------------------- */

/* `count` rows of all channels as they come, before any colour. */
INLINE void rows_of(const Job *job, Room *room, int64_t m, int64_t y, int64_t count) {
    int64_t area = job->rows * job->columns, image = m % job->batch;
    int64_t plane = job->height * job->width, high = job->cut ? up(job->box[4 * m + 2], SIDE) : 0;
    for (int64_t k = 0; k < job->channels; k++)
        for (int64_t row = y; row < y + count; row++) {
            float *to = room->planes + k * area + row * job->columns;
            if (job->cut) {
                down(job, room, room->bytes + k * high * up(job->columns, SIDE), row, to);
                continue;
            }
            size_t size = job->of_floats ? sizeof(float) : 1;
            const uint8_t *from = (const uint8_t *)job->images[m / job->batch];
            from += (size_t)((image * job->channels + k) * plane) * size;
            taken(job, from, row, job->flip[m], to);
        }
}

INLINE void resize(const Job *job, Room *room, int64_t m) {
    const int64_t *box = job->box + 4 * m;
    int64_t size = up(box[2], SIDE) * up(job->columns, SIDE), plane = job->height * job->width;
    const uint8_t *from = (const uint8_t *)job->images[m / job->batch];
    from += (m % job->batch) * job->channels * plane + box[0] * job->width + box[1];
    plan(&room->across, box[3], job->columns, job->cubic);
    plan(&room->down, box[2], job->rows, job->cubic);
    for (int64_t k = 0; k < job->channels; k++)
        across(job, room, from + k * plane, box[2], box[3], job->flip[m], room->bytes + k * size);
}

/* The colours from `turn` on, grey, and all that follows. */
INLINE void ending(
    const Job *job, Room *room, int64_t m, int64_t y, int64_t count, int64_t first, float mean) {
    int64_t area = job->rows * job->columns, n = count * job->columns;
    int one = job->channels == 3 && job->grey[m];
    float **c = room->row + 2 * job->radius + 1;
    for (int64_t k = 0; k < job->channels; k++) c[k] = room->planes + k * area + y * job->columns;
    if (job->hue_turn[m] != TURNS)
        for (int64_t t = first; t < TURNS; t++) turn(job, m, t, c, n, mean);
    if (one) to_luma(c[0], c[1], c[2], n);
    if (job->blur[m])
        blurred(job, room, m, y, count, one);
    else
        finish(job, room, m, c, y, count, one);
}

INLINE void view(const Job *job, Room *room, int64_t m) {
    int64_t area = job->rows * job->columns, channels = job->channels;
    int64_t step = most(1, BLOCK / job->columns), until = TURNS;
    double total = 0.0;
    if (job->cut) resize(job, room, m);
    if (job->hue_turn[m] != TURNS)
        for (int64_t t = TURNS - 1; t >= 0; t--)
            if (job->blends[(m * TURNS + t) * 3 + 2] != 0.0f) until = t;
    for (int64_t y = 0; y < job->rows; y += step) {
        int64_t count = least(step, job->rows - y), n = count * job->columns;
        float **c = room->row + 2 * job->radius + 1;
        rows_of(job, room, m, y, count);
        if (until == TURNS) {
            ending(job, room, m, y, count, 0, 0.0f);
            continue;
        }
        for (int64_t k = 0; k < channels; k++) c[k] = room->planes + k * area + y * job->columns;
        for (int64_t t = 0; t < until; t++) turn(job, m, t, c, n, 0.0f);
        for (int64_t k = 0; k < channels; k++) {
            double share = channels != 3 ? 1.0 / (double)channels
                           : (double)(k == 0 ? LUMA_RED : k == 1 ? LUMA_GREEN : LUMA_BLUE);
            total += sum(c[k], n) * share;
        }
    }
    if (until == TURNS) return;
    float mean = (float)(total / (double)area);
    for (int64_t y = 0; y < job->rows; y += step)
        ending(job, room, m, y, least(step, job->rows - y), until, mean);
}

/* The views of an image one after the other. */
INLINE int64_t row_of(const Job *job, int64_t i) {
    return (i % job->views) * job->batch + i / job->views;
}

INLINE int within(const Job *job, int64_t m) {
    const int64_t *box = job->box + 4 * m;
    return box[0] >= 0 && box[1] >= 0 && box[2] > 0 && box[3] > 0 &&
           box[0] <= job->height - box[2] && box[1] <= job->width - box[3];
}

/* ---- memory ---------------------------------------------------------------------------------- */

/* A piece of the room, or only its size where there is none yet; on lines of the cache. */
INLINE void *piece(uint8_t *room, size_t *used, int64_t n, size_t size) {
    void *at = room ? room + *used : NULL;
    *used += (size_t)up(n * (int64_t)size, 64) + 64;
    return at;
}

INLINE void furnish_axis(Axis *axis, uint8_t *memory, size_t *used, int64_t from, int64_t to, int64_t cubic) {
    int64_t taps = taps_of(from, to, cubic);
    axis->exact = piece(memory, used, to * taps, sizeof(double));
    axis->weights = piece(memory, used, to * up(taps, 2), sizeof(int16_t));
    axis->from = piece(memory, used, to, sizeof(int64_t));
    axis->count = piece(memory, used, to, sizeof(int64_t));
}

/* All that any view of the job needs; how many bytes. */
static size_t furnish(const Job *job, Room *room, uint8_t *memory) {
    size_t used = 0;
    int64_t padded = up(job->columns, SIDE), turns = 2 * job->radius + 1;
    int64_t block = most(1, BLOCK / job->columns) * job->columns;
    if (job->cut) {
        furnish_axis(&room->across, memory, &used, job->width, job->columns, job->cubic);
        furnish_axis(&room->down, memory, &used, job->height, job->rows, job->cubic);
        room->tall = piece(memory, &used, up(job->width, SIDE) * SIDE, 1);
        room->wide = piece(memory, &used, padded * SIDE, 1);
        room->bytes = piece(memory, &used, job->channels * up(job->height, SIDE) * padded, 1);
    }
    room->planes = piece(memory, &used, job->channels * job->rows * job->columns, sizeof(float));
    room->ring = piece(memory, &used, job->channels * (turns + 1) * padded, sizeof(float));
    room->line = piece(memory, &used, padded + 2 * job->radius, sizeof(float));
    room->out = piece(memory, &used, job->channels * block, sizeof(float));
    room->row = piece(memory, &used, turns + job->channels, sizeof(float *));
    return used;
}

/* ---- the face -------------------------------------------------------------------------------- */

/* So that a Job of another layout is never read. */
API int lookalike_size(void) { return (int)sizeof(Job); }

/* Says of memory that all of it will be written: large pages, where the system has them, save most
 * of the time in which it is given out (a fifth of all at 224 pixels). */
API void lookalike_wanted(void *at, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    const uintptr_t page = 1 << 21;
    uintptr_t first = ((uintptr_t)at + page - 1) / page * page;
    uintptr_t last = ((uintptr_t)at + (uintptr_t)bytes) / page * page;
    if (last > first) (void)madvise((void *)first, last - first, MADV_HUGEPAGE);
#else
    (void)at, (void)bytes;
#endif
}

/* `count` views from `first` on, the views of an image one after the other; 1 without the memory, 2
 * where a box does not lie in its image, and then nothing is written. */
API CLONES int lookalike_views(const Job *job, int64_t first, int64_t count) {
    Room room;
    if (job->cut)
        for (int64_t i = first; i < first + count; i++)
            if (!within(job, row_of(job, i))) return 2;
    memset(&room, 0, sizeof room);
    size_t size = furnish(job, &room, NULL);
    uint8_t *memory = calloc(1, size);
    if (!memory) return 1;
    furnish(job, &room, memory);
    for (int64_t i = first; i < first + count; i++)
        view(job, &room, row_of(job, i));
    free(memory);
    return 0;
}
