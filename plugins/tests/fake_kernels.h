// The three kernels in C++, as the contract says what they do (docs/kernels.md), on host memory: one block at a time, so that
// a wrong grid, argument or workspace shows in the result.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

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
    int span_c = 0;
};

inline int cdiv(int a, int b) {
    return (a + b - 1) / b;
}

inline float read(const void* base, std::int64_t index, int dtype) {
    if (dtype == 0) {
        return static_cast<const float*>(base)[index];
    }
    const std::uint32_t bits = static_cast<const std::uint16_t*>(base)[index];
    float value = 0;
    if (dtype == 2) {
        const std::uint32_t wide = bits << 16;
        std::memcpy(&value, &wide, sizeof value);
        return value;
    }
    const float sign = (bits & 0x8000U) != 0 ? -1.0F : 1.0F;
    const int exponent = static_cast<int>((bits >> 10) & 31U);
    const auto fraction = static_cast<float>(bits & 1023U);
    return sign * (exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(fraction + 1024.0F, exponent - 25));
}

// Rounds to nearest, ties to even; finite values of the type's range.
inline void write(void* base, std::int64_t index, float value, int dtype) {
    if (dtype == 0) {
        static_cast<float*>(base)[index] = value;
        return;
    }
    std::uint32_t bits = 0;
    if (dtype == 2) {
        std::memcpy(&bits, &value, sizeof bits);
        bits = (bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16;
    } else {
        const std::uint32_t sign = std::signbit(value) ? 0x8000U : 0U;
        int exponent = 0;
        static_cast<void>(std::frexp(std::fabs(value), &exponent));
        const int step = std::max(exponent, -13) - 11;  // the weight of the last bit
        const auto units = static_cast<std::uint32_t>(std::nearbyint(std::ldexp(std::fabs(value), -step)));
        bits = sign | (units == 0 ? 0U : units + (static_cast<std::uint32_t>(step + 24) << 10));
    }
    static_cast<std::uint16_t*>(base)[index] = static_cast<std::uint16_t>(bits);
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

// Block `id` is (n, tile, split, inter block), the last one fastest; a block beyond the last does what no kernel may.
inline void context(const Constants& k, const Values& v, int id) {
    const int positions = v.number(8), tiles = v.number(9), splits = v.number(10), chunk = v.number(11);
    const int blocks = cdiv(k.inter, k.block_i);
    const int block = id % blocks, split = id / blocks % splits, tile = id / blocks / splits % tiles,
              n = id / blocks / splits / tiles;
    const int first = split * chunk, last = std::min(first + chunk, k.context_channels);
    const void* source = k.sum || v.pointer(2) == nullptr ? v.pointer(0) : v.pointer(2);
    const int images = v.number(7);
    const auto value = [&](int c, int p) {
        const std::int64_t where = at(k, n, c, p, k.context_channels, positions);
        return read(source, where, k.dtype) + (k.sum ? read(v.pointer(1), where, k.dtype) : 0.0F);
    };
    for (int i = block * k.block_i; i < std::min((block + 1) * k.block_i, k.inter); ++i) {
        float total = 0;
        for (int p = tile * k.block_p; p < std::min((tile + 1) * k.block_p, positions); ++p) {
            float local = 0;
            for (int c = first; c < last; ++c) {
                local += k.local
                             ? read(v.pointer(3), static_cast<std::int64_t>(i) * k.context_channels + c, k.dtype) * value(c, p)
                             : 0;
                total += k.global
                             ? read(v.pointer(4), static_cast<std::int64_t>(i) * k.context_channels + c, k.dtype) * value(c, p)
                             : 0;
            }
            if (k.local) {
                const std::int64_t row = (static_cast<std::int64_t>(split) * images + n) * k.inter + i;
                static_cast<float*>(v.pointer(5))[row * positions + p] = local;
            }
        }
        if (k.global) {
            const std::int64_t row = static_cast<std::int64_t>(n) * tiles * splits + tile * splits + split;
            static_cast<float*>(v.pointer(6))[row * k.inter + i] = total;
        }
    }
}

inline void logits(const Constants& k, const Values& v, int id) {
    const int positions = v.number(5), rows = v.number(6), blocks = cdiv(k.channels, k.block_c);
    const int n = id / blocks, first = id % blocks * k.block_c;
    const auto* partial = static_cast<const float*>(v.pointer(0));
    for (int c = first; c < std::min(first + k.block_c, k.channels); ++c) {
        float z = read(v.pointer(3), c, k.dtype);
        for (int i = 0; i < k.inter; ++i) {
            float sum = 0;
            for (int row = 0; row < rows; ++row) {
                sum += partial[(static_cast<std::int64_t>(n) * rows + row) * k.inter + i];
            }
            const float h = activate(sum / static_cast<float>(positions) + read(v.pointer(1), i, k.dtype), k.silu);
            z += read(v.pointer(2), static_cast<std::int64_t>(c) * k.inter + i, k.dtype) * h;
        }
        static_cast<float*>(v.pointer(4))[static_cast<std::int64_t>(n) * k.channels + c] = z;
    }
}

inline void fuse(const Constants& k, const Values& v, int id) {
    const int images = v.number(8), positions = v.number(9), tiles = v.number(10), splits = v.number(11);
    const auto scale = v.get<float>(12);
    const int spans = cdiv(k.channels, k.span_c);
    const int span = id % spans, tile = id / spans % tiles, n = id / spans / tiles;
    const auto* hidden = static_cast<const float*>(v.pointer(2));
    for (int c = span * k.span_c; c < std::min((span + 1) * k.span_c, k.channels); ++c) {
        for (int p = tile * k.block_p; p < std::min((tile + 1) * k.block_p, positions); ++p) {
            float z = k.global ? static_cast<const float*>(v.pointer(6))[static_cast<std::int64_t>(n) * k.channels + c] : 0.0F;
            for (int i = 0; k.local && i < k.inter; ++i) {
                float sum = read(v.pointer(3), i, k.dtype);
                for (int split = 0; split < splits; ++split) {
                    sum += hidden[((static_cast<std::int64_t>(split) * images + n) * k.inter + i) * positions + p];
                }
                z += read(v.pointer(4), static_cast<std::int64_t>(c) * k.inter + i, k.dtype) * activate(sum, k.silu);
            }
            z += k.local ? read(v.pointer(5), c, k.dtype) : 0.0F;
            const std::int64_t where = at(k, n, c, p, k.channels, positions);
            const float w = gate(z, k.hard);
            const float rest = k.blend ? read(v.pointer(1), where, k.dtype) * (1.0F - w) : 0.0F;
            write(v.pointer(7), where, scale * (read(v.pointer(0), where, k.dtype) * w + rest), k.dtype);
        }
    }
}

inline bool run(const std::string& entry, const Constants& constants, const std::vector<std::uint64_t>& arguments,
                unsigned int grid) {
    const auto kernel = entry == "aff_context"  ? context
                        : entry == "aff_logits" ? logits
                        : entry == "aff_fuse"   ? fuse
                                                : nullptr;
    for (unsigned int id = 0; kernel != nullptr && id < grid; ++id) {
        kernel(constants, Values{arguments}, static_cast<int>(id));
    }
    return kernel != nullptr;
}

}  // namespace fake_kernels
