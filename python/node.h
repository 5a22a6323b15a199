// The one way to attach a gradient: a node of the tape, as PyTorch's own operators have them
// (haar.cpp is the smallest example). torch::autograd::Function, which keeps shapes, sets and named
// values too, costs some microseconds more a call (and serves compiled autograd, which these nodes
// refuse).
#pragma once

#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/autograd/variable.h>

#include <memory>
#include <utility>

#include "torch_common.h"

namespace lddgan {

using torch::autograd::Node;
using torch::autograd::SavedVariable;
using torch::autograd::set_history;
using torch::autograd::variable_list;

// A new node whose gradients go to `inputs`, tensors and optional ones; null where none of them
// needs one. PyTorch owns its nodes by its own counted pointers, before 2.13 by shared ones.
template <typename Kind, typename... Inputs>
auto node_for(const Inputs&... inputs) {
  using Owner = decltype(torch::autograd::Edge::function);
  auto make = [] {
    if constexpr (std::is_same_v<Owner, std::shared_ptr<Node>>) {
      return std::shared_ptr<Kind>(new Kind, [](auto* node) { deleteNode(node); });
    } else {
      return c10::make_intrusive<Kind>();
    }
  };
  decltype(make()) node;
  if (torch::autograd::compute_requires_grad(inputs...)) {
    node = make();
    node->set_next_edges(torch::autograd::collect_next_edges(inputs...));
  }
  return node;
}

// Calls an operator beneath autograd, for which the caller's node stands in.
template <typename Call>
auto below_autograd(const Call& call) {
  at::AutoDispatchBelowADInplaceOrView guard;
  return call();
}

struct FirstOrderOnly : Node {
  const char* op;
  std::string name() const override { return "FirstOrderOnly"; }
  variable_list apply(variable_list&&) override {
    TORCH_CHECK(false, op,
                ": its gradient cannot be differentiated again on this backend; "
                "use backend='reference'");
  }
};

// For gradients made from `inputs` by a kernel: where they would be differentiated, that raises.
template <typename... Inputs>
void first_order_only(const char* op, const variable_list& gradients, const Inputs&... inputs) {
  if (auto node = node_for<FirstOrderOnly>(inputs...)) {
    node->op = op;
    set_history(gradients, node);
  }
}

}  // namespace lddgan
