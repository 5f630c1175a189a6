// PTX text as instructions that the machine executes: the part of PTX that Triton's compiler writes for our kernels.
//
// What is not known here is refused by name and never skipped: an instruction's modifiers change what it computes.
// Reference: NVIDIA, Parallel Thread Execution ISA.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace ptx {

// The text is no PTX, or holds what this machine does not know.
struct Invalid : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// clang-format off
enum class Type : std::uint8_t {
    kNone, kPred, kB16, kU16, kS16, kB32, kU32, kS32, kB64, kU64, kS64, kF16, kBf16, kTf32, kF32, kF16x2, kBf16x2, kF32x2
};

// Bytes of a value; a predicate takes one.
std::size_t bytes_of(Type type);

enum class Op : std::uint8_t {
    // each lane by itself
    kMove, kAdd, kSubtract, kMultiply, kMultiplyHigh, kMultiplyWide, kMultiplyAdd, kMultiplyAddWide, kFused, kDivide,
    kRemainder, kMinimum, kMaximum, kNegate, kAbsolute, kAnd, kOr, kXor, kNot, kShiftLeft, kShiftRight, kExtract, kPermute,
    kSelect, kCompare, kConvert, kExponential, kAddMixed,
    // memory
    kLoadGlobal, kStoreGlobal, kLoadShared, kStoreShared, kCopy, kCommitCopies, kWaitCopies, kProxyFence,
    // a warp together
    kShuffleXor, kShuffleIndex, kLoadMatrices, kStoreMatrices, kMatrixProduct, kGroupProduct,
    kCommitProducts, kWaitProducts,
    // control
    kBranch, kReturn, kBarrier, kWarpBarrier, kNothing
};
// clang-format on

enum class Comparison : std::uint8_t { kEqual, kUnequal, kLess, kLessEqual, kGreater, kGreaterEqual, kNumbers, kNoNumber };

struct Opcode {
    Op op = Op::kNothing;
    Type type = Type::kNone;  // of the operands; of the result where it says how wide that is
    Type to = Type::kNone;    // conversions alone: of the result
    int detail = 0;           // the comparison; how many values, matrices (negative: transposed) or columns of a product
};

// Throws Invalid for an opcode that is not known.
Opcode decode(const std::string& text);

// Every operand is a column of the machine's registers: immediates, parameters and special registers have columns too.
struct Operand {
    enum class Kind : std::uint8_t { kRegister, kValue, kAddress };  // a value is not to be written

    std::uint32_t column = 0;
    Kind kind = Kind::kRegister;
    std::int64_t offset = 0;  // added to an address
};

struct Instruction {
    Opcode what;
    std::vector<Operand> operands;  // in the order of the text, without braces
    std::size_t heads = 0;          // operands of the first group: results, or a store's address
    std::int64_t guard = -1;        // column of the predicate; -1 without
    bool unless = false;            // whether the predicate must be false
    std::size_t target = 0;         // of a branch
    std::size_t line = 0;           // of the text, for messages
};

// Whether the operands are those that the instruction takes: results, then inputs; an address, or two, where the instruction
// has them and nowhere else.
bool fits(const Instruction& instruction);

// One kernel. The first columns are %tid.x, %ctaid.x and %nctaid.x, and parameters follow.
struct Program {
    static constexpr std::uint32_t kThread = 0, kBlock = 1, kBlocks = 2, kFirstParameter = 3;

    std::string entry;
    std::vector<std::size_t> parameter_bytes;
    unsigned int threads = 0;  // that a block must have; 0: any
    int capability = 0;        // of the target, as 80 for sm_80
    bool specific = false;     // to it alone, as sm_90a
    std::vector<Instruction> code;
    std::size_t columns = 0;
    std::vector<std::pair<std::uint32_t, std::uint64_t>> constants;  // columns and their values
};

// All kernels of a module. Throws Invalid with the line.
std::vector<Program> read(const std::string& text);

}  // namespace ptx
