#include "memory.h"

#include <algorithm>
#include <cstring>

namespace ptx {
namespace {

constexpr std::uint64_t kSector = 32;
constexpr std::size_t kAligned = 256;
constexpr std::uint32_t kHost = 1;

[[noreturn]] void refuse(const char* what, std::uint64_t address, std::size_t bytes) {
    throw Fault(std::string(what) + ": " + std::to_string(bytes) + " bytes at " + std::to_string(address));
}

void check_aligned(std::uint64_t address, std::size_t bytes) {
    if (address % bytes != 0) {
        refuse("misaligned access", address, bytes);
    }
}

}  // namespace

void* DeviceMemory::allocate(std::size_t bytes) {
    Range made;
    made.bytes = bytes;
    made.data = std::make_unique<std::uint8_t[]>(bytes + kAligned);
    made.begin = (reinterpret_cast<std::uint64_t>(made.data.get()) + kAligned - 1) / kAligned * kAligned;
    made.writer.resize(bytes);
    made.reader.resize(bytes / kSector + 1);
    const std::uint64_t begin = made.begin;
    ranges_[begin] = std::move(made);
    return reinterpret_cast<void*>(begin);
}

bool DeviceMemory::free(void* address) {
    return ranges_.erase(reinterpret_cast<std::uint64_t>(address)) != 0;
}

void DeviceMemory::fill(void* address, const void* from, std::size_t bytes) {
    if (bytes == 0) {
        return;
    }
    const auto where = reinterpret_cast<std::uint64_t>(address);
    Range& range = find(where, bytes);
    std::fill_n(range.writer.begin() + static_cast<std::ptrdiff_t>(where - range.begin), bytes, kHost);
    std::memcpy(address, from, bytes);
}

std::uint32_t DeviceMemory::begin_launch(std::uint32_t blocks) {
    first_block_ = next_block_;
    next_block_ += blocks;
    return first_block_;
}

DeviceMemory::Range& DeviceMemory::find(std::uint64_t address, std::size_t bytes) {
    auto found = ranges_.upper_bound(address);
    if (found == ranges_.begin() || (--found, address - found->first + bytes > found->second.bytes)) {
        refuse("access outside of every allocation", address, bytes);
    }
    return found->second;
}

DeviceMemory::Range& DeviceMemory::accessed(std::uint64_t address, std::size_t bytes, std::uint32_t block, bool written) {
    check_aligned(address, bytes);
    Range& range = find(address, bytes);
    std::uint32_t* writer = range.writer.data() + (address - range.begin);
    for (std::size_t index = 0; index < bytes; ++index) {
        if (!written && writer[index] == 0) {
            refuse("read of device memory that was never written", address, bytes);
        }
        if (writer[index] >= first_block_ && writer[index] != block) {
            refuse("access to what another block of the launch wrote", address, bytes);
        }
        writer[index] = written ? block : writer[index];
    }
    return range;
}

const void* DeviceMemory::read(std::uint64_t address, std::size_t bytes, std::uint32_t block) {
    accessed(address, bytes, block, false);
    return reinterpret_cast<const void*>(address);
}

void DeviceMemory::write(std::uint64_t address, const void* from, std::size_t bytes, std::uint32_t block) {
    accessed(address, bytes, block, true);
    std::memcpy(reinterpret_cast<void*>(address), from, bytes);
}

void DeviceMemory::count(std::vector<std::uint64_t>& addresses, bool written, std::uint32_t block) {
    if (addresses.empty()) {
        return;
    }
    Range& range = find(addresses.front(), 1);
    for (std::uint64_t& address : addresses) {
        address = (address - range.begin) / kSector;
    }
    std::sort(addresses.begin(), addresses.end());
    addresses.erase(std::unique(addresses.begin(), addresses.end()), addresses.end());
    (written ? range.traffic.written : range.traffic.read) += addresses.size();
    for (const std::uint64_t sector : addresses) {
        if (!written && range.reader[sector] != block) {
            range.reader[sector] = block;
            ++range.traffic.fetched;
        }
    }
}

void SharedMemory::check(std::uint64_t address, std::size_t bytes) const {
    check_aligned(address, bytes);
    if (address + bytes > data_.size()) {
        refuse("access outside of the block's shared memory", address, bytes);
    }
}

void SharedMemory::warp_barrier(std::uint32_t warp) {
    ++turns_[warp];
}

const std::uint8_t* SharedMemory::read(std::uint64_t address, std::size_t bytes, std::uint32_t thread) {
    check(address, bytes);
    const std::uint32_t warp = thread / 32;
    for (std::size_t index = 0; index < bytes; ++index) {
        Shadow& shadow = shadow_[address + index];
        if (!shadow.written || shadow.copying) {
            refuse(
                shadow.copying ? "read of shared memory that a copy is still writing" : "read of shared memory never written",
                address, bytes);
        }
        const bool ordered = shadow.write_epoch != epoch_ || shadow.writer == thread ||
                             (shadow.writer / 32 == warp && shadow.write_turn != turn(thread));
        if (!ordered) {
            refuse("read of what another thread wrote, with no barrier between", address, bytes);
        }
        shadow.readers = (shadow.read_epoch == epoch_ ? shadow.readers : 0) | 1U << warp;
        shadow.read_epoch = epoch_;
    }
    return data_.data() + address;
}

const std::uint8_t* SharedMemory::read_by_product(std::uint64_t address, std::size_t bytes, std::uint32_t thread) {
    const std::uint8_t* found = read(address, bytes, thread);
    for (std::size_t index = 0; index < bytes; ++index) {
        const Shadow& shadow = shadow_[address + index];
        // The writer's, or the reader's behind the barrier between them.
        if (std::max(fences_[shadow.writer / 32], fences_[thread / 32]) < shadow.write_number) {
            refuse("read by a product of what nobody has fenced", address, bytes);
        }
    }
    return found;
}

void SharedMemory::check_write(std::uint64_t address, const std::uint8_t* from, std::size_t bytes, std::uint32_t thread) const {
    check(address, bytes);
    const std::uint32_t warp = thread / 32;
    for (std::size_t index = 0; index < bytes; ++index) {
        const Shadow& shadow = shadow_[address + index];
        const bool same = from != nullptr && shadow.written && data_[address + index] == from[index];
        const bool others_wrote = shadow.written && shadow.write_epoch == epoch_ && shadow.writer != thread &&
                                  (shadow.writer / 32 != warp || shadow.write_turn == turn(thread));
        const bool others_read = shadow.read_epoch == epoch_ && (shadow.readers & ~(1U << warp)) != 0;
        if (shadow.copying || (!same && (others_wrote || others_read))) {
            refuse(shadow.copying ? "write to shared memory that a copy is still writing"
                                  : "write to what another thread wrote or read, with no barrier between",
                   address, bytes);
        }
    }
}

void SharedMemory::mark_written(std::uint64_t address, std::size_t bytes, std::uint32_t thread) {
    ++writes_;
    for (std::size_t index = 0; index < bytes; ++index) {
        Shadow& shadow = shadow_[address + index];
        shadow.written = true;
        shadow.copying = false;
        shadow.writer = static_cast<std::uint16_t>(thread);
        shadow.write_epoch = epoch_;
        shadow.write_turn = turn(thread);
        shadow.write_number = writes_;
    }
}

void SharedMemory::write(std::uint64_t address, const void* from, std::size_t bytes, std::uint32_t thread) {
    check_write(address, static_cast<const std::uint8_t*>(from), bytes, thread);
    mark_written(address, bytes, thread);
    std::memcpy(data_.data() + address, from, bytes);
}

void SharedMemory::begin_copy(std::uint64_t address, std::size_t bytes, std::uint32_t thread) {
    check_write(address, nullptr, bytes, thread);
    for (std::size_t index = 0; index < bytes; ++index) {
        shadow_[address + index].copying = true;
    }
}

void SharedMemory::land(std::uint64_t address, const void* from, std::size_t bytes, std::uint32_t thread) {
    mark_written(address, bytes, thread);
    std::memcpy(data_.data() + address, from, bytes);
}

}  // namespace ptx
