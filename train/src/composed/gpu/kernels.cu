// The kernels of `gpu`: each does in one pass over its numbers what candle's operations do in many. All are deterministic: no atomic additions of
// floating-point numbers, every sum in an order that depends on the sizes alone. Single precision; bf16 where a kernel says so. Rows are contiguous.

#define MINUS_INFINITY __int_as_float(0xff800000)

typedef unsigned int u32;
typedef unsigned short bf16;

__device__ __forceinline__ float wide(float x) { return x; }
__device__ __forceinline__ float wide(bf16 x) { return __uint_as_float((u32)x << 16); }
__device__ __forceinline__ void store(float* to, float x) { *to = x; }
__device__ __forceinline__ void store(bf16* to, float x) {
    u32 bits = __float_as_uint(x);
    // To the nearest, of two as near the even one; what is no number stays none.
    *to = (bits & 0x7fffffffu) > 0x7f800000u ? (bf16)((bits >> 16) | 0x40u) : (bf16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

struct Sum {
    static __device__ __forceinline__ float of(float a, float b) { return a + b; }
    static __device__ __forceinline__ float none() { return 0.0f; }
};
struct Largest {
    static __device__ __forceinline__ float of(float a, float b) { return fmaxf(a, b); }
    static __device__ __forceinline__ float none() { return MINUS_INFINITY; }
};

template <class Over> __device__ __forceinline__ float over_warp(float x) {
    for (int distance = 16; distance > 0; distance >>= 1) x = Over::of(x, __shfl_xor_sync(0xffffffffu, x, distance));
    return x;
}

// Over all threads of a block of up to 1,024; every thread gets the result.
template <class Over> __device__ float over_block(float x) {
    __shared__ float of_warps[32];
    x = over_warp<Over>(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = x;
    __syncthreads();
    x = threadIdx.x % 32 < blockDim.x / 32 ? of_warps[threadIdx.x % 32] : Over::none();
    return over_warp<Over>(x);
}

struct Moments { float mean, scale; };

__device__ Moments moments(const float* x, u32 width, float epsilon) {
    float sum = 0.0f, squares = 0.0f;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) sum += x[i];
    float mean = over_block<Sum>(sum) / width;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) squares += (x[i] - mean) * (x[i] - mean);
    return {mean, 1.0f / sqrtf(over_block<Sum>(squares) / width + epsilon)};
}

template <typename T> __device__ void column_sums(const T* x, float* sums, u32 rows, u32 width) {
    __shared__ float parts[8][33];
    u32 column = blockIdx.x * 32 + threadIdx.x, stripe = (rows + gridDim.y - 1) / gridDim.y;
    u32 end = min((blockIdx.y + 1) * stripe, rows);
    float sum = 0.0f;
    if (column < width)
        for (u32 row = blockIdx.y * stripe + threadIdx.y; row < end; row += 8) sum += wide(x[(size_t)row * width + column]);
    parts[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0 && column < width) {
        for (int part = 1; part < 8; part++) sum += parts[part][threadIdx.x];
        sums[(size_t)blockIdx.y * width + column] = sum;
    }
}

template <typename T> __device__ void add_bias(const T* x, const float* bias, float* y, u32 count, u32 width) {
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) y[i] = wide(x[i]) + bias[i % width];
}

// A bit for each id that is stored for a row, in shared memory. The ids of a row differ, as a top-k's do.
__device__ void mark_stored(u32* stored, const u32* ids, u32 vocabulary, u32 k) {
    for (u32 i = threadIdx.x; i < (vocabulary + 31) / 32; i += blockDim.x) stored[i] = 0;
    __syncthreads();
    for (u32 i = threadIdx.x; i < k; i += blockDim.x) atomicOr(&stored[ids[i] / 32], 1u << (ids[i] % 32));
    __syncthreads();
}

// Of a row of logits z, with m the largest and x = (z - m) / T: m, the sum of exp(x) and the sum of x over the ids that are not stored, the sum of
// exp(z - m), z - m of the label, then x of each stored id.
template <typename T>
__device__ void row_numbers(const T* logits, const float* bias, const u32* ids, const u32* labels, float* numbers, u32 vocabulary, u32 k, float inverse) {
    extern __shared__ u32 stored[];
    size_t row = blockIdx.x;
    const T* z = logits + row * vocabulary;
    const u32* of_row = ids + row * k;
    float* to = numbers + row * (5 + k);
    mark_stored(stored, of_row, vocabulary, k);
    float largest = MINUS_INFINITY, outside = 0.0f, tempered = 0.0f, whole = 0.0f;
    for (u32 i = threadIdx.x; i < vocabulary; i += blockDim.x) largest = fmaxf(largest, wide(z[i]) + bias[i]);
    largest = over_block<Largest>(largest);
    for (u32 i = threadIdx.x; i < vocabulary; i += blockDim.x) {
        float relative = wide(z[i]) + bias[i] - largest, x = relative * inverse;
        whole += expf(relative);
        if (!(stored[i / 32] >> (i % 32) & 1u)) { outside += expf(x); tempered += x; }
    }
    outside = over_block<Sum>(outside), tempered = over_block<Sum>(tempered), whole = over_block<Sum>(whole);
    if (threadIdx.x == 0) {
        u32 label = labels[row];
        to[0] = largest, to[1] = outside, to[2] = tempered, to[3] = whole;
        to[4] = label < vocabulary ? wide(z[label]) + bias[label] - largest : 0.0f;
    }
    for (u32 i = threadIdx.x; i < k; i += blockDim.x) to[5 + i] = (wide(z[of_row[i]]) + bias[of_row[i]] - largest) * inverse;
}

// d loss / d z. `of_rows`, four for each row: m, d loss / d outside, d loss / d tempered, and what a label is worth over the sum of exp(z - m).
// `of_stored`, one for each stored id: d loss / d x. `worth`, one for each row: what a label is worth.
template <typename T>
__device__ void row_slopes(const T* logits, const float* bias, const u32* ids, const u32* labels, const float* of_rows, const float* of_stored,
                           const float* worth, T* slopes, u32 vocabulary, u32 k, float inverse) {
    size_t row = blockIdx.x;
    const T* z = logits + row * vocabulary;
    T* to = slopes + row * vocabulary;
    float largest = of_rows[4 * row], outside = of_rows[4 * row + 1], tempered = of_rows[4 * row + 2], share = of_rows[4 * row + 3];
    u32 label = labels[row];
    for (u32 i = threadIdx.x; i < vocabulary; i += blockDim.x) {
        float relative = wide(z[i]) + bias[i] - largest;
        float slope = (expf(relative * inverse) * outside + tempered) * inverse;
        if (share != 0.0f) slope += expf(relative) * share;
        if (i == label) slope -= worth[row];
        store(to + i, slope);
    }
    __syncthreads();
    for (u32 i = threadIdx.x; i < k; i += blockDim.x) {
        u32 id = ids[row * k + i];
        float slope = of_stored[row * k + i] * inverse;
        if (share != 0.0f) slope += expf(wide(z[id]) + bias[id] - largest) * share;
        if (id == label) slope -= worth[row];
        store(to + id, slope);
    }
}

extern "C" {

// A block for each row.
__global__ void layer_norm(const float* x, const float* weight, const float* bias, float* y, u32 width, float epsilon) {
    x += (size_t)blockIdx.x * width, y += (size_t)blockIdx.x * width;
    Moments of = moments(x, width, epsilon);
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) y[i] = (x[i] - of.mean) * of.scale * weight[i] + bias[i];
}

// The way back: the gradient of x, and the gradient of y times the normalised x, whose column sums are the weight's.
__global__ void layer_norm_back(const float* x, const float* weight, const float* g, float* of_x, float* of_weight, u32 width, float epsilon) {
    size_t first = (size_t)blockIdx.x * width;
    x += first, g += first, of_x += first, of_weight += first;
    Moments of = moments(x, width, epsilon);
    float sum = 0.0f, along = 0.0f;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        float slope = g[i] * weight[i];
        sum += slope, along += slope * (x[i] - of.mean) * of.scale;
    }
    sum = over_block<Sum>(sum) / width, along = over_block<Sum>(along) / width;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        float normalised = (x[i] - of.mean) * of.scale;
        of_x[i] = (g[i] * weight[i] - sum - normalised * along) * of.scale;
        of_weight[i] = g[i] * normalised;
    }
}

// A block of 32 x 8 threads for every 32 columns of a stripe of rows; `sums` has a row for each stripe.
__global__ void column_sums_f32(const float* x, float* sums, u32 rows, u32 width) { column_sums(x, sums, rows, width); }
__global__ void column_sums_bf16(const bf16* x, float* sums, u32 rows, u32 width) { column_sums(x, sums, rows, width); }

__global__ void widen(const bf16* x, float* y, u32 count) {
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) y[i] = wide(x[i]);
}

// Rows of heads beside each other, to a head's rows of each sequence one after the other, and back. `chosen`: the row of each place of a padded
// sequence, or none for zeros; `places`: the place of each row.
__global__ void to_heads(const float* x, const u32* chosen, float* y, u32 count, u32 heads, u32 length, u32 width, float scale) {
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
        u32 column = i % width, query = i / width % length, head = i / (width * length) % heads, sequence = i / (width * length * heads);
        u32 row = chosen[sequence * length + query];
        y[i] = row == 0xffffffffu ? 0.0f : x[((size_t)row * heads + head) * width + column] * scale;
    }
}

__global__ void from_heads(const float* y, const u32* places, float* x, u32 count, u32 heads, u32 length, u32 width, float scale) {
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
        u32 column = i % width, head = i / width % heads, place = places[i / (width * heads)];
        u32 sequence = place / length, query = place % length;
        x[i] = y[(((size_t)sequence * heads + head) * length + query) * width + column] * scale;
    }
}

__global__ void add_bias_f32(const float* x, const float* bias, float* y, u32 count, u32 width) { add_bias(x, bias, y, count, width); }
__global__ void add_bias_bf16(const bf16* x, const float* bias, float* y, u32 count, u32 width) { add_bias(x, bias, y, count, width); }

// 0: GELU, 1: GELU by tanh, 2: ReLU, 3: SiLU. What is no number stays none, so that a broken step is seen.
__global__ void activate(const float* x, float* y, u32 count, u32 kind) {
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
        float v = x[i];
        if (kind == 0) y[i] = 0.5f * v * (1.0f + erff(v * 0.70710678118654752f));
        else if (kind == 1) y[i] = 0.5f * v * (1.0f + tanhf(0.79788456080286536f * v * (1.0f + 0.044715f * v * v)));
        else if (kind == 2) y[i] = v < 0.0f ? 0.0f : v;
        else y[i] = v / (1.0f + expf(-v));
    }
}

__global__ void activate_back(const float* x, const float* g, float* of_x, u32 count, u32 kind) {
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
        float v = x[i], slope;
        if (kind == 0) slope = 0.5f * (1.0f + erff(v * 0.70710678118654752f)) + v * 0.39894228040143268f * expf(-0.5f * v * v);
        else if (kind == 1) {
            float t = tanhf(0.79788456080286536f * v * (1.0f + 0.044715f * v * v));
            slope = 0.5f * (1.0f + t) + 0.5f * v * (1.0f - t * t) * 0.79788456080286536f * (1.0f + 0.134145f * v * v);
        } else if (kind == 2) slope = v > 0.0f ? 1.0f : v == v ? 0.0f : v;
        else {
            float s = 1.0f / (1.0f + expf(-v));
            slope = s * (1.0f + v * (1.0f - s));
        }
        of_x[i] = g[i] * slope;
    }
}

// Eight rows a block, a warp for each. Row r is that of query r % length; its sequence's mask starts `per_sequence` after the one before, its query's
// `per_query`.
__global__ void softmax(const float* scores, const float* mask, float* y, u32 rows, u32 length, u32 rows_of_sequence, u32 per_sequence, u32 per_query) {
    u32 row = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    scores += (size_t)row * length, y += (size_t)row * length;
    mask += (size_t)(row / rows_of_sequence) * per_sequence + (size_t)(row % length) * per_query;
    float largest = MINUS_INFINITY, sum = 0.0f;
    for (u32 i = lane; i < length; i += 32) largest = fmaxf(largest, scores[i] + mask[i]);
    largest = over_warp<Largest>(largest);
    for (u32 i = lane; i < length; i += 32) sum += expf(scores[i] + mask[i] - largest);
    sum = over_warp<Sum>(sum);
    for (u32 i = lane; i < length; i += 32) y[i] = expf(scores[i] + mask[i] - largest) / sum;
}

__global__ void softmax_back(const float* y, const float* g, float* of_scores, u32 rows, u32 length) {
    u32 row = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    y += (size_t)row * length, g += (size_t)row * length, of_scores += (size_t)row * length;
    float along = 0.0f;
    for (u32 i = lane; i < length; i += 32) along += y[i] * g[i];
    along = over_warp<Sum>(along);
    for (u32 i = lane; i < length; i += 32) of_scores[i] = y[i] * (g[i] - along);
}

// A block for each row, with a bit of shared memory for each id.
__global__ void row_numbers_f32(const float* logits, const float* bias, const u32* ids, const u32* labels, float* numbers, u32 vocabulary, u32 k, float inverse) {
    row_numbers(logits, bias, ids, labels, numbers, vocabulary, k, inverse);
}
__global__ void row_numbers_bf16(const bf16* logits, const float* bias, const u32* ids, const u32* labels, float* numbers, u32 vocabulary, u32 k, float inverse) {
    row_numbers(logits, bias, ids, labels, numbers, vocabulary, k, inverse);
}
__global__ void row_slopes_f32(const float* logits, const float* bias, const u32* ids, const u32* labels, const float* of_rows, const float* of_stored,
                               const float* worth, float* slopes, u32 vocabulary, u32 k, float inverse) {
    row_slopes(logits, bias, ids, labels, of_rows, of_stored, worth, slopes, vocabulary, k, inverse);
}
__global__ void row_slopes_bf16(const bf16* logits, const float* bias, const u32* ids, const u32* labels, const float* of_rows, const float* of_stored,
                                const float* worth, bf16* slopes, u32 vocabulary, u32 k, float inverse) {
    row_slopes(logits, bias, ids, labels, of_rows, of_stored, worth, slopes, vocabulary, k, inverse);
}

// The sum of squares of a block's share of the numbers, in double precision.
__global__ void sum_of_squares(const float* x, double* sums, u32 count) {
    __shared__ double parts[256];
    double sum = 0.0;
    for (u32 i = blockIdx.x * 256 + threadIdx.x; i < count; i += gridDim.x * 256) sum += (double)x[i] * x[i];
    parts[threadIdx.x] = sum;
    for (u32 half = 128; half > 0; half >>= 1) {
        __syncthreads();
        if (threadIdx.x < half) parts[threadIdx.x] += parts[threadIdx.x + half];
    }
    if (threadIdx.x == 0) sums[blockIdx.x] = parts[0];
}

// A step of AdamW. `kept`: 1 less the rate times the decay; `rate` and `root` carry the corrections of the moments' first steps.
__global__ void adamw(float* value, float* first, float* second, const float* gradient, u32 count, float scale, float new_first, float new_second,
                      float rate, float root, float epsilon, float kept) {
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
        float g = gradient[i] * scale;
        float m = first[i] + (g - first[i]) * new_first, v = second[i] + (g * g - second[i]) * new_second;
        first[i] = m, second[i] = v;
        value[i] = value[i] * kept - m * rate / (sqrtf(v) * root + epsilon);
    }
}

}
