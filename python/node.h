// Nodes of the tape, as PyTorch's own operators have them. torch::autograd::Function, which keeps
// shapes, sets and named values too, costs some microseconds more a call (and serves compiled
// autograd, which these nodes refuse).
#pragma once

#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/autograd/variable.h>

#include <memory>
#include <utility>

#include "torch_common.h"

namespace lddgan {

using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

// A new node whose gradients go to `inputs`: tensors and optional ones. PyTorch owns its nodes by
// its own counted pointers, before 2.13 by shared ones.
template <typename Node, typename... Inputs>
auto make_node(const Inputs&... inputs) {
  using Owner = decltype(torch::autograd::Edge::function);
  auto made = [] {
    if constexpr (std::is_same_v<Owner, std::shared_ptr<torch::autograd::Node>>) {
      return std::shared_ptr<Node>(new Node, [](auto* node) { deleteNode(node); });
    } else {
      return c10::make_intrusive<Node>();
    }
  }();
  made->set_next_edges(torch::autograd::collect_next_edges(inputs...));
  return made;
}

}  // namespace lddgan
