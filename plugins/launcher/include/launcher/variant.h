// Which member of the family an operator is; its name says so (aff_deploy/ops/operator.py, Variant.op_type).
#pragma once

#include <string>
#include <vector>

namespace aff_deploy {

struct Variant {
    bool blend = true;              // with a second input y
    bool explicit_context = false;  // with an input a that the attention looks at
    bool local = true;
    bool global = true;
    bool silu = false;          // the activation, else ReLU
    bool hard_sigmoid = false;  // the gate, else sigmoid

    std::string name() const;
    int data_inputs() const { return 1 + (blend ? 1 : 0) + (explicit_context ? 1 : 0); }
    // Data, then w1, b1, w2, b2 of each branch, local first.
    int inputs() const { return data_inputs() + 4 * ((local ? 1 : 0) + (global ? 1 : 0)); }
};

// Every operator that there are kernels for, each once.
const std::vector<Variant>& all_variants();

}  // namespace aff_deploy
