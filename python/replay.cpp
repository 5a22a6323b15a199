// Recorded operators, called one after the other without Python (diffusion/recording.py).
#include "replay.h"

#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/jit/python/pybind_utils.h>

#include <unordered_map>

#include "torch_common.h"

namespace py = pybind11;

namespace lddgan {
namespace {

constexpr int kConstant = -1;

// A slot is a tensor that changes from call to call: an input, or what a recorded operator made.
struct Use {
  int slot;
  bool last;  // nothing reads the slot after this
};

struct Argument {
  c10::IValue constant;
  std::vector<Use> uses;  // none: a constant; one; or, for a list, one for each of its items
};

struct Call {
  c10::OperatorHandle op;
  std::vector<Argument> arguments;
  std::vector<Use> results;  // tensors and the items of lists, in order
};

class Record {
 public:
  // calls: of (OpOverload, args, kwargs, output), with one tensor for each slot, kept alive by the
  // caller. Tensors that are neither inputs nor results of calls are constants.
  Record(const py::list& calls, const py::sequence& inputs, const at::Tensor& result) {
    for (py::handle input : inputs) slot_of_.emplace(key(input), count_++);
    inputs_ = count_;
    for (py::handle call : calls) add(call.cast<py::tuple>());
    result_ = argument(result);
    set_last_uses();
    slot_of_.clear();
  }

  at::Tensor run(const py::args& inputs) const {
    TORCH_CHECK(py::ssize_t(inputs.size()) == inputs_, "Record: expected ", inputs_,
                " inputs, got ", inputs.size());
    std::vector<c10::IValue> slots(count_);
    for (int i = 0; i < inputs_; ++i) slots[i] = THPVariable_Unpack(inputs[i].ptr());
    py::gil_scoped_release release;
    // The calls were recorded below autograd, which has nothing to do without gradients.
    at::AutoDispatchBelowADInplaceOrView guard;
    torch::jit::Stack stack;
    for (const Call& call : calls_) {
      for (const Argument& argument : call.arguments) push(stack, argument, slots);
      call.op.callBoxed(stack);
      store(stack, call, slots);
      stack.clear();
    }
    push(stack, result_, slots);
    return std::move(stack.back()).toTensor();
  }

 private:
  static const at::TensorImpl* key(py::handle tensor) {
    return THPVariable_Unpack(tensor.ptr()).unsafeGetTensorImpl();
  }

  void add(const py::tuple& recorded) {
    py::object schema = recorded[0].attr("_schema");
    auto op = c10::Dispatcher::singleton().findSchemaOrThrow(
        schema.attr("name").cast<std::string>().c_str(),
        schema.attr("overload_name").cast<std::string>().c_str());
    torch::jit::ToIValueAllowNumbersAsTensors numbers(true);  // where Python has x * 2
    auto stack = torch::jit::createStackForSchema(
        op.schema(), torch::jit::tuple_slice(recorded[1].cast<py::tuple>()),
        py::kwargs(recorded[2].cast<py::dict>()), std::nullopt);
    Call call{op, {}, {}};
    for (c10::IValue& value : stack) call.arguments.push_back(argument(std::move(value)));
    py::object output = recorded[3];
    if (THPVariable_Check(output.ptr())) {
      add_result(call, output);
    } else {
      for (py::handle part : output) {
        if (THPVariable_Check(part.ptr())) {
          add_result(call, part);
        } else {
          for (py::handle item : part) add_result(call, item);
        }
      }
    }
    calls_.push_back(std::move(call));
  }

  void add_result(Call& call, py::handle tensor) {
    auto [entry, fresh] = slot_of_.try_emplace(key(tensor), count_);
    count_ += fresh;
    call.results.push_back({entry->second, false});
  }

  Argument argument(c10::IValue value) const {
    std::vector<Use> uses;
    if (value.isTensor()) {
      int slot = find(value);
      if (slot != kConstant) uses.push_back({slot, false});
    } else if (value.isList()) {
      bool constant = true;
      auto list = value.toList();
      for (size_t i = 0; i < list.size(); ++i) {
        uses.push_back({find(list.get(i)), false});
        if (uses.back().slot == kConstant) continue;
        list.set(i, at::Tensor());  // not the recording's own
        constant = false;
      }
      if (constant) uses.clear();
    }
    if (value.isTensor() && !uses.empty()) value = {};
    return {std::move(value), std::move(uses)};
  }

  int find(const c10::IValue& value) const {
    if (!value.isTensor()) return kConstant;
    auto entry = slot_of_.find(value.toTensor().unsafeGetTensorImpl());
    return entry == slot_of_.end() ? kConstant : entry->second;
  }

  // Seen from the end a slot's first use is its last; a result that is not read goes at once.
  void set_last_uses() {
    std::vector<bool> seen(count_);
    auto mark = [&](Use& use) {
      if (use.slot == kConstant || seen[use.slot]) return;
      use.last = seen[use.slot] = true;
    };
    for (Use& use : result_.uses) mark(use);
    for (auto call = calls_.rbegin(); call != calls_.rend(); ++call) {
      for (Use& use : call->results) mark(use);
      for (auto arg = call->arguments.rbegin(); arg != call->arguments.rend(); ++arg) {
        for (auto use = arg->uses.rbegin(); use != arg->uses.rend(); ++use) mark(*use);
      }
    }
  }

  static c10::IValue take(const Use& use, std::vector<c10::IValue>& slots) {
    return use.last ? std::move(slots[use.slot]) : slots[use.slot];
  }

  static void push(torch::jit::Stack& stack, const Argument& argument,
                   std::vector<c10::IValue>& slots) {
    if (argument.uses.empty()) {
      stack.push_back(argument.constant);
    } else if (!argument.constant.isList()) {
      stack.push_back(take(argument.uses[0], slots));
    } else {
      auto list = argument.constant.toList().copy();
      for (size_t i = 0; i < argument.uses.size(); ++i) {
        if (argument.uses[i].slot != kConstant) list.set(i, take(argument.uses[i], slots));
      }
      stack.push_back(std::move(list));
    }
  }

  static void store(torch::jit::Stack& stack, const Call& call, std::vector<c10::IValue>& slots) {
    size_t next = 0;
    auto put = [&](c10::IValue value) {
      const Use& use = call.results[next++];
      if (!use.last) slots[use.slot] = std::move(value);
    };
    for (c10::IValue& value : stack) {
      if (value.isTensor()) {
        put(std::move(value));
      } else {
        for (const c10::IValue& item : value.toListRef()) put(item);
      }
    }
  }

  std::vector<Call> calls_;
  std::unordered_map<const at::TensorImpl*, int> slot_of_;  // while recording
  Argument result_;
  int count_ = 0, inputs_ = 0;
};

}  // namespace

void add_replay(py::module_& m) {
  py::class_<Record>(m, "Record").def("__call__", [](const Record& self, const py::args& inputs) {
    HANDLE_TH_ERRORS
    return self.run(inputs);
    END_HANDLE_TH_ERRORS_PYBIND
  });
  m.def("record", [](const py::list& calls, const py::sequence& inputs, const at::Tensor& result) {
    HANDLE_TH_ERRORS
    return Record(calls, inputs, result);
    END_HANDLE_TH_ERRORS_PYBIND
  });
}

}  // namespace lddgan
