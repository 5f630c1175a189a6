// The three kernels in C++, as the contract says what they do (docs/kernels.md), on host memory: one block at a time, so that
// a wrong grid, argument or workspace shows in the result.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "ptx/half.h"

namespace fake_kernels {

// What Triton compiles into a kernel. Read from a comment in the text, "// fake: dtype=1 channels_last=0 ...".
struct Constants {
    int dtype = 0;  // 0 float32, 1 float16, 2 bfloat16
    bool channels_last = false;
    bool sum = true;  // the context is x + y
    bool blend = true;
    bool silu = false;
    bool hard = false;
    bool local = true;
    bool global = true;
    int channels = 0;
    int context_channels = 0;
    int inter = 0;
    int block_i = 0;
    int block_p = 0;
    int block_k = 0;
    int block_c = 0;
    int block_e = 0;
    int span_c = 0;
};

inline int cdiv(int a, int b) {
    return (a + b - 1) / b;
}

inline float read(const void* base, std::int64_t index, int dtype) {
    if (dtype == 0) {
        return static_cast<const float*>(base)[index];
    }
    const std::uint16_t bits = static_cast<const std::uint16_t*>(base)[index];
    return dtype == 2 ? ptx::from_bf16(bits) : ptx::from_fp16(bits);
}

inline void write(void* base, std::int64_t index, float value, int dtype) {
    if (dtype == 0) {
        static_cast<float*>(base)[index] = value;
    } else {
        static_cast<std::uint16_t*>(base)[index] = dtype == 2 ? ptx::to_bf16(value) : ptx::to_fp16(value);
    }
}

inline float activate(float value, bool silu) {
    return silu ? value / (1.0F + std::exp(-value)) : std::max(value, 0.0F);
}

inline float gate(float z, bool hard) {
    return hard ? std::clamp(z / 6.0F + 0.5F, 0.0F, 1.0F) : 1.0F / (1.0F + std::exp(-z));
}

inline std::int64_t at(const Constants& k, int n, int c, int p, int channels, int positions) {
    const std::int64_t image = static_cast<std::int64_t>(n) * channels * positions;
    return image +
           (k.channels_last ? static_cast<std::int64_t>(p) * channels + c : static_cast<std::int64_t>(c) * positions + p);
}

struct Values {
    const std::vector<std::uint64_t>& raw;
    template <typename T>
    T get(std::size_t index) const {
        T value{};
        std::memcpy(&value, &raw[index], sizeof value);
        return value;
    }
    void* pointer(std::size_t index) const { return get<void*>(index); }
    int number(std::size_t index) const { return get<int>(index); }
};

// The sum of a row's products, activated and rounded to the type.
inline void put_inner(const Constants& k, void* inner, std::int64_t where, float sum, const void* bias, int i) {
    write(inner, where, activate(sum + read(bias, i, k.dtype), k.silu), k.dtype);
}

// Block `id` is (n, tile, split, inter block), the last one fastest; a block beyond the last does what no kernel may.
inline void context(const Constants& k, const Values& v, int id) {
    const int images = v.number(9), positions = v.number(10), tiles = v.number(11), splits = v.number(12), chunk = v.number(13);
    const int blocks = cdiv(k.inter, k.block_i);
    const int block = id % blocks, split = id / blocks % splits, tile = id / blocks / splits % tiles,
              n = id / blocks / splits / tiles;
    const int first = split * chunk, last = std::min(first + chunk, k.context_channels);
    const void* source = k.sum || v.pointer(2) == nullptr ? v.pointer(0) : v.pointer(2);
    const auto value = [&](int c, int p) {
        const std::int64_t where = at(k, n, c, p, k.context_channels, positions);
        return read(source, where, k.dtype) + (k.sum ? read(v.pointer(1), where, k.dtype) : 0.0F);
    };
    const auto weight = [&](std::size_t which, int i, int c) {
        return read(v.pointer(which), static_cast<std::int64_t>(i) * k.context_channels + c, k.dtype);
    };
    for (int i = block * k.block_i; i < std::min((block + 1) * k.block_i, k.inter); ++i) {
        float total = 0;
        for (int p = tile * k.block_p; p < std::min((tile + 1) * k.block_p, positions); ++p) {
            float local = 0;
            for (int c = first; c < last; ++c) {
                local += k.local ? weight(3, i, c) * value(c, p) : 0;
                total += k.global ? weight(5, i, c) * value(c, p) : 0;
            }
            if (k.local && splits == 1) {
                put_inner(k, v.pointer(7), at(k, n, i, p, k.inter, positions), local, v.pointer(4), i);
            } else if (k.local) {
                static_cast<float*>(v.pointer(6))[at(k, split * images + n, i, p, k.inter, positions)] = local;
            }
        }
        if (k.global) {
            const std::int64_t row = static_cast<std::int64_t>(n) * tiles * splits + tile * splits + split;
            static_cast<float*>(v.pointer(8))[row * k.inter + i] = total;
        }
    }
}

inline void logits(const Constants& k, const Values& v, int id) {
    const int positions = v.number(9), rows = v.number(11), blocks = cdiv(k.channels, k.block_c);
    const int n = id / blocks, first = id % blocks * k.block_c;
    const auto* partial = static_cast<const float*>(v.pointer(3));
    for (int c = first; c < std::min(first + k.block_c, k.channels); ++c) {
        float z = read(v.pointer(6), c, k.dtype);
        for (int i = 0; i < k.inter; ++i) {
            float sum = 0;
            for (int row = 0; row < rows; ++row) {
                sum += partial[(static_cast<std::int64_t>(n) * rows + row) * k.inter + i];
            }
            const float h = activate(sum / static_cast<float>(positions) + read(v.pointer(4), i, k.dtype), k.silu);
            z += read(v.pointer(5), static_cast<std::int64_t>(c) * k.inter + i, k.dtype) * h;
        }
        static_cast<float*>(v.pointer(7))[static_cast<std::int64_t>(n) * k.channels + c] = z;
    }
}

// First the logits' blocks, then those that add up the parts of inner values.
inline void reduce(const Constants& k, const Values& v, int id) {
    const int images = v.number(8), positions = v.number(9), splits = v.number(10);
    const int first = k.global ? images * cdiv(k.channels, k.block_c) : 0;
    if (id < first) {
        return logits(k, v, id);
    }
    const std::int64_t size = static_cast<std::int64_t>(images) * k.inter * positions;
    const std::int64_t begin = static_cast<std::int64_t>(id - first) * k.block_e;
    for (std::int64_t element = begin; element < std::min(begin + k.block_e, size); ++element) {
        float sum = 0;
        for (int split = 0; split < splits; ++split) {
            sum += static_cast<const float*>(v.pointer(0))[split * size + element];
        }
        const std::int64_t i = k.channels_last ? element % k.inter : element / positions % k.inter;
        put_inner(k, v.pointer(2), element, sum, v.pointer(1), static_cast<int>(i));
    }
}

inline void fuse(const Constants& k, const Values& v, int id) {
    const int positions = v.number(7), tiles = v.number(8), spans = cdiv(k.channels, k.span_c);
    const auto scale = v.get<float>(9);
    const int span = id % spans, tile = id / spans % tiles, n = id / spans / tiles;
    for (int c = span * k.span_c; c < std::min((span + 1) * k.span_c, k.channels); ++c) {
        for (int p = tile * k.block_p; p < std::min((tile + 1) * k.block_p, positions); ++p) {
            float z = k.global ? static_cast<const float*>(v.pointer(5))[static_cast<std::int64_t>(n) * k.channels + c] : 0.0F;
            for (int i = 0; k.local && i < k.inter; ++i) {
                z += read(v.pointer(3), static_cast<std::int64_t>(c) * k.inter + i, k.dtype) *
                     read(v.pointer(2), at(k, n, i, p, k.inter, positions), k.dtype);
            }
            z += k.local ? read(v.pointer(4), c, k.dtype) : 0.0F;
            const std::int64_t where = at(k, n, c, p, k.channels, positions);
            const float w = gate(z, k.hard);
            const float rest = k.blend ? read(v.pointer(1), where, k.dtype) * (1.0F - w) : 0.0F;
            write(v.pointer(6), where, scale * (read(v.pointer(0), where, k.dtype) * w + rest), k.dtype);
        }
    }
}

inline bool run(const std::string& entry, const Constants& constants, const std::vector<std::uint64_t>& arguments,
                unsigned int grid) {
    const auto kernel = entry == "aff_context"  ? context
                        : entry == "aff_reduce" ? reduce
                        : entry == "aff_fuse"   ? fuse
                                                : nullptr;
    for (unsigned int id = 0; kernel != nullptr && id < grid; ++id) {
        kernel(constants, Values{arguments}, static_cast<int>(id));
    }
    return kernel != nullptr;
}

}  // namespace fake_kernels
