// Orders that nms and soft_nms need on a CPU: stable sorts of indices by keys of 64 bits, and the categories of a
// batch.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <optional>
#include <utility>
#include <vector>

#include "../tensor.h"

namespace fastnets {

// A key whose unsigned order is the reverse of a float's: highest first, NaN before infinity as torch.sort has it, and
// -0 like 0.
inline uint64_t descending_key(double value) {
  if (value != value) return 0;
  value += 0.0;
  uint64_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits >> 63 ? bits : ~(bits | uint64_t{1} << 63);
}
inline uint64_t descending_key(float value) {
  if (value != value) return 0;
  value += 0.0f;
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits >> 31 ? bits : static_cast<uint32_t>(~(bits | uint32_t{1} << 31));
}

inline uint64_t ascending_key(int64_t value) {
  return static_cast<uint64_t>(value) ^ uint64_t { 1 } << 63;
}

// Sorts indices by key(index), keeping the order of equal ones: counts of 11 bits at a time, from the lowest. Bits that
// all keys share cost nothing but the look at them.
template <typename Key>
void sort_by_key(std::vector<int64_t>& indices, const Key& key) {
  constexpr int kBits = 11, kDigits = (64 + kBits - 1) / kBits;
  const size_t n = indices.size();
  if (n < 2) return;
  std::vector<std::pair<uint64_t, int64_t>> items(n), other(n);
  std::array<std::array<int64_t, 1 << kBits>, kDigits> counts{};
  const auto digit = [](uint64_t k, int d) { return (k >> (d * kBits)) & ((1 << kBits) - 1); };
  for (size_t i = 0; i < n; ++i) {
    items[i] = {key(indices[i]), indices[i]};
    for (int d = 0; d < kDigits; ++d) ++counts[d][digit(items[i].first, d)];
  }
  for (int d = 0; d < kDigits; ++d) {
    auto& count = counts[d];
    if (count[digit(items[0].first, d)] == static_cast<int64_t>(n)) continue;
    std::exclusive_scan(count.begin(), count.end(), count.begin(), int64_t{0});
    for (const auto& item : items) other[count[digit(item.first, d)]++] = item;
    items.swap(other);
  }
  for (size_t i = 0; i < n; ++i) indices[i] = items[i].second;
}

inline std::vector<int64_t> all_indices(int64_t n) {
  std::vector<int64_t> indices(n);
  std::iota(indices.begin(), indices.end(), 0);
  return indices;
}

// Boxes of one category behind each other: category i has members[begins[i]] to members[begins[i + 1]].
struct Categories {
  std::vector<int64_t> members, begins;

  int64_t count() const { return static_cast<int64_t>(begins.size()) - 1; }
  int64_t size(int64_t i) const { return begins[i + 1] - begins[i]; }
};

// Sorts members by category, if there are several, and keeps their order within one.
inline Categories categories(std::vector<int64_t> members, const std::optional<Tensor>& ids) {
  Categories c{std::move(members), {0}};
  if (ids) {
    const auto* id = data<int64_t>(*ids);
    const int64_t step = ids->stride(0);
    sort_by_key(c.members, [&](int64_t i) { return ascending_key(id[i * step]); });
    for (size_t i = 1; i < c.members.size(); ++i)
      if (id[c.members[i] * step] != id[c.members[i - 1] * step]) c.begins.push_back(i);
  }
  c.begins.push_back(c.members.size());
  return c;
}

}  // namespace fastnets
