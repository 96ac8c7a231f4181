// Included first: the compiler must round each operation on its own, where it would make a * b + c one of them.
#pragma once

#if defined(__clang__)
#pragma clang fp contract(off)
#else
#pragma GCC optimize("fp-contract=off")
#endif
