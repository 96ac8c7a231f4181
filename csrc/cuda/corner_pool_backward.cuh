// Kernels of corner pooling's gradient. Lanes and rows are dealt to threads as in corner_pool.cuh.
//
// Work. A place where a maximum begins receives the sum of dy from there to where the next one begins; all else
// receives 0. `collect` goes along x for those places, then back over dy, adding up. In between, the bits that say
// where maxima begin lie in dx, in the places of the sums to come: a number of T has bits for 8 * sizeof(T) places.
// `collect_rows` has 32 * V places in a warp's registers, and its shuffles add up from the other end; a maximum that
// began before these is added to and written again by the thread that has it.
//
// Bytes. 3 * bytes a number, each read and written once; `collect` writes and reads 1 / (8 * sizeof(T)) of dx more. No
// atomics: the same bits on every run.
#pragma once

#include <cstring>

#include "corner_pool.cuh"

namespace fastnets {

template <typename T>
using Bits = std::conditional_t<sizeof(T) == 8, uint64_t, std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t>>;

template <typename T, int V>
__global__ void __launch_bounds__(kThreads, kBlocks)
    collect(const T* __restrict__ dy, const T* __restrict__ x, T* __restrict__ dx, const Strides dys, const Strides xs,
            const Strides dxs, const Lanes g, const bool first) {
  using A = Number<T>;
  constexpr int64_t kPlaces = 8 * sizeof(T);
  const int64_t lane = (blockIdx.x * int64_t{kThreads} + threadIdx.x) * V;
  if (lane >= g.count) return;
  dy += g.offset(lane, dys);
  x += g.offset(lane, xs);
  dx += g.offset(lane, dxs);
  Pack<Bits<T>, V> begins;
  Pack<T, V> kept;  // those bits as numbers
  auto m = numbers(load<V>(x));
  for (int64_t start = 0; start < g.length; start += kPlaces) {
    begins = splat<V>(static_cast<Bits<T>>(start == 0));
    const int places = static_cast<int>(min(kPlaces, g.length - start));
#pragma unroll 8
    for (int i = 0; i < places; ++i) {
      const auto in = numbers(load<V>(x + (start + i) * xs.step));
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const bool begin = takes(m.at[v], in.at[v], first);
        if (begin) begins.at[v] |= Bits<T>(1) << i;
        m.at[v] = later(m.at[v], in.at[v]);
      }
    }
    std::memcpy(&kept, &begins, sizeof kept);
    store_pack(dx + start * dxs.step, kept);
  }
  auto sum = splat<V>(A(0)), out = sum;
  for (int64_t start = (g.length - 1) / kPlaces * kPlaces; start >= 0; start -= kPlaces) {
    kept = load<V>(dx + start * dxs.step);
    std::memcpy(&begins, &kept, sizeof kept);
    const int places = static_cast<int>(min(kPlaces, g.length - start));
#pragma unroll 8
    for (int i = places - 1; i >= 0; --i) {
      sum = sum + numbers(load<V>(dy + (start + i) * dys.step));
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const bool begin = begins.at[v] & Bits<T>(1) << i;
        out.at[v] = begin ? sum.at[v] : A(0);
        sum.at[v] = begin ? A(0) : sum.at[v];
      }
      store(dx + (start + i) * dxs.step, out);
    }
  }
}

template <typename T, int V, bool kReverse>
__global__ void __launch_bounds__(kThreads, kBlocks)
    collect_rows(const T* __restrict__ dy, const T* __restrict__ x, T* __restrict__ dx, const Strides dys,
                 const Strides xs, const Strides dxs, const Rows g, const bool first) {
  using A = Number<T>;
  const Part part(g);
  const int lane = threadIdx.x % 32;
  dy += part.offset(dys);
  x += part.offset(xs);
  dx += part.offset(dxs);
  for (int row = 0; row < g.chunk; ++row) {
    const bool there = part.there && row < part.rows;
    A carry = kLowest<A>, newest = 0;
    int newest_place = -1;  // where the newest maximum of earlier threads begins, in the thread that has that place
    for (int start = 0; start < g.length; start += g.threads * V) {
      const int place = start + part.thread * V, near = min(place, g.length - V);
      const auto value = numbers(load<V>(x + offset_in_row<V>(near, xs.step, kReverse), kReverse));
      const auto d = numbers(load<V>(dy + offset_in_row<V>(near, dys.step, kReverse), kReverse));
      A total = value.at[0];
#pragma unroll
      for (int v = 1; v < V; ++v) total = later(total, value.at[v]);
      A m = later(carry, maximum_before(total, g.threads));
      carry = shuffle(later(m, total), 31);
      bool begin[V], any = false;
      A sum = 0;  // of what precedes the first beginning
#pragma unroll
      for (int v = 0; v < V; ++v) {
        begin[v] = takes(m, value.at[v], first) || (v == 0 && place == 0);
        any = any || begin[v];
        m = later(m, value.at[v]);
        if (!any) sum += d.at[v];
      }
      // It goes on over the threads up to the next in which a maximum begins.
      const unsigned beginning = ballot(any && place == near), ahead = beginning >> lane;
      const int after = min((g.length - 1 - near) / V, g.threads - 1 - part.thread);
      const int reach = min(after, ahead ? highest_bit(ahead & (0 - ahead)) : 31);
#pragma unroll
      for (int distance = 1; distance < 32; distance *= 2) {
        const A more = shuffle(sum, min(lane + distance, 31));
        if (distance <= reach) sum += more;
      }
      const A older = shuffle(sum, 0), next = shuffle(sum, min(lane + 1, 31));
      sum = after > 0 ? next : A(0);
      auto out = splat<V>(A(0));
#pragma unroll
      for (int v = V - 1; v >= 0; --v) {
        sum += d.at[v];
        out.at[v] = begin[v] ? sum : A(0);
        sum = begin[v] ? A(0) : sum;
      }
      if (there && place == near) store(dx + offset_in_row<V>(place, dxs.step, kReverse), out, kReverse);
      if (g.length <= 32 * V) break;
      if (newest_place >= 0) dx[newest_place * dxs.step] = static_cast<T>(newest += older);
      if (beginning) newest_place = -1;
#pragma unroll
      for (int v = 0; v < V; ++v)
        if (there && ahead == 1 && begin[v]) newest_place = place + v, newest = out.at[v];
    }
    if (row + 1 < part.rows) dy += dys.w, x += xs.w, dx += dxs.w;
  }
}

}  // namespace fastnets
