// The machine that executes PTX: what instructions compute, by hand, and that it sees what is wrong with an access.
#include "checks.h"
#include "ptx/half.h"
#include "ptx/machine.h"

namespace {

using namespace ptx;

// A kernel whose parameters are addresses: %rd0 that of `in`, %rd1 that of `out`, moved on to the thread's own four bytes;
// %r0 the thread's number, %r1 its number of `in`.
std::string kernel(const std::string& body) {
    return ".version 8.0\n.target sm_80\n.visible .entry k(\n.param .u64 .ptr .global .align 1 k_0,\n.param .u64 k_1\n)\n"
           ".reqntid 64\n{\n.reg .pred %p<4>;\n.reg .b16 %rs<9>;\n.reg .b32 %r<40>;\n.reg .b64 %rd<9>;\n"
           "ld.param.b64 %rd0, [k_0];\nld.param.b64 %rd1, [k_1];\nmov.u32 %r0, %tid.x;\n"
           "mad.wide.u32 %rd0, %r0, 4, %rd0;\nmad.wide.u32 %rd1, %r0, 4, %rd1;\nld.global.b32 { %r1 }, [ %rd0 + 0 ];\n" +
           body + "\nret;\n}\n";
}

constexpr std::uint32_t kThreads = 64, kShared = 256;

struct Ran {
    std::vector<std::uint32_t> out;
    Counts counts;
    Traffic in;
};

Ran run(
    const std::string& body, const std::function<std::uint32_t(std::uint32_t)>& input = [](std::uint32_t t) { return t; },
    std::uint32_t blocks = 1) {
    DeviceMemory memory;
    std::vector<std::uint32_t> values;
    for (std::uint32_t thread = 0; thread < kThreads; ++thread) {
        values.push_back(input(thread));
    }
    void* in = memory.allocate(4 * kThreads);
    void* out = memory.allocate(4 * kThreads);
    memory.fill(in, values.data(), 4 * kThreads);
    const Launch launch{blocks, kThreads, kShared, {reinterpret_cast<std::uint64_t>(in), reinterpret_cast<std::uint64_t>(out)}};
    const Counts counts = run(read(kernel(body)).at(0), launch, memory);
    const auto* first = static_cast<const std::uint32_t*>(out);
    return {{first, first + kThreads}, counts, memory.traffic(launch.arguments[0])};
}

// The third thread's result of one instruction that takes its number 2 in %r1 and writes %r2.
std::uint32_t result(const std::string& instruction, std::uint32_t value = 2) {
    return run(instruction + "\nst.global.b32 [ %rd1 + 0 ], { %r2 };", [value](std::uint32_t) { return value; }).out[2];
}

constexpr std::uint32_t kMinusFour = 0xFFFFFFFCU;

TEST(whole_numbers) {
    CHECK(result("sub.s32 %r2, %r1, 6;") == kMinusFour);
    CHECK(result("mul.lo.s32 %r2, %r1, -2;") == kMinusFour);
    CHECK(result("mul.hi.u32 %r2, %r1, -1;") == 1);
    CHECK(result("mul.wide.s32 %rd2, %r1, -2;\nshr.u64 %rd2, %rd2, 32;\ncvt.u32.u64 %r2, %rd2;") == 0xFFFFFFFFU);
    CHECK(result("div.s32 %r2, %r1, 2;", kMinusFour) == 0xFFFFFFFEU &&
          result("rem.s32 %r2, %r1, 3;", kMinusFour) == 0xFFFFFFFFU);
    CHECK(result("shr.s32 %r2, %r1, 1;", kMinusFour) == 0xFFFFFFFEU && result("shr.u32 %r2, %r1, 30;", kMinusFour) == 3);
    CHECK(result("shl.b32 %r2, %r1, 40;") == 0 && result("shr.s32 %r2, %r1, 99;", kMinusFour) == 0xFFFFFFFFU);
    CHECK(result("bfe.u32 %r2, %r1, 4, 8;", 0x12345678U) == 0x67 && result("bfe.s32 %r2, %r1, 4, 4;", 0xF0U) == 0xFFFFFFFFU);
    CHECK(result("prmt.b32 %r2, %r1, 0, 0x7701U;", 0x12345678U) == 0x00007856U);
    CHECK(result("min.s32 %r2, %r1, 1;", kMinusFour) == kMinusFour && result("max.u32 %r2, %r1, 1;", kMinusFour) == kMinusFour);
    CHECK(result("cvt.u16.u32 %rs1, %r1;\nand.b16 %rs2, %rs1, 1;\nmad.wide.u16 %r2, %rs2, -32256, %r1;", 3) == 33283);
    CHECK(result("setp.lt.s32 %p1, %r1, 0;\nselp.b32 %r2, 8, 7, %p1;", kMinusFour) == 8);
    CHECK(result("setp.lt.u32 %p1, %r1, 0;\nselp.b32 %r2, 8, 7, %p1;", kMinusFour) == 7);
}

TEST(numbers) {
    const auto one = to_bits(1.0F), half = to_bits(0.5F), none = to_bits(std::nanf(""));
    CHECK(result("add.f32 %r2, %r1, 0f3F000000;", half) == one && result("mul.f32 %r2, %r1, 0f40000000;", half) == one);
    CHECK(result("fma.rn.f32 %r2, %r1, %r1, 0f3F400000;", half) == one && result("div.full.f32 %r2, %r1, %r1;", half) == one);
    CHECK(result("ex2.approx.f32 %r2, 0f00000000;") == one && result("sub.f32 %r2, 0f3FC00000, %r1;", half) == one);
    CHECK(result("max.f32 %r2, %r1, 0f3F800000;", none) == one);
    CHECK(result("max.f32 %r2, %r1, 0f00000000;", 0x80000000U) == 0 &&
          result("min.f32 %r2, 0f00000000, %r1;", 0x80000000U) == 0x80000000U);
    CHECK(result("max.f32 %r2, %r1, %r1;", 0xFFC00001U) == kNan);
    CHECK(std::isnan(from_bits(result("max.NaN.f32 %r2, %r1, 0f3F800000;", none))));
    for (const char* compared : {"lt", "gt", "eq", "ne", "le", "ge"}) {
        CHECK(result(std::string("setp.") + compared + ".f32 %p1, %r1, %r1;\nselp.b32 %r2, 1, 0, %p1;", none) == 0);
    }
    CHECK(result("cvt.rn.f16x2.f32 %r2, %r1, 0f40000000;", half) == 0x38004000U);
    CHECK(result("mov.b32 {%rs1, %rs2}, %r1;\ncvt.f32.f16 %r2, %rs2;", 0x38004000U) == half);
    CHECK(result("add.bf16x2 %r2, %r1, %r1;", 0x3F003F00U) == 0x3F803F80U);
    CHECK(result("mov.b32 %rs1, 15360;\nadd.rn.f32.f16 %r2, %rs1, %r1;", half) == to_bits(1.5F));
}

TEST(half_precision_rounds_to_nearest_and_ties_to_even) {
    // Every number of the type comes back, and what lies between two goes to the nearer one.
    for (std::uint32_t bits = 0; bits < 0x10000U; ++bits) {
        const auto given = static_cast<std::uint16_t>(bits);
        const bool none16 = std::isnan(from_fp16(given)), none_b = std::isnan(from_bf16(given));
        CHECK(none16 ? std::isnan(from_fp16(to_fp16(from_fp16(given)))) : to_fp16(from_fp16(given)) == given);
        CHECK(none_b ? std::isnan(from_bf16(to_bf16(from_bf16(given)))) : to_bf16(from_bf16(given)) == given);
    }
    CHECK(to_fp16(1.0F + 0x1p-11F) == 0x3C00 && to_fp16(1.0F + 0x1.8p-10F) == 0x3C02 && to_fp16(1.0F + 0x1.01p-11F) == 0x3C01);
    CHECK(to_fp16(65519.0F) == 0x7BFF && to_fp16(65520.0F) == 0x7C00 && to_fp16(0x1p-25F) == 0 && to_fp16(0x1.8p-25F) == 1);
    CHECK(to_bf16(1.0F + 0x1p-8F) == 0x3F80 && to_bf16(1.0F + 0x1.8p-7F) == 0x3F82);
}

TEST(lanes_see_each_other) {
    const auto mirrored = run("shfl.sync.bfly.b32 %r2, %r1, 1, 31, -1;\nst.global.b32 [ %rd1 + 0 ], { %r2 };").out;
    CHECK(mirrored[0] == 1 && mirrored[1] == 0 && mirrored[63] == 62);
    CHECK(run("shfl.sync.idx.b32 %r2, %r1, 3, 31, -1;\nst.global.b32 [ %rd1 + 0 ], { %r2 };").out[40] == 35);
}

const char* const kStore = "shl.b32 %r3, %r0, 2;\nst.shared.b32 [%r3], %r1;\n";
const char* const kMirror = "xor.b32 %r4, %r3, 128;\nld.shared.b32 %r2, [%r4];\nst.global.b32 [ %rd1 + 0 ], { %r2 };";

TEST(warps_share_memory_across_a_barrier) {
    const Ran ran = run(std::string(kStore) + "bar.sync 0;\n" + kMirror);
    CHECK(ran.out[0] == 32 && ran.out[63] == 31);
    CHECK(ran.counts.shared_turns == 4 && ran.counts.shared_turns_least == 4 && ran.in.read == 8 && ran.in.fetched == 8);
    // Every lane in the same bank.
    CHECK(
        run("mul.lo.s32 %r3, %r0, 128;\nand.b32 %r3, %r3, 255;\nst.shared.b32 [%r3], 7;\nst.global.b32 [ %rd1 + 0 ], { %r1 };")
            .counts.shared_turns == 4);
}

TEST(wrong_accesses_are_faults) {
    CHECK_THROWS(Fault, run(std::string(kStore) + kMirror), "k, block 0, line 22, warp 0: read of shared memory never written");
    CHECK_THROWS(Fault, run("mov.b32 %r3, 0;\nst.shared.b32 [%r3], %r1;"), "write to what another thread wrote or read");
    CHECK_THROWS(Fault, run(std::string(kStore) + "and.b32 %r4, %r3, 127;\nld.shared.b32 %r2, [%r4];"),
                 "read of what another thread wrote, with no barrier between");
    CHECK_THROWS(Fault, run("ld.shared.b32 %r2, [%r0+1];"), "misaligned access");
    CHECK_THROWS(Fault, run("mov.b32 %r3, 256;\nst.shared.b32 [%r3], %r1;"), "outside of the block's shared memory");
    CHECK_THROWS(Fault, run("ld.global.b32 { %r2 }, [ %rd0 + 256 ];"), "outside of every allocation");
    CHECK_THROWS(Fault, run("ld.global.b32 { %r2 }, [ %rd1 + 0 ];"), "device memory that was never written");
    CHECK_THROWS(Fault,
                 run(
                     "st.global.b32 [ %rd1 + 0 ], { %r1 };", [](std::uint32_t t) { return t; }, 2),
                 "k, block 1, line 19, warp 0: access to what another block of the launch wrote");
    const std::string copy = "shl.b32 %r3, %r0, 2;\ncp.async.ca.shared.global [ %r3 + 0 ], [ %rd0 + 0 ], 0x4;\n";
    CHECK_THROWS(Fault, run(copy + "ld.shared.b32 %r2, [%r3];"), "that a copy is still writing");
    CHECK_THROWS(Fault, run(copy + "cp.async.wait_group 0;\nld.shared.b32 %r2, [%r3];"), "that a copy is still writing");
    const std::string waited = copy + "cp.async.commit_group;\ncp.async.wait_group 0;\nld.shared.b32 %r2, [%r3];\n";
    CHECK(run(waited + "st.global.b32 [ %rd1 + 0 ], { %r2 };").out[5] == 5);
}

TEST(warps_that_part_are_faults) {
    CHECK_THROWS(Fault, run("setp.lt.u32 %p1, %r0, 7;\n@%p1 bra $end;\nst.global.b32 [ %rd1 + 0 ], { %r1 };\n$end:"),
                 "lanes of a warp part ways");
    CHECK_THROWS(Fault, run("setp.lt.u32 %p1, %r0, 32;\n@%p1 bra $end;\nbar.sync 0;\n$end:"),
                 "some warps end while others wait");
    CHECK(run("setp.lt.u32 %p1, %r0, 7;\nmov.b32 %r2, 1;\n@%p1 mov.b32 %r2, 9;\nst.global.b32 [ %rd1 + 0 ], { %r2 };").out[7] ==
          1);
}

TEST(what_is_not_known_is_refused_with_its_line) {
    CHECK_THROWS(Invalid, read(kernel("add.sat.s32 %r2, %r1, 1;")),
                 "line 19: the stand-in does not know the instruction add.sat.s32");
    CHECK_THROWS(Invalid, read(kernel("mov.b32 %r2, %clock;")), "line 19: an operand that the stand-in does not know: %clock");
    CHECK_THROWS(Invalid, read(kernel("{ .reg .pred q; }")), "blocks inside a kernel");
    CHECK_THROWS(Invalid, read(kernel("bra $nowhere;")), "no label $nowhere");
    CHECK_THROWS(Invalid, read(".version 8.0\n.target sm_80\n.visible .entry k(.param .b8 k_0[16]) { ret; }"),
                 "a parameter that the stand-in does not know");
    CHECK_THROWS(Invalid, read(".version 8.0\n.target sm_80\n.visible .entry k() { mov.b32 %r2"), "breaks off");
    CHECK_THROWS(Invalid, run("and.b32 %r2, %r1;"), "other operands than the instruction takes");
}

TEST(what_is_malformed_is_refused) {
    for (const char* text : {"ld.param.b64 %rd2, [k_0+4];", "bar.sync ;", "cp.async.wait_group ;", "shfl.sync.bfly.b32 %r2;",
                             "ld.global.b32 ;", "ld.global.b32 { %r2 }, %rd0;", "st.global.b32 %rd1, { %r1 };",
                             "ld.global.v4.b32 { %r2 }, [ %rd0 ];", "st.global.b32 [ %rd1 ], { %r1, %r2 };", "mov.b32 5, %r1;",
                             "mov.u32 %tid.x, %r1;", "mov.b64 {%rs1, %rs2, %rs3}, %rd0;", "add.s32 [%r2], %r1, %r1;"}) {
        CHECK_THROWS(Invalid, read(kernel(text)), "line 19: other operands than the instruction takes");
    }
    for (const char* number : {"017", "U", "0f", "0f3F80", "0x", "1.5", "--1", "99999999999999999999999"}) {
        CHECK_THROWS(Invalid, read(kernel(std::string("mov.b32 %r2, ") + number + ";")),
                     "an operand that the stand-in does not know");
    }
    CHECK_THROWS(Invalid, read(kernel("ld.global.b32 { %r2 }, [ %rd1 + abc ];")), "an operand that the stand-in does not know");
    CHECK_THROWS(Invalid, read(kernel("ld.global.s16 { %r2 }, [ %rd1 + 0 ];")), "does not know the instruction ld.global.s16");
    CHECK_THROWS(Invalid, read(kernel("$a:\n$a:")), "a label that is there twice");
    CHECK_THROWS(Invalid, read(kernel(".reg .b32 %r<2>;")), "a register that is there twice");
    CHECK_THROWS(Invalid, read(kernel(".reg .b32 %z<65530>;")), "too many registers");
    CHECK_THROWS(Fault, run("shfl.sync.bfly.b32 %r2, %r1, 1, 7199, 1;"), "a shuffle among some lanes");
    CHECK_THROWS(Fault, run("bfe.u32 %r2, %r1, -1, 1;"), "a field of bits outside");
    CHECK_THROWS(Fault, run("bar.warp.sync 15;"), "a barrier of some lanes");
    CHECK_THROWS(Fault, run("ex2.approx.f16 %r2, %r1;"), "does not know the instruction for this type");
    CHECK_THROWS(Fault, run("rem.f32 %r2, %r1, %r1;"), "does not know the instruction for this type");
    CHECK_THROWS(Invalid, read(kernel("cvt.s16.s32 %r2, %r1;")), "does not know the instruction cvt.s16.s32");
    CHECK_THROWS(Fault, run("shl.b32 %r3, %r0, 2;\ncp.async.cg.shared.global [ %r3 + 0 ], [ %rd0 + 0 ], 0x4;"),
                 "of a size that the stand-in does not know");
}

TEST(products_of_four_warps_are_waited_for_and_see_what_was_fenced) {
    // D = A B of zeros: A and B are halves without swizzle, in the first 4 KiB.
    const auto product = [](const std::string& fence, const std::string& wait) {
        return ".version 8.0\n.target sm_90a\n.visible .entry k()\n.reqntid 128\n{\n.reg .b32 %r<9>;\n.reg .b64 %rd<3>;\n"
               ".reg .pred %p<2>;\nmov.u32 %r0, %tid.x;\nshl.b32 %r1, %r0, 4;\nmov.b32 %r2, 0;\n"
               "st.shared.v4.b32 [%r1], {%r2, %r2, %r2, %r2};\nst.shared.v4.b32 [%r1+2048], {%r2, %r2, %r2, %r2};\n" +
               fence + "bar.sync 0;\nmov.b64 %rd0, 0x800080000;\nmov.pred %p0, 0;\n" +
               "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%r4, %r5, %r6, %r7}, %rd0, %rd0, %p0, 1, 1, 0, 0;\n"
               "wgmma.commit_group.sync.aligned;\n" +
               wait + "add.f32 %r8, %r4, %r5;\nret;\n}\n";
    };
    const std::string fence = "fence.proxy.async.shared::cta;\n", wait = "wgmma.wait_group.sync.aligned 0;\n";
    const auto executed = [](const std::string& text) {
        DeviceMemory memory;
        return run(read(text).at(0), {1, 128, 4096, {}}, memory).products;
    };
    CHECK(executed(product(fence, wait)) == 4);
    CHECK_THROWS(Fault, executed(product("", wait)), "what nobody has fenced");
    CHECK_THROWS(Fault, executed(product(fence, "")), "a register of a product that is still under way");
}

}  // namespace

int main() {
    return checks::run();
}
