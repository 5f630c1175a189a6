// Memory that knows what was written by whom, and refuses what NVIDIA's compute-sanitizer would report: accesses outside of an
// allocation or misaligned (memcheck), of bytes that nobody wrote (initcheck), and hazards between threads (racecheck).
//
// Addresses of device memory are the host's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace ptx {

struct Fault : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Sectors of 32 bytes, the unit in which memory is moved. What blocks ask the L2 cache for lies between `fetched` and `read`,
// since some of what a block reads again is still in its L1 cache.
struct Traffic {
    std::uint64_t read = 0;     // by a warp, however many of its lanes share one
    std::uint64_t fetched = 0;  // by a block, however many of its warps read one, or one of them again
    std::uint64_t written = 0;  // by a warp
};

class DeviceMemory {
  public:
    void* allocate(std::size_t bytes);
    bool free(void* address);
    void clear() { ranges_.clear(); }
    // The host wrote: such bytes may be read from now on.
    void fill(void* address, const void* from, std::size_t bytes);

    // Blocks of a launch get numbers from the result on. What another block of the same launch wrote must not be touched:
    // nothing says which of the two comes first.
    std::uint32_t begin_launch(std::uint32_t blocks);

    // Throw Fault. `block` is the accessing block's number.
    const void* read(std::uint64_t address, std::size_t bytes, std::uint32_t block);
    void write(std::uint64_t address, const void* from, std::size_t bytes, std::uint32_t block);
    // Counts the sectors of one access of a warp; the addresses become sectors.
    void count(std::vector<std::uint64_t>& addresses, bool written, std::uint32_t block);

    // Since the allocation; throws Fault where there is none.
    Traffic traffic(std::uint64_t address) { return find(address, 1).traffic; }

  private:
    struct Range {
        std::uint64_t begin = 0;
        std::size_t bytes = 0;
        std::unique_ptr<std::uint8_t[]> data;  // with room to begin at a multiple of 256
        std::vector<std::uint32_t> writer;     // of every byte: 0 nobody, 1 the host, else a block
        std::vector<std::uint32_t> reader;     // of every sector: the last block
        Traffic traffic;
    };
    Range& find(std::uint64_t address, std::size_t bytes);
    Range& accessed(std::uint64_t address, std::size_t bytes, std::uint32_t block, bool written);

    std::map<std::uint64_t, Range> ranges_;
    std::uint32_t next_block_ = 2;
    std::uint32_t first_block_ = 2;  // of the current launch
};

// Shared memory of one block.
//
// A hazard: a byte that one thread wrote and another one reads or writes, or that one warp read and another one writes, with
// no barrier of the block between (of the warp, for two threads of one warp). Writing what is there already is none.
class SharedMemory {
  public:
    explicit SharedMemory(std::size_t bytes) : data_(bytes), shadow_(bytes) {}

    const std::uint8_t* read(std::uint64_t address, std::size_t bytes, std::uint32_t thread);
    void write(std::uint64_t address, const void* from, std::size_t bytes, std::uint32_t thread);
    // Read by a product that does not see what threads wrote until they fenced it.
    const std::uint8_t* read_by_product(std::uint64_t address, std::size_t bytes, std::uint32_t thread);
    void fence(std::uint32_t warp) { fences_[warp] = writes_; }
    // An asynchronous copy is under way from `begin_copy` to `land`, and its bytes must not be touched.
    void begin_copy(std::uint64_t address, std::size_t bytes, std::uint32_t thread);
    void land(std::uint64_t address, const void* from, std::size_t bytes, std::uint32_t thread);

    void barrier() { ++epoch_; }
    void warp_barrier(std::uint32_t warp);

  private:
    struct Shadow {
        bool written = false;
        bool copying = false;
        std::uint16_t writer = 0;       // thread
        std::uint32_t write_epoch = 0;  // barriers of the block before the write
        std::uint32_t write_turn = 0;   // barriers of the warp
        std::uint64_t write_number = 0;
        std::uint32_t read_epoch = 0;
        std::uint32_t readers = 0;  // warps, a bit each
    };
    void check(std::uint64_t address, std::size_t bytes) const;
    // Throws for a write now; marks nothing.
    void check_write(std::uint64_t address, const std::uint8_t* from, std::size_t bytes, std::uint32_t thread) const;
    void mark_written(std::uint64_t address, std::size_t bytes, std::uint32_t thread);
    std::uint32_t turn(std::uint32_t thread) const { return turns_[thread / 32]; }

    std::vector<std::uint8_t> data_;
    std::vector<Shadow> shadow_;
    std::uint32_t epoch_ = 1;
    std::uint32_t turns_[32] = {};
    std::uint64_t writes_ = 0;       // so far
    std::uint64_t fences_[32] = {};  // how many there were at the last fence of each warp
};

}  // namespace ptx
