#include "warp.h"

#include "grid.h"

namespace ptx {
namespace {

std::string text(const uint32_t index[3]) {
  return "(" + std::to_string(index[0]) + ", " + std::to_string(index[1]) + ", " + std::to_string(index[2]) +
         ")";
}

std::string lanes_text(uint32_t lanes) {
  std::string list;
  for (int first = 0; first < kLanes; ++first) {
    if (!(lanes >> first & 1)) continue;
    int last = first;
    while (last + 1 < kLanes && (lanes >> (last + 1) & 1)) ++last;
    list += (list.empty() ? "" : ", ") + std::to_string(first);
    if (last > first) list += "-" + std::to_string(last);
    first = last;
  }
  return list;
}

}  // namespace

void Warp::fail(uint32_t lanes, const std::string& what) const {
  const uint32_t* size = block->grid->launch->block;
  const uint32_t t = number * kLanes + static_cast<uint32_t>(first_lane(lanes ? lanes : 1));
  const uint32_t thread[3] = {t % size[0], t / size[0] % size[1], t / size[0] / size[1]};
  throw Fault("block " + text(block->index) + ", thread " + text(thread) + ", " +
              (current ? describe(*block->program, *current->statement) : "") + ": " + what);
}

void Warp::uninitialised(const Operand& o, uint32_t mask, const char* what) const {
  fail(mask & ~is_written(o), std::string("the ") + what + " has never been given a value");
}

bool Warp::gather(uint32_t needed, uint32_t mask) {
  const uint32_t missing = needed & ~mask;
  if (missing == 0) [[likely]]
    return true;
  if (missing & ~existing)
    fail(mask, "names lanes " + lanes_text(missing & ~existing) + ", which the block does not have");
  if (missing & exited) fail(mask, "waits for lanes " + lanes_text(missing & exited) + ", which have exited");
  --pc;  // the group comes here again, with more lanes
  others.push_back({pc, active, true});
  active = 0;
  next_group();
  return false;
}

void Warp::branch(uint32_t taken, uint32_t mask, uint32_t target) {
  PtxCounters& counters = block->grid->counters;
  ++counters.branches;
  if (taken == mask) {
    pc = target;
  } else if (taken != 0) {
    ++counters.divergent_branches;
    others.push_back({target, taken, false});
    active &= ~taken;
    settle(true);
  }
}

void Warp::exit(uint32_t mask) {
  exited |= mask;
  active &= ~mask;
  if (active) return;
  if (others.empty()) {
    state = kExited;
    return;
  }
  next_group();
}

// Joins groups that have met and, where `choose`, picks the one to go on: the one that is furthest behind, so
// that the others are met again; with a seed any.
void Warp::settle(bool choose) {
  for (size_t i = 0; i < others.size();) {
    if (others[i].pc == pc && active) {
      active |= others[i].lanes;
      others[i] = others.back();
      others.pop_back();
    } else {
      ++i;
    }
  }
  if (!choose || others.empty()) return;
  Grid& grid = *block->grid;
  size_t best = others.size();
  if (grid.shuffled && grid.random.below(2)) {
    best = grid.random.below(others.size() + 1);
    if (best < others.size() && others[best].waiting) best = others.size();
  } else {
    uint32_t least = pc;
    for (size_t i = 0; i < others.size(); ++i) {
      if (!others[i].waiting && others[i].pc < least) least = others[best = i].pc;
    }
  }
  if (best == others.size()) return;
  std::swap(others[best].pc, pc);
  std::swap(others[best].lanes, active);
}

// After the running group has gone: another one, or a fault when all of them wait.
void Warp::next_group() {
  size_t best = others.size();
  for (size_t i = 0; i < others.size(); ++i) {
    if (!others[i].waiting && (best == others.size() || others[i].pc < others[best].pc)) best = i;
  }
  if (best == others.size()) {
    std::string list;
    for (const Group& g : others) {
      const Statement& s = *block->program->code[g.pc].statement;
      list += (list.empty() ? "" : "; ") + ("lanes " + lanes_text(g.lanes)) + " at " +
              describe(*block->program, s);
    }
    if (exited) list += "; lanes " + lanes_text(exited) + " have exited";
    fail(others[0].lanes, "lanes of a warp wait for each other at different places: " + list);
  }
  pc = others[best].pc;
  active = others[best].lanes;
  others[best] = others.back();
  others.pop_back();
  settle(false);
}

uint64_t Warp::run(uint64_t steps) {
  const Instruction* const code = block->program->code.data();
  uint64_t* const warps_run = block->grid->warps_run.data();
  uint64_t* const threads_run = block->grid->threads_run.data();
  uint64_t done = 0;
  while (state == kReady && done < steps) {
    const Instruction& i = code[pc];
    current = &i;
    ++done;
    uint32_t mask = active;
    if (i.guard) {
      need(*i.guard, mask, "guard of the instruction");
      mask &= predicate(*i.guard);
    }
    ++warps_run[pc];
    threads_run[pc] += static_cast<uint64_t>(std::popcount(mask));
    ++pc;
    if (mask) i.run(*this, i, mask);
    if (!others.empty() && active) settle(pc != static_cast<uint32_t>(&i - code) + 1);
  }
  return done;
}

}  // namespace ptx
