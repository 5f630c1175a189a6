// What the lanes of a warp do together with matrices: ldmatrix, stmatrix, mma and wgmma. Fragment layouts are those of the PTX
// ISA, "Matrix Fragments for mma.m16n8k16" and "Asynchronous Warpgroup Level Matrix Operations".
#include <cmath>
#include <cstring>

#include "half.h"
#include "machine.h"

namespace ptx {
namespace {

constexpr std::uint32_t kRows = 16, kMostInner = 16, kColumns = 8;

std::uint16_t half_at(std::uint64_t column, std::uint32_t which) {
    return static_cast<std::uint16_t>(column >> (16 * which));
}

// Elements of a type that a 32-bit register holds.
std::uint32_t in_register(Type type) {
    return type == Type::kTf32 ? 1 : 2;
}

float number(std::uint64_t column, std::uint32_t which, Type type) {
    return type == Type::kF16    ? from_fp16(half_at(column, which))
           : type == Type::kBf16 ? from_bf16(half_at(column, which))
                                 : from_bits(static_cast<std::uint32_t>(column) & kTf32Bits);
}

// Tensor cores add the products and what is there almost exactly, and round the sum towards zero (Fasi et al., "Numerical
// behavior of NVIDIA tensor cores", PeerJ Computer Science 2021).
float truncated(double sum) {
    const auto nearest = static_cast<float>(sum);
    const bool away = std::isfinite(nearest) && std::fabs(static_cast<double>(nearest)) > std::fabs(sum);
    return away ? std::nextafter(nearest, 0.0F) : nearest;
}

// The 16 rows of A that a warp holds in four registers.
template <typename Registers>
void read_rows(const Registers& registers, Type type, float (&a)[kRows][kMostInner]) {
    const std::uint32_t each = in_register(type);
    for (std::uint32_t lane = 0; lane < kLanes; ++lane) {
        for (std::uint32_t part = 0; part < 4; ++part) {
            for (std::uint32_t which = 0; which < each; ++which) {
                a[lane / 4 + part % 2 * 8][lane % 4 * each + which + part / 2 * 4 * each] =
                    number(registers(part)[lane], which, type);
            }
        }
    }
}

// Lane l holds of an 8 x 8 matrix the elements 2 (l % 4) and the next of row l / 4; transposed, of column l / 4.
void load_or_store(Warp& warp, const Instruction& instruction, Block& block) {
    const bool store = instruction.what.op == Op::kStoreMatrices, transposed = instruction.what.detail < 0;
    const auto count = static_cast<std::uint32_t>(transposed ? -instruction.what.detail : instruction.what.detail);
    const Operand& address = instruction.operands[store ? 0 : count];
    std::vector<std::uint64_t> touched;
    std::vector<Column> loaded;
    for (std::uint32_t matrix = 0; matrix < count; ++matrix) {
        const Column& values = warp.columns[instruction.operands[matrix + (store ? 1 : 0)].column];
        std::uint16_t elements[8][8];
        // Row r of matrix m is where lane 8 m + r says.
        const auto row_address = [&](std::uint32_t row) {
            const std::uint64_t said = warp.columns[address.column][8 * matrix + row];
            return static_cast<std::uint64_t>(static_cast<std::uint32_t>(said + static_cast<std::uint64_t>(address.offset)));
        };
        const auto each_element = [&](const auto& f) {
            for (std::uint32_t lane = 0; lane < kLanes; ++lane) {
                for (std::uint32_t which = 0; which < 2; ++which) {
                    const std::uint32_t along = lane % 4 * 2 + which, across = lane / 4;
                    f(lane, which, transposed ? elements[along][across] : elements[across][along]);
                }
            }
        };
        if (store) {
            each_element([&](std::uint32_t lane, std::uint32_t which, std::uint16_t& element) {
                element = half_at(values[lane], which);
            });
        }
        for (std::uint32_t row = 0; row < 8; ++row) {
            const std::uint64_t where = row_address(row);
            const std::uint32_t thread = warp.index * kLanes + 8 * matrix + row;
            touched.push_back(where);
            if (store) {
                block.shared.write(where, elements[row], sizeof elements[row], thread);
            } else {
                std::memcpy(elements[row], block.shared.read(where, sizeof elements[row], thread), sizeof elements[row]);
            }
        }
        if (!store) {
            Column made{};
            each_element([&](std::uint32_t lane, std::uint32_t which, std::uint16_t element) {
                made[lane] |= static_cast<std::uint64_t>(element) << (16 * which);
            });
            loaded.push_back(made);
        }
    }
    // Only now: the addresses may be in one of these registers.
    for (std::size_t matrix = 0; matrix < loaded.size(); ++matrix) {
        warp.columns[instruction.operands[matrix].column] = loaded[matrix];
    }
    count_banks(touched, 16, block.counts);
}

void product(Warp& warp, const Instruction& instruction, Block& block) {
    const auto registers = [&](std::size_t index) -> Column& { return warp.columns[instruction.operands[index].column]; };
    const Type type = instruction.what.to;
    const std::uint32_t each = in_register(type), inner = 8 * each;
    float a[kRows][kMostInner], b[kMostInner][kColumns];
    read_rows([&](std::uint32_t part) -> const Column& { return registers(4 + part); }, type, a);
    for (std::uint32_t lane = 0; lane < kLanes; ++lane) {
        for (std::uint32_t part = 0; part < 2; ++part) {
            for (std::uint32_t which = 0; which < each; ++which) {
                b[lane % 4 * each + which + part * 4 * each][lane / 4] = number(registers(8 + part)[lane], which, type);
            }
        }
    }
    std::array<Column, 4> made{};  // not written before all is read: results may stand where others were
    for (std::uint32_t lane = 0; lane < kLanes; ++lane) {
        for (std::uint32_t index = 0; index < 4; ++index) {
            const std::uint32_t row = lane / 4 + index / 2 * 8, column = lane % 4 * 2 + index % 2;
            double sum = static_cast<double>(from_bits(static_cast<std::uint32_t>(registers(10 + index)[lane])));
            for (std::uint32_t k = 0; k < inner; ++k) {
                sum += static_cast<double>(a[row][k]) * static_cast<double>(b[k][column]);
            }
            made[index][lane] = to_bits(truncated(sum));
        }
    }
    for (std::uint32_t index = 0; index < 4; ++index) {
        registers(index) = made[index];
    }
    ++block.counts.products;
}

// A matrix in shared memory as a 64-bit descriptor says: where it begins, how far apart its parts are, and how it is swizzled.
class Described {
  public:
    Described(std::uint64_t descriptor, bool transposed, std::size_t element_bytes)
        : element_bytes_(element_bytes), transposed_(transposed) {
        const auto field = [descriptor](int from) { return (descriptor >> from & 0x3FFFU) << 4; };
        begin_ = field(0);
        leading_ = field(16);
        stride_ = field(32);
        const auto mode = static_cast<std::uint32_t>(descriptor >> 62);
        width_ = mode == 0 ? 16 : 256U >> mode;
        mask_ = mode == 0 ? 0 : width_ / 16 - 1;
        if (transposed && mode == 0) {
            throw Fault("a transposed matrix without swizzle, which the stand-in does not know");
        }
    }

    // `outer` counts rows of A or columns of B, `k` goes along the product.
    std::uint64_t address(std::uint32_t outer, std::uint32_t k) const {
        const std::uint32_t along = transposed_ ? outer : k, across = transposed_ ? k : outer;
        const std::uint64_t byte = along * element_bytes_, in_row = byte % width_, part = byte / width_;
        const std::uint64_t plain = begin_ + across / 8 * stride_ + across % 8 * width_ + part * leading_ + in_row;
        return plain ^ (plain >> 7 & mask_) << 4;
    }

  private:
    std::uint64_t begin_, leading_, stride_, width_, mask_, element_bytes_;
    bool transposed_;
};

}  // namespace

void execute_matrices(Warp& warp, const Instruction& instruction, Block& block) {
    if (instruction.what.op == Op::kMatrixProduct) {
        product(warp, instruction, block);
    } else {
        load_or_store(warp, instruction, block);
    }
}

// The share of one warp of four: rows 16 w to 16 w + 15. Behind the results stand A (a descriptor or four registers), B,
// whether to add to what is there, two signs, and for halves whether A, unless in registers, and B are transposed.
void execute_group_product(Warp& warp, const Instruction& instruction, Block& block) {
    const Type type = instruction.what.type;
    const auto columns = static_cast<std::uint32_t>(instruction.what.detail);
    const std::size_t results = columns / 2, rest = instruction.operands.size() - results;
    const std::size_t plain = type == Type::kTf32 ? 5 : 7;
    const bool rows_in_registers = rest == (type == Type::kTf32 ? 8 : 9);
    if (instruction.heads != results || (rest != plain && !rows_in_registers)) {
        throw Fault("another number of operands than the instruction has");
    }
    const auto registers = [&](std::size_t index) -> Column& { return warp.columns[instruction.operands[index].column]; };
    const std::size_t behind_rows = results + (rows_in_registers ? 4 : 1);
    const auto flag = [&](std::size_t index) {
        return behind_rows + index < instruction.operands.size() ? registers(behind_rows + index)[0] : 0;
    };
    if (flag(2) != 1 || flag(3) != 1) {
        throw Fault("a product with a sign, which the stand-in does not know");
    }
    const bool adds = flag(1) != 0;
    const std::uint32_t inner = 8 * in_register(type);
    const std::size_t bytes = 4 / in_register(type);
    const auto load = [&](std::uint64_t where) {
        std::uint32_t value = 0;
        std::memcpy(&value, block.shared.read_by_product(where, bytes, warp.index * kLanes), bytes);
        return number(value, 0, type);
    };
    float a[kRows][kMostInner];
    if (rows_in_registers) {
        read_rows([&](std::uint32_t part) -> const Column& { return registers(results + part); }, type, a);
    } else {
        const Described described(registers(results)[0], flag(4) != 0, bytes);
        for (std::uint32_t row = 0; row < kRows; ++row) {
            for (std::uint32_t k = 0; k < inner; ++k) {
                a[row][k] = load(described.address(warp.index % 4 * kRows + row, k));
            }
        }
    }
    std::vector<std::array<float, kMostInner>> b(columns);
    const Described described(flag(0), flag(rows_in_registers ? 4 : 5) != 0, bytes);
    for (std::uint32_t column = 0; column < columns; ++column) {
        for (std::uint32_t k = 0; k < inner; ++k) {
            b[column][k] = load(described.address(column, k));
        }
    }
    for (std::uint32_t lane = 0; lane < kLanes; ++lane) {
        for (std::uint32_t index = 0; index < results; ++index) {
            const std::uint32_t row = lane / 4 + index / 2 % 2 * 8, column = index / 4 * 8 + lane % 4 * 2 + index % 2;
            double sum = adds ? static_cast<double>(from_bits(static_cast<std::uint32_t>(registers(index)[lane]))) : 0.0;
            for (std::uint32_t k = 0; k < inner; ++k) {
                sum += static_cast<double>(a[row][k]) * static_cast<double>(b[column][k]);
            }
            registers(index)[lane] = to_bits(truncated(sum));
        }
    }
    // Descriptors are read at once, registers until the product is done.
    for (std::size_t index = 0; index < (rows_in_registers ? behind_rows : results); ++index) {
        warp.products.back().push_back(instruction.operands[index].column);
    }
    ++block.counts.products;
}

}  // namespace ptx
