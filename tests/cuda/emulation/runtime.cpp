// The emulated device. Each thread of a block is a fiber that runs until it waits at a barrier or in a warp operation,
// or is preempted; blocks run one after the other.
//
// Kernels are compiled with the instrumentation of -fsanitize=thread and -fsanitize=undefined but linked to this file
// instead of the libraries behind it: the callbacks at the end are called for each load and store. So bounds, shared
// memory that nothing was written to, and accesses that no barrier orders are seen in an ordinary process. This file
// itself is compiled without instrumentation.
//
// Not modelled: weak memory order (threads see stores at once), other streams, exact rounding of approximate
// instructions. Doubles are flushed to zero like floats, where a GPU flushes floats only.
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <link.h>
#include <sys/mman.h>
#include <vector>
#ifdef __x86_64__
#include <xmmintrin.h>
#else
#include <ucontext.h>
#endif

extern "C" {
struct Index { unsigned x, y, z; };
struct emu_range { uintptr_t low, high; int writable, index; uint64_t bytes_read, bytes_written; };
struct emu_settings {
  unsigned grid[3], block[3];
  uint64_t dynamic_shared, max_shared, seed, max_accesses;
  int order, preempt, checked, races;
};
}

namespace {
typedef unsigned long long u64;
constexpr size_t STACK = 128 << 10, SHARED = 256 << 10, RED_ZONE = 64, STATIC_LIMIT = 48 << 10;
constexpr int THREADS = 1024, DYNAMIC = -1;
enum Order { FORWARD, REVERSE, RANDOM };

// ---- switching between fibers

#ifdef __x86_64__
extern "C" void emu_switch(void** save, void* load);
__asm__(R"(
.text
.hidden emu_switch
.globl emu_switch
.type emu_switch,@function
emu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emu_switch,.-emu_switch
)");
struct Context { void* stack_pointer = nullptr; };
void switch_to(Context& from, Context& to) { emu_switch(&from.stack_pointer, to.stack_pointer); }
void prepare(Context& context, char* stack, void (*function)()) {
  void** top = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(stack + STACK) & ~uintptr_t(15));
  *--top = nullptr;  // in place of a return address: the stack is aligned as after a call
  *--top = reinterpret_cast<void*>(function);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  context.stack_pointer = top;
}
#else
struct Context { ucontext_t state; };
void switch_to(Context& from, Context& to) { swapcontext(&from.state, &to.state); }
void prepare(Context& context, char* stack, void (*function)()) {
  getcontext(&context.state);
  context.state.uc_stack.ss_sp = stack;
  context.state.uc_stack.ss_size = STACK;
  context.state.uc_link = nullptr;
  makecontext(&context.state, function, 0);
}
#endif

// ---- state

enum State : uint8_t { READY, RUNNING, AT_BARRIER, IN_WARP, RETURNED };
struct Thread {
  Context context;
  Index index;
  unsigned number = 0, warp = 0, lane = 0;
  State state = RETURNED;
  int line = 0;                 // where it waits
  uint32_t warp_barriers = 0;   // __syncwarp() passed
  uint64_t accesses = 0;
};
struct Operation {  // of a warp, for which lanes arrive and leave one by one
  uint32_t mask = 0, arrived = 0, left = 0;
  int kind = 0, line = 0;
  uint64_t value[32];
};
struct Warp {
  std::vector<Operation> operations;
  uint32_t present = 0, returned = 0;
};
struct Access {
  uint32_t thread = 0, barriers = 0, warp_barriers = 0, place = 0;  // thread: 1 + its number in the grid
  uint8_t bytes = 0, atomic = 0;
};
struct Cell { Access write, read, earlier_read, other_block; };  // what is remembered of 4 bytes
struct Variable { uintptr_t low, high; const char* name; int number; const void* type; };
struct Range { emu_range* given; std::vector<Cell> cells; };

struct Device {
  const emu_settings* settings = nullptr;
  void (*kernel)(void**) = nullptr;
  void** values = nullptr;
  char *stacks = nullptr, *shared = nullptr, *message = nullptr;
  size_t message_size = 0;
  Context scheduler;
  std::vector<Thread> threads{THREADS};
  Thread* current = nullptr;
  bool running = false, failed = false;
  Index block_index, block_size, grid_size;
  uint32_t size = 0, block = 0, alive = 0;
  uint32_t barriers = 0, waiting = 0;  // barriers passed by the block; threads at the next
  int barrier_line = 0, barrier_kind = 0, barrier_count = 0, barrier_result = 0;
  std::vector<Warp> warps;
  std::vector<unsigned> ready;
  std::vector<Variable> variables;
  size_t shared_used = 0;
  std::vector<Cell> shared_cells;
  std::vector<Range> ranges;
  size_t last_range = 0;
  uintptr_t module = 0;
  std::vector<std::pair<uintptr_t, uintptr_t>> module_data;
  uint64_t random = 1;
} device;

uint64_t draw() {
  uint64_t& r = device.random;
  r ^= r << 13;
  r ^= r >> 7;
  r ^= r << 17;
  return r;
}
u64 place(uintptr_t address) { return address - device.module; }

[[noreturn]] void fail(const char* format, ...) {
  int used = 0;
  if (Thread* t = device.current)
    used = snprintf(device.message, device.message_size, "block (%u, %u, %u), thread (%u, %u, %u): ",
                    device.block_index.x, device.block_index.y, device.block_index.z, t->index.x, t->index.y,
                    t->index.z);
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(device.message + used, device.message_size - used, format, arguments);
  va_end(arguments);
  device.failed = true;
  Context never_resumed;
  switch_to(never_resumed, device.scheduler);
  __builtin_unreachable();
}

void wait() { switch_to(device.current->context, device.scheduler); }
void wake(Thread& thread) {
  thread.state = READY;
  device.ready.push_back(thread.number);
}

void run_thread() {
  device.kernel(device.values);
  Thread& me = *device.current;
  me.state = RETURNED;
  --device.alive;
  device.warps[me.warp].returned |= 1u << me.lane;
  if (device.waiting)
    fail("returned while %u thread(s) wait at __syncthreads(), line %d", device.waiting, device.barrier_line);
  Context never_resumed;
  switch_to(never_resumed, device.scheduler);
}

struct Named {  // memory, for a message
  const char* name;
  int index;
  size_t start;
  void write(char* out, size_t size) const {
    if (index < 0) snprintf(out, size, "%s", name);
    else snprintf(out, size, "%s %d", name, index);
  }
};

// ---- races: accesses to the same bytes, one of them a write, that no barrier orders

bool unordered(const Access& earlier, uint32_t thread) {
  if (!earlier.thread || earlier.thread == thread) return false;
  const uint32_t block = (earlier.thread - 1) / device.size, number = (earlier.thread - 1) % device.size;
  if (block != device.block) return true;
  if (earlier.barriers != device.barriers) return false;
  return number / 32 != device.current->warp || earlier.warp_barriers == device.current->warp_barriers;
}

void check_cell(Cell& cell, Access now, bool write, const Named& memory, size_t offset) {
  auto compare = [&](const Access& earlier, const char* what) {
    if (!(earlier.bytes & now.bytes) || !unordered(earlier, now.thread)) return;
    const uint32_t other = earlier.thread - 1;
    char name[64];
    memory.write(name, sizeof name);
    fail("race on %s + %zu bytes: this %s and the %s by block %u, thread %u are not ordered by a barrier "
         "@@=%llx @@before=%llx",
         name, offset - memory.start, now.atomic ? "atomic" : write ? "write" : "read", earlier.atomic ? "earlier atomic" : what,
         other / device.size, other % device.size, u64(now.place), u64(earlier.place));
  };
  if (!(now.atomic && cell.write.atomic)) compare(cell.write, "earlier write");
  if (write) {
    for (const Access* read : {&cell.read, &cell.earlier_read, &cell.other_block}) compare(*read, "earlier read");
    if (now.atomic && cell.write.thread != now.thread) now.bytes |= cell.write.bytes;
    cell.write = now;
  } else if (!cell.read.thread || cell.read.thread == now.thread) {
    cell.read = now;
  } else {  // two readers are kept, and one of another block
    if ((cell.read.thread - 1) / device.size != device.block) cell.other_block = cell.read;
    cell.earlier_read = cell.read;
    cell.read = now;
  }
}

void check_race(std::vector<Cell>& cells, size_t offset, size_t bytes, bool write, bool atomic, const Named& memory,
                uintptr_t address) {
  const Thread& me = *device.current;
  Access now{device.block * device.size + me.number + 1, device.barriers, me.warp_barriers, uint32_t(place(address)), 0,
             uint8_t(atomic)};
  for (size_t i = 0; i < bytes;) {
    const size_t first = (offset + i) % 4, count = bytes - i < 4 - first ? bytes - i : 4 - first;
    now.bytes = uint8_t(((1u << count) - 1) << first);
    check_cell(cells[(offset + i) / 4], now, write, memory, offset + i);
    i += count;
  }
}

// ---- every load, store and atomic

void access_shared(uintptr_t at, size_t bytes, bool write, bool atomic, uintptr_t address) {
  const char *kind = write ? "write" : "read", *near = "nothing";
  size_t distance = 0;
  for (const Variable& v : device.variables) {
    if (at >= v.low) near = v.name, distance = at - v.low;
    if (at < v.low || at + bytes > v.high) continue;
    const size_t offset = at - reinterpret_cast<uintptr_t>(device.shared);
    if (!write || atomic)
      for (size_t i = offset / 4; i <= (offset + bytes - 1) / 4; ++i)
        if (!device.shared_cells[i].write.thread)
          fail("read of uninitialised shared memory: %s + %zu bytes @@=%llx", v.name, distance, place(address));
    if (device.settings->races) check_race(device.shared_cells, offset, bytes, write, atomic, {v.name, -1, offset - distance}, address);
    else if (write)
      for (size_t i = offset / 4; i <= (offset + bytes - 1) / 4; ++i) device.shared_cells[i].write.thread = 1;
    return;
  }
  fail("%s of %zu bytes of shared memory out of bounds: %s + %zu bytes @@=%llx", kind, bytes, near, distance,
       place(address));
}

void access_global(uintptr_t at, size_t bytes, bool write, bool atomic, uintptr_t address) {
  int constant = -1;
  for (size_t i = 0; i < device.ranges.size(); ++i) {
    const size_t tried = (device.last_range + i) % device.ranges.size();
    emu_range& range = *device.ranges[tried].given;
    if (at < range.low || at + bytes > range.high) continue;
    if (write && !range.writable) {
      constant = range.index;
      continue;
    }
    device.last_range = tried;
    (write ? range.bytes_written : range.bytes_read) += bytes;
    if (std::vector<Cell>& cells = device.ranges[tried].cells; !cells.empty())
      check_race(cells, at - range.low, bytes, write, atomic, {"argument", range.index, 0}, address);
    return;
  }
  if (constant >= 0) fail("write to argument %d, which is const @@=%llx", constant, place(address));
  for (const auto& data : device.module_data)
    if (at >= data.first && at + bytes <= data.second) return;
  const emu_range* nearest = nullptr;
  size_t least = ~size_t(0);
  for (const Range& each : device.ranges) {
    const emu_range& range = *each.given;
    const size_t distance = at >= range.high ? at - range.high : at < range.low ? range.low - at : 0;
    if (distance < least) least = distance, nearest = &range;
  }
  if (!nearest) fail("access to global memory, of which no argument gives any @@=%llx", place(address));
  fail("%s of %zu bytes of global memory out of bounds: %zu bytes %s argument %d @@=%llx", write ? "write" : "read",
       bytes, least, at < nearest->low ? "before" : "past the end of", nearest->index, place(address));
}

void access(void* pointer, size_t bytes, bool write, bool atomic, void* returns_to) {
  if (!device.running || !device.settings->checked) return;
  const uintptr_t at = reinterpret_cast<uintptr_t>(pointer), address = reinterpret_cast<uintptr_t>(returns_to);
  const uintptr_t stacks = reinterpret_cast<uintptr_t>(device.stacks);
  const uintptr_t shared = reinterpret_cast<uintptr_t>(device.shared);
  Thread& me = *device.current;
  if (at - stacks < STACK * THREADS) {
    if ((at - stacks) / STACK == me.number) return;
    fail("access to the local memory of another thread @@=%llx", place(address));
  }
  if (++me.accesses > device.settings->max_accesses)
    fail("more than %llu loads and stores: an endless loop? @@=%llx", u64(device.settings->max_accesses),
         place(address));
  (at - shared < SHARED ? access_shared : access_global)(at, bytes, write, atomic, address);
  if (device.settings->preempt > 0 && draw() % uint64_t(device.settings->preempt) == 0) {
    wake(me);
    wait();
  }
}

// ---- blocks

void run_block() {
  device.barriers = device.waiting = 0;
  device.alive = device.size;
  device.shared_used = 0;
  device.variables.clear();
  device.ready.clear();
  device.warps.assign((device.size + 31) / 32, Warp{});
  const Index& size = device.block_size;
  for (unsigned i = 0; i < device.size; ++i) {
    Thread& t = device.threads[i];
    t.index = {i % size.x, i / size.x % size.y, i / (size.x * size.y)};
    t.number = i;
    t.warp = i / 32;
    t.lane = i % 32;
    t.warp_barriers = 0;
    t.accesses = 0;
    t.state = READY;
    device.warps[t.warp].present |= 1u << t.lane;
    prepare(t.context, device.stacks + size_t(i) * STACK, run_thread);
    device.ready.push_back(device.size - 1 - i);  // they come from the back
  }
  while (!device.failed && device.alive) {
    if (device.ready.empty()) {
      device.current = nullptr;
      int used = snprintf(device.message, device.message_size, "block (%u, %u, %u): deadlock", device.block_index.x,
                          device.block_index.y, device.block_index.z);
      for (unsigned i = 0, shown = 0; i < device.size && shown < 6; ++i) {
        const Thread& t = device.threads[i];
        if (t.state == RETURNED) continue;
        const char* where = t.state == AT_BARRIER ? "__syncthreads()" : "a warp operation";
        used += snprintf(device.message + used, device.message_size - used, "\n  thread %u waits in %s, line %d", i,
                         where, t.line);
        ++shown;
      }
      device.failed = true;
      return;
    }
    size_t next = device.ready.size() - 1;
    if (device.settings->order == REVERSE) next = 0;
    if (device.settings->order == RANDOM) next = draw() % device.ready.size();
    device.current = &device.threads[device.ready[next]];
    device.ready[next] = device.ready.back();
    device.ready.pop_back();
    device.current->state = RUNNING;
    switch_to(device.scheduler, device.current->context);
  }
}

int add_segments(dl_phdr_info* info, size_t, void* base) {
  if (info->dlpi_addr != *static_cast<uintptr_t*>(base)) return 0;
  for (int i = 0; i < info->dlpi_phnum; ++i)
    if (const auto& segment = info->dlpi_phdr[i]; segment.p_type == PT_LOAD) {
      const uintptr_t low = info->dlpi_addr + segment.p_vaddr;
      device.module_data.push_back({low, low + segment.p_memsz});
    }
  return 0;
}

// A variable in shared memory lies between red zones and holds NaN (or -1) at first, in each block anew.
void* place_variable(int number, const void* type, size_t bytes, size_t alignment, const char* name) {
  if (alignment < 16) alignment = 16;
  const size_t offset = (device.shared_used + RED_ZONE + alignment - 1) / alignment * alignment;
  device.shared_used = offset + bytes;
  size_t fixed = 0, dynamic = device.settings->dynamic_shared;
  for (const Variable& v : device.variables)
    if (v.number != DYNAMIC) fixed += v.high - v.low;
  if (number != DYNAMIC) fixed += bytes;
  if (fixed > STATIC_LIMIT) fail("%zu bytes of static shared memory, but at most %zu may be", fixed, STATIC_LIMIT);
  if (fixed + dynamic > device.settings->max_shared || device.shared_used + RED_ZONE > SHARED)
    fail("%zu static and %zu dynamic bytes of shared memory are more than %llu", fixed, dynamic,
         u64(device.settings->max_shared));
  memset(device.shared + offset, 0xff, bytes);
  for (size_t i = offset / 4; i <= (offset + bytes) / 4; ++i) device.shared_cells[i] = Cell{};
  const uintptr_t low = reinterpret_cast<uintptr_t>(device.shared) + offset;
  device.variables.push_back({low, low + bytes, name, number, type});
  return device.shared + offset;
}

// Result of an atomic operation on numbers, as bits.
template <class T> uint64_t apply(int operation, uint64_t old_bits, uint64_t value_bits, uint64_t other_bits) {
  T old, value, other;
  memcpy(&old, &old_bits, sizeof(T));
  memcpy(&value, &value_bits, sizeof(T));
  memcpy(&other, &other_bits, sizeof(T));
  switch (operation) {
    case 0: old += value; break;
    case 1: old -= value; break;
    case 2: old = value < old ? value : old; break;
    case 3: old = value > old ? value : old; break;
    case 4: old = value; break;
    default: old = old == value ? other : old; break;
  }
  uint64_t out = 0;
  memcpy(&out, &old, sizeof(T));
  return out;
}

}  // namespace

extern "C" {

// ---- what device.hpp calls

Index emu_thread_index() { return device.current->index; }
Index emu_block_index() { return device.block_index; }
Index emu_block_size() { return device.block_size; }
Index emu_grid_size() { return device.grid_size; }
unsigned emu_active_mask() {
  const Warp& warp = device.warps[device.current->warp];
  return warp.present & ~warp.returned;
}

void* emu_shared(int number, const void* type, size_t bytes, size_t alignment, const char* name) {
  for (const Variable& v : device.variables)
    if (v.number == number && v.type == type) return reinterpret_cast<void*>(v.low);
  return place_variable(number, type, bytes, alignment, name);
}
void* emu_dynamic_shared() {
  return emu_shared(DYNAMIC, nullptr, device.settings->dynamic_shared, 128, "dynamic shared memory");
}

int emu_barrier(int kind, int value, int line) {
  Thread& me = *device.current;
  if (!device.waiting) {
    device.barrier_line = line;
    device.barrier_kind = kind;
    device.barrier_count = 0;
  } else if (device.barrier_line != line || device.barrier_kind != kind) {
    fail("divergent barriers: this one is in line %d, but %u thread(s) wait in line %d", line, device.waiting,
         device.barrier_line);
  }
  if (device.alive < device.size)
    fail("__syncthreads() in line %d after %u thread(s) returned", line, device.size - device.alive);
  me.line = line;
  device.barrier_count += value;
  if (++device.waiting < device.size) {
    me.state = AT_BARRIER;
    wait();
    return device.barrier_result;
  }
  const int count = device.barrier_count, all = count == int(device.size), any = count > 0;
  device.barrier_result = kind == 1 ? count : kind == 2 ? all : any;
  device.waiting = 0;
  ++device.barriers;
  for (unsigned i = 0; i < device.size; ++i)
    if (device.threads[i].state == AT_BARRIER) wake(device.threads[i]);
  const int result = device.barrier_result;
  if (device.settings->order == RANDOM) {  // others may go on first
    wake(me);
    wait();
  }
  return result;
}

uint64_t emu_warp(int kind, unsigned mask, uint64_t value, int argument, int width, int line) {
  Thread& me = *device.current;
  Warp& warp = device.warps[me.warp];
  const uint32_t bit = 1u << me.lane;
  if (!(mask & bit)) fail("lane %u is not in the mask 0x%08x that it gives, line %d", me.lane, mask, line);
  if (mask == ~0u) mask = warp.present;
  if (mask & ~warp.present) fail("mask 0x%08x names lanes that the block does not have, line %d", mask, line);
  if (mask & warp.returned) fail("mask 0x%08x names lanes that have returned, line %d", mask, line);
  if (width < 1 || width > 32 || (width & (width - 1))) fail("shuffle of width %d, line %d", width, line);

  std::vector<Operation>& all = warp.operations;
  size_t slot = 0;
  auto open = [&](const Operation& o) { return o.mask == mask && o.arrived != mask && !(o.arrived & bit); };
  while (slot < all.size() && !open(all[slot])) ++slot;
  if (slot < all.size()) {
    if (all[slot].kind != kind)
      fail("lanes of one mask meet in different operations, lines %d and %d", line, all[slot].line);
  } else {
    slot = 0;
    while (slot < all.size() && all[slot].mask) ++slot;
    if (slot == all.size()) all.emplace_back();
    all[slot] = Operation{};
    all[slot].mask = mask;
    all[slot].kind = kind;
    all[slot].line = line;
  }
  all[slot].value[me.lane] = value;
  all[slot].arrived |= bit;
  me.line = line;
  if (all[slot].arrived == mask) {
    for (unsigned lane = 0; lane < 32; ++lane)
      if ((mask >> lane & 1) && lane != me.lane) wake(device.threads[me.warp * 32 + lane]);
  } else {
    me.state = IN_WARP;
    wait();
  }

  Operation& operation = all[slot];  // a reference from before the wait may be stale
  uint64_t result = kind == 7;
  const int lane = int(me.lane), base = lane & ~(width - 1);
  int source = lane;
  switch (kind) {
    case 0: ++me.warp_barriers; break;  // only __syncwarp() orders memory
    case 1: source = base + (argument & (width - 1)); break;
    case 2: source = lane - argument < base ? lane : lane - argument; break;
    case 3: source = lane + argument >= base + width ? lane : lane + argument; break;
    case 4: source = (lane ^ argument) < base + width ? lane ^ argument : lane; break;
    default:
      for (int other = 0; other < 32; ++other) {
        if (!(mask >> other & 1)) continue;
        const uint64_t vote = operation.value[other];
        if (kind == 5) result |= vote << other;
        else if (kind == 6) result |= vote;
        else if (kind == 7) result &= vote;
        else result |= uint64_t(vote == value) << other;
      }
  }
  if (kind >= 1 && kind <= 4) {
    if (!(mask >> source & 1))
      fail("shuffle from lane %d, which the mask 0x%08x does not name, line %d", source, mask, line);
    result = operation.value[source];
  }
  operation.left |= bit;
  if (operation.left == operation.mask) operation.mask = 0;
  return result;
}

uint64_t emu_atomic(int operation, int type, void* pointer, uint64_t value, uint64_t other) {
  const size_t bytes = type == 0 || type == 1 || type == 4 ? 4 : 8;
  void* address = __builtin_return_address(0);
  if (reinterpret_cast<uintptr_t>(pointer) % bytes)
    fail("misaligned atomic @@=%llx", place(reinterpret_cast<uintptr_t>(address)));
  access(pointer, bytes, true, true, address);
  uint64_t old = 0, now = 0;
  memcpy(&old, pointer, bytes);
  if (operation == 6) now = old & value;
  else if (operation == 7) now = old | value;
  else if (operation == 8) now = old ^ value;
  else if (type == 0) now = apply<int32_t>(operation, old, value, other);
  else if (type == 1) now = apply<uint32_t>(operation, old, value, other);
  else if (type == 2) now = apply<int64_t>(operation, old, value, other);
  else if (type == 3) now = apply<uint64_t>(operation, old, value, other);
  else if (type == 4) now = apply<float>(operation, old, value, other);
  else now = apply<double>(operation, old, value, other);
  memcpy(pointer, &now, bytes);
  return old;
}

// ---- what compiler.py calls

int emu_launch(const emu_settings* settings, void (*kernel)(void**), void** values, emu_range* ranges, int count,
               char* message, size_t message_size) {
  if (!device.stacks) {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    device.stacks = static_cast<char*>(mmap(nullptr, STACK * THREADS, PROT_READ | PROT_WRITE, flags, -1, 0));
    for (int i = 0; i < THREADS; ++i) mprotect(device.stacks + size_t(i) * STACK, 4096, PROT_NONE);
    device.shared = static_cast<char*>(aligned_alloc(4096, SHARED));
    device.shared_cells.resize(SHARED / 4 + 1);
  }
  device.settings = settings;
  device.kernel = kernel;
  device.values = values;
  device.message = message;
  device.message_size = message_size;
  device.failed = false;
  device.block_size = {settings->block[0], settings->block[1], settings->block[2]};
  device.grid_size = {settings->grid[0], settings->grid[1], settings->grid[2]};
  device.size = device.block_size.x * device.block_size.y * device.block_size.z;
  device.random = settings->seed * 0x9E3779B97F4A7C15ull + 1;
  Dl_info info;
  dladdr(reinterpret_cast<void*>(kernel), &info);
  device.module = reinterpret_cast<uintptr_t>(info.dli_fbase);
  device.module_data.clear();
  dl_iterate_phdr(add_segments, &device.module);
  device.ranges.clear();
  device.last_range = 0;
  for (emu_range* r = ranges; r < ranges + count; ++r) {
    bool known = false;  // an array that is passed twice
    for (const Range& other : device.ranges) known |= other.given->low == r->low && other.given->high == r->high;
    const size_t cells = settings->races && r->writable ? (r->high - r->low) / 4 + 1 : 0;  // others cannot be raced for
    if (!known) device.ranges.push_back({r, std::vector<Cell>(cells)});
  }
#ifdef __x86_64__
  const unsigned modes = _mm_getcsr();
  _mm_setcsr(modes | 0x8040);  // CuPy compiles with -ftz=true
#endif
  const uint64_t blocks = uint64_t(device.grid_size.x) * device.grid_size.y * device.grid_size.z;
  std::vector<uint32_t> order(blocks);
  for (uint64_t i = 0; i < blocks; ++i) order[i] = uint32_t(settings->order == REVERSE ? blocks - 1 - i : i);
  if (settings->order == RANDOM)
    for (uint64_t i = blocks; i > 1; --i) std::swap(order[i - 1], order[draw() % i]);
  device.running = true;
  for (uint64_t i = 0; i < blocks && !device.failed; ++i) {
    const uint32_t b = device.block = order[i];
    const Index& grid = device.grid_size;
    device.block_index = {b % grid.x, b / grid.x % grid.y, b / (grid.x * grid.y)};
    run_block();
  }
  device.running = false;
  device.current = nullptr;
  device.ranges.clear();
#ifdef __x86_64__
  _mm_setcsr(modes);
#endif
  return device.failed;
}

// ---- callbacks of the instrumentation

#define HERE __builtin_return_address(0)
#define ACCESSES(N) \
  void __tsan_read##N(void* p) { access(p, N, false, false, HERE); } \
  void __tsan_write##N(void* p) { access(p, N, true, false, HERE); } \
  void __tsan_unaligned_read##N(void* p) { access(p, N, false, false, HERE); } \
  void __tsan_unaligned_write##N(void* p) { access(p, N, true, false, HERE); } \
  void __tsan_volatile_read##N(void* p) { access(p, N, false, false, HERE); } \
  void __tsan_volatile_write##N(void* p) { access(p, N, true, false, HERE); }
ACCESSES(1) ACCESSES(2) ACCESSES(4) ACCESSES(8) ACCESSES(16)
void __tsan_read_range(void* p, size_t n) { access(p, n, false, false, HERE); }
void __tsan_write_range(void* p, size_t n) { access(p, n, true, false, HERE); }
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}

struct SourceLocation { const char* file; uint32_t line, column; };
#define UNDEFINED(NAME, WORDS) \
  void __ubsan_handle_##NAME##_abort(SourceLocation* at, uint64_t, uint64_t) { \
    fail("%s [at %s:%u]", WORDS, at->file, at->line); \
  }
UNDEFINED(out_of_bounds, "array index out of bounds")
UNDEFINED(type_mismatch_v1, "misaligned or null pointer")
UNDEFINED(shift_out_of_bounds, "shift out of bounds")
UNDEFINED(add_overflow, "signed integer overflow in +")
UNDEFINED(sub_overflow, "signed integer overflow in -")
UNDEFINED(mul_overflow, "signed integer overflow in *")
UNDEFINED(negate_overflow, "signed integer overflow in unary -")
UNDEFINED(divrem_overflow, "integer division by zero")
UNDEFINED(float_cast_overflow, "float out of the range of an integer")
}
