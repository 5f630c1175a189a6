// The one exception of this library. It never crosses the boundary of a TensorRT interface: see plugin/guard.h.
#pragma once

#include <stdexcept>
#include <string>

namespace aff_deploy {

class Error : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

// Throws an Error with the message unless the condition holds. The message is built only when it is needed.
template <typename Message>
void require(bool condition, Message&& message) {
    if (!condition) {
        throw Error(message());
    }
}

}  // namespace aff_deploy
