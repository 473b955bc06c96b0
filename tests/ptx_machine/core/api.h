/* The machine's C interface, for ctypes and for the emulator's seam. */
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct PtxLaunch {
  uint32_t grid[3], block[3];
  uint32_t dynamic_shared;      /* bytes of this launch */
  uint32_t max_dynamic_shared;  /* what the kernel may take: 48 KiB unless it has asked for more */
  uint32_t cooperative;         /* 1: all blocks have to be resident at once */
  uint32_t registers;           /* per thread, as ptxas reports; 0: unknown */
  const void* const* arguments; /* the kernel's parameters in order */
  const uint32_t* argument_bytes;
  uint32_t n_arguments;
};

/* Instructions by class, in the order of ptx::Class, as warps and as threads execute them; and what a
   profiler calls sectors, requests, wavefronts. Memory is counted only after ptx_count(1). */
struct PtxCounters {
  uint64_t warps[18], threads[18];
  uint64_t load_requests, load_sectors, load_bytes;
  uint64_t store_requests, store_sectors, store_bytes;
  uint64_t shared_requests, shared_wavefronts;
  uint64_t divergent_branches, branches;
  uint64_t barriers;
  uint64_t tensor_flops;
  uint64_t blocks;                  /* that ran: fewer than the grid's after ptx_sample */
  uint64_t shared_least_wavefronts; /* what the same requests take without bank conflicts */
  uint64_t touched_sectors;         /* different ones */
  uint64_t common_sectors;          /* those that blocks of both halves touched: every other block is one */
  uint64_t footprint;               /* bytes of the allocations in which they lie */
};

/* Told of a launch that has ended well. */
typedef void (*PtxListener)(const char* module, const char* entry, const struct PtxLaunch* launch,
                            uint64_t static_shared, const struct PtxCounters* counters);

const char* ptx_error(void); /* of the last call on this thread that failed */
void* ptx_load(const char* text, const char* name);
void ptx_unload(void* module);
const char* ptx_entries(void* module); /* one a line */
/* Decodes an entry without running it; 0, or 1 on an instruction that the machine does not know. */
int ptx_decode(void* module, const char* entry);
int ptx_run(void* module, const char* entry, const struct PtxLaunch* launch); /* 0, or 1 on a fault */
/* Blocks that the machine keeps resident at once; 0 where not one fits, -1 on an error. */
int64_t ptx_resident_blocks(void* module, const char* entry, uint32_t threads, uint32_t dynamic_shared,
                            uint32_t registers);
uint64_t ptx_static_shared(void* module, const char* entry);
void ptx_allocated(const void* p, uint64_t bytes);
void ptx_freed(const void* p);
void ptx_set_seed(uint64_t seed);
void ptx_count(int on);
const struct PtxCounters* ptx_counters(void); /* of this thread's last launch */
/* For models of a GPU. Of a grid of more than `blocks` blocks only so many run, spread over it, unless blocks
   wait for each other; 0: all. What such a launch leaves in memory is not its result. */
void ptx_sample(uint64_t blocks);
void ptx_set_multiprocessors(uint32_t count); /* on which cooperating blocks have to fit; 16 to begin with */
void ptx_listen(PtxListener listener);        /* NULL: nobody */

#ifdef __cplusplus
}
#endif
