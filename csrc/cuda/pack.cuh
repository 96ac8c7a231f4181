// V neighbours that one instruction loads or stores.
#pragma once

namespace fastnets {

template <typename T, int V>
struct alignas(sizeof(T) * V) Pack {
  T at[V];
};

}  // namespace fastnets
