// What a PTX text says about the parameters of its entries.
//
// cuLaunchKernel reads as many arguments as the kernel has parameters, whatever it is given: a kernel with other
// parameters than expected would read past the end or take one value for another. So they are compared first.
#pragma once

#include <string>
#include <vector>

namespace aff_deploy::cuda {

// The state-space-free type names of an entry's parameters, as PTX spells them: "u64", "u32", "f32".
// Throws Error if the text has no such entry.
std::vector<std::string> entry_parameters(const std::string& ptx, const std::string& entry);

// Threads of a block that the entry requires (.reqntid), or 0 if it names none.
unsigned int required_threads(const std::string& ptx, const std::string& entry);

}  // namespace aff_deploy::cuda
