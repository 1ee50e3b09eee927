// A step after the first allocates nothing: not through operator new, not through malloc.
#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <vector>

#include "gtest/gtest.h"
#include "worker/model/model.h"
#include "worker/model/optimizer.h"

namespace {

thread_local bool counting = false;
thread_local int allocations = 0;

void Count() {
  if (counting) ++allocations;
}

}  // namespace

// Sanitizers have an allocator of their own, which must not be stood in front of.
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
extern "C" {
void* __libc_malloc(std::size_t bytes);
void* __libc_calloc(std::size_t count, std::size_t bytes);
void* __libc_realloc(void* data, std::size_t bytes);
void* __libc_memalign(std::size_t alignment, std::size_t bytes);

void* malloc(std::size_t bytes) {
  Count();
  return __libc_malloc(bytes);
}
void* calloc(std::size_t count, std::size_t bytes) {
  Count();
  return __libc_calloc(count, bytes);
}
void* realloc(void* data, std::size_t bytes) {
  Count();
  return __libc_realloc(data, bytes);
}
void* aligned_alloc(std::size_t alignment, std::size_t bytes) {
  Count();
  return __libc_memalign(alignment, bytes);
}
int posix_memalign(void** data, std::size_t alignment, std::size_t bytes) {
  Count();
  *data = __libc_memalign(alignment, bytes);
  return *data == nullptr ? ENOMEM : 0;
}
}  // extern "C"
#endif

namespace paceline {
namespace {

TEST(ModelAllocationTest, AStepAfterTheFirstAllocatesNothing) {
  ModelSection section;
  section.vocab_size = 256;
  section.hidden_size = 128;
  section.num_hidden_layers = 2;
  section.num_attention_heads = 4;
  section.num_key_value_heads = 2;
  section.head_dim = 32;
  section.intermediate_size = 384;
  section.n_routed_experts = 8;
  section.n_shared_experts = 1;
  section.num_experts_per_tok = 2;
  section.moe_intermediate_size = 96;
  section.first_k_dense_replace = 1;
  Stream compute(Stream::Mode::kInline, "compute");
  auto created = Model::Create(section, {2, 64, true}, compute);
  ASSERT_TRUE(created.ok()) << created.status();
  Model& model = **created;
  model.Initialize(1);
  std::vector<float> exp_avg(model.weights().size());
  std::vector<float> exp_avg_sq(model.weights().size());
  std::vector<std::int32_t> tokens(129);
  const std::function<void(std::size_t)> bucket_ready = [](std::size_t) {};
  for (int step = 1; step <= 4; ++step) {
    // Other tokens go to other experts in other numbers, and that must not matter.
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      tokens[i] = static_cast<std::int32_t>((i * i + static_cast<std::size_t>(step) * 77) % 256);
    }
    const std::span<const std::int32_t> all(tokens);
    counting = step > 1;
    const float loss = model.Forward({all.first(128), all.last(128), 2, 64});
    model.Backward(1.0f / 128, /*accumulate=*/false, bucket_ready);
    const double squares = SumOfSquares(compute, model.gradients());
    AdamWOverParameters(compute, {.step = step, .learning_rate = 1e-2f}, model.parameters(), 0,
                        static_cast<std::int64_t>(model.weights().size()), model.weights(),
                        model.gradients(), exp_avg, exp_avg_sq);
    model.UpdateRouterBias(0.001f);
    model.ResetExpertTokens();
    counting = false;
    EXPECT_GT(loss, 0);
    EXPECT_GT(squares, 0);
    EXPECT_EQ(allocations, 0) << "step " << step;
  }
}

}  // namespace
}  // namespace paceline
