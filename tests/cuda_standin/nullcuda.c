/* nullcuda: a test double of the public CUDA driver API (libcuda.so.1) for machines without a GPU.
 *
 * One pretend device. Device memory is host memory; copies and memsets are real; streams and events
 * complete at once, or (NULLCUDA_LAZY) only when somebody waits for them; kernels are counted, never run.
 * Every call is checked, can be logged, and can be told to fail.
 * Written against the public cuda.h only. See README.md.
 */
#define _GNU_SOURCE
#define __CUDA_API_VERSION_INTERNAL /* declare every ABI version under its exported name */
#include <cuda.h>
#include <cudaProfiler.h>

#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define API CUresult CUDAAPI
#define DRIVER_VERSION 13000
#define PRINTF(a, b) __attribute__((format(printf, a, b)))

/* ---------------------------------------------------------------- state */

struct stat { const char *name; unsigned long calls; bool stub; struct stat *next; };
struct error { struct error *next; const char *kind; char api[64], detail[256]; unsigned long call; };
struct text { char *s; size_t n, cap; };

enum kind { DEVICE, HOST, MANAGED, REGISTERED, NKINDS };
static const char *const kind_name[] = {"device", "host", "managed", "registered"};
struct alloc {
  uintptr_t p; size_t n; enum kind kind; bool live; unsigned flags;
  struct obj *ctx; unsigned long id, call; const char *api;
};

enum type { CTX = 1, STREAM, EVENT, MODULE, FUNCTION, GRAPH, EXEC, POOL, CAPTURE, NTYPES };
static const char *const type_name[] = {"", "context", "stream", "event", "module", "function", "graph", "graph_exec", "pool", "capture"};
struct op {
  enum { COPY, SET, LAUNCH, CALL, RECORD, WAIT } what;
  uintptr_t dst, src; int want_dst, want_src;         /* COPY, SET */
  size_t w, h, d, dpitch, spitch, dslice, sslice;
  unsigned value, elem;
  struct obj *f;                                      /* LAUNCH */
  struct obj *event; unsigned long record;            /* RECORD, WAIT: which record of the event */
  CUhostFn fn; void *user;                            /* CALL */
};
struct obj {
  enum type type; bool live; unsigned long id, call; struct obj *ctx; unsigned flags;
  int refs, prio; bool primary;                       /* CTX, STREAM */
  bool busy;                                          /* STREAM: its queue (ops from head on) is being run */
  size_t head, room;
  struct obj *stream; unsigned long records, done; struct timespec when; /* EVENT: asked for, and carried out */
  struct obj *capture;                                /* STREAM, EVENT: capture it takes part in */
  struct obj *graph, *origin; CUstreamCaptureMode mode; pthread_t thread; bool broken; /* CAPTURE */
  struct obj *module; char *name; unsigned long launches; unsigned block[3], shared; /* FUNCTION */
  struct op *ops; size_t nops;                        /* GRAPH, EXEC, STREAM */
};
#define CHUNK 512
struct chunk { struct chunk *next; int used; struct obj o[CHUNK]; };

static struct {
  pthread_mutex_t lock;
  bool init, done, forked, child, quiet, lazy; int strict; /* strict: 1 abort at first error, 2 exit 86 at the end */
  char log_path[512], report_path[512], ignore[256], device[96];
  FILE *log;
  int cc_major, cc_minor;
  size_t total; uintptr_t arena, arena_end, arena_next;
  struct alloc *a; size_t na, ca;
  struct { unsigned long total, live; size_t bytes, peak; } mem[NKINDS];
  struct { unsigned long n; size_t bytes; } copy[4], set; /* h2d d2h d2d h2h */
  unsigned long pageable_async, launches, graph_launches, calls, ids, nerrors, oom, captures;
  struct stat *stats; struct error *errors, **errors_end;
  struct chunk *chunks; struct obj *primary, *pool; unsigned primary_flags;
  struct { char api[64]; CUresult code; unsigned long skip, count, seen, refused; } refuse;
} S = {.lock = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP, .errors_end = &S.errors, .total = (size_t)8 << 30,
       .cc_major = 8, .cc_minor = 6, .device = "nullcuda (no GPU)"};

static __thread struct { struct obj *stack[64]; int n, depth; CUstreamCaptureMode mode; struct call *call; CUresult fails; } T;

/* ---------------------------------------------------------------- calls and errors */

struct call { const char *api; char args[256]; CUresult r, late; unsigned long seq; struct call *outer; };
enum { NEED_NOTHING, NEED_INIT, NEED_CTX };

static CUresult misuse(struct call *c, const char *kind, CUresult code, const char *fmt, ...) PRINTF(4, 5);
static CUresult misuse(struct call *c, const char *kind, CUresult code, const char *fmt, ...) {
  char hay[300], pin[80];
  snprintf(hay, sizeof hay, ",%s,", S.ignore);
  snprintf(pin, sizeof pin, ",%s,", kind);
  if (strstr(hay, pin)) return code;
  S.nerrors++;
  struct error *e = calloc(1, sizeof *e);
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(e->detail, sizeof e->detail, fmt, ap);
  va_end(ap);
  e->kind = kind;
  e->call = c->seq;
  snprintf(e->api, sizeof e->api, "%s", c->api);
  *S.errors_end = e;
  S.errors_end = &e->next;
  if (!S.quiet) fprintf(stderr, "nullcuda: %s in %s(%s), call %lu: %s\n", kind, c->api, c->args, c->seq, e->detail);
  if (S.log) fprintf(S.log, "      !! %s: %s\n", kind, e->detail);
  if (S.strict == 1) { if (S.log) fflush(S.log); abort(); }
  return code;
}

/* Is this call to fail on request (nullcuda_refuse)? One that gives something back, or waits, does so first: an
 * error it returns is that of earlier work. */
static void refuse(struct call *c) {
  bool any = !strcmp(S.refuse.api, "*"), quiet = strstr(c->api, "cuCtx") || strstr(c->api, "cuGetError") || strstr(c->api, "IsCapturing");
  if (!*S.refuse.api || (any ? quiet : strcmp(S.refuse.api, c->api) != 0)) return;
  unsigned long n = S.refuse.seen++;
  if (n < S.refuse.skip || n - S.refuse.skip >= S.refuse.count) return;
  S.refuse.refused++;
  static const char *const late[] = {"Free", "Destroy", "Release", "Unregister", "Pop", "Synchronize", "EndCapture"};
  for (size_t i = 0; i < sizeof late / sizeof *late; i++)
    if (strstr(c->api, late[i])) { c->late = S.refuse.code; return; }
  c->r = S.refuse.code;
}

static struct obj *current(void) { return T.n ? T.stack[T.n - 1] : NULL; }

static void enter(struct call *c, struct stat *st, const char *api, int need, const char *fmt, ...) PRINTF(5, 6);
static void enter(struct call *c, struct stat *st, const char *api, int need, const char *fmt, ...) {
  pthread_mutex_lock(&S.lock);
  T.depth++;
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(c->args, sizeof c->args, fmt, ap);
  va_end(ap);
  c->r = c->late = CUDA_SUCCESS;
  c->outer = T.call;
  T.call = c;
  if (c->outer) { /* called by another function of this file: the same call to the outside */
    c->api = c->outer->api;
    c->seq = c->outer->seq;
    if (!*c->outer->args) memcpy(c->outer->args, c->args, sizeof c->args);
  } else {
    c->api = api;
    c->seq = ++S.calls;
    if (!st->name) { st->name = api; st->next = S.stats; S.stats = st; }
    st->calls++;
  }
  if (S.done) c->r = CUDA_ERROR_DEINITIALIZED;
  else if (need == NEED_NOTHING) ;
  else if (S.forked) c->r = misuse(c, "use_after_fork", CUDA_ERROR_NOT_INITIALIZED, "CUDA was initialised before fork()");
  else if (!S.init) c->r = misuse(c, "not_initialized", CUDA_ERROR_NOT_INITIALIZED, "cuInit was not called");
  else if (need == NEED_CTX && !current()) c->r = misuse(c, "no_context", CUDA_ERROR_INVALID_CONTEXT, "no context is current on this thread");
  else if (need == NEED_CTX && !current()->live)
    c->r = misuse(c, "no_context", CUDA_ERROR_CONTEXT_IS_DESTROYED, "the current context #%lu was destroyed", current()->id);
  if (!c->r && !c->outer) refuse(c);
}

static void leave(struct call *c) {
  T.call = c->outer;
  if (S.log && !S.done && !c->outer) {
    fprintf(S.log, "%6lu %ld %s(%s) = %d\n", c->seq, (long)syscall(SYS_gettid), c->api, c->args, c->r);
    fflush(S.log);
  }
  T.depth--;
  pthread_mutex_unlock(&S.lock);
}

#define ENTER(need, ...)                                   \
  static struct stat st_;                                  \
  struct call c_ __attribute__((cleanup(leave))), *c = &c_; \
  enter(c, &st_, __func__, need, __VA_ARGS__);             \
  if (c->r) return c->r
#define DONE(x) return c->r = ((c->r = (x)) ? c->r : c->late)
#define FORWARD(need, call) { ENTER(need, "%s", ""); DONE(call); } /* one more name for the same function */
#define TRY(x) do { if ((c->r = (x))) return c->r; } while (0)
#define NONNULL(p) do { if (!(p)) DONE(misuse(c, "invalid_argument", CUDA_ERROR_INVALID_VALUE, #p " is NULL")); } while (0)

static CUresult unsupported(struct stat *st, const char *api) {
  struct call c_ __attribute__((cleanup(leave))), *c = &c_;
  st->stub = true;
  enter(c, st, api, NEED_NOTHING, "not implemented");
  DONE(CUDA_ERROR_NOT_SUPPORTED);
}

/* ---------------------------------------------------------------- handles */

static struct obj *new_obj(struct call *c, enum type type) {
  if (!S.chunks || S.chunks->used == CHUNK) {
    struct chunk *k = calloc(1, sizeof *k); /* never freed: a stale handle stays recognisable */
    k->next = S.chunks;
    S.chunks = k;
  }
  struct obj *o = &S.chunks->o[S.chunks->used++];
  o->type = type;
  o->live = true;
  o->id = ++S.ids;
  o->call = c->seq;
  o->ctx = current();
  return o;
}

static CUresult get(struct call *c, enum type type, const void *handle, struct obj **out) {
  CUresult bad = type == CTX ? CUDA_ERROR_INVALID_CONTEXT : CUDA_ERROR_INVALID_HANDLE;
  for (struct chunk *k = S.chunks; k; k = k->next) {
    uintptr_t off = (uintptr_t)handle - (uintptr_t)k->o;
    if (off >= sizeof k->o || off % sizeof(struct obj) || (int)(off / sizeof(struct obj)) >= k->used) continue;
    struct obj *o = (struct obj *)handle;
    if (o->type != type) return misuse(c, "invalid_handle", bad, "a %s was expected, this is a %s", type_name[type], type_name[o->type]);
    if (!o->live) return misuse(c, "use_after_destroy", type == CTX ? CUDA_ERROR_CONTEXT_IS_DESTROYED : bad, "%s #%lu was destroyed", type_name[type], o->id);
    *out = o;
    return CUDA_SUCCESS;
  }
  return misuse(c, "invalid_handle", bad, "%p is not a %s", handle, type_name[type]);
}
#define GET(type, handle) ({ struct obj *o_ = NULL; TRY(get(c, type, handle, &o_)); o_; })

/* NULL for the default streams */
static CUresult get_stream(struct call *c, CUstream s, struct obj **out) {
  *out = NULL;
  if (!s || s == CU_STREAM_LEGACY || s == CU_STREAM_PER_THREAD) return CUDA_SUCCESS;
  return get(c, STREAM, s, out);
}
#define GET_STREAM(s) ({ struct obj *o_ = NULL; TRY(get_stream(c, s, &o_)); o_; })

static struct obj *each(struct obj *after, enum type type) { /* live objects of one type */
  bool seen = !after;
  for (struct chunk *k = S.chunks; k; k = k->next)
    for (int i = 0; i < k->used; i++) {
      if (seen && k->o[i].live && k->o[i].type == type) return &k->o[i];
      if (&k->o[i] == after) seen = true;
    }
  return NULL;
}
#define EACH(o, type) (struct obj *o = each(NULL, type); o; o = each(o, type))

/* ---------------------------------------------------------------- memory */

/* index of the last entry that starts at or below p, or -1; entries are sorted by address */
static long below(uintptr_t p) {
  long lo = 0, hi = (long)S.na;
  while (lo < hi) { long m = (lo + hi) / 2; if (S.a[m].p <= p) lo = m + 1; else hi = m; }
  return lo - 1;
}

static bool in_arena(uintptr_t p) { return S.arena && p >= S.arena && p < S.arena_end; }

static struct alloc *track(struct call *c, uintptr_t p, size_t n, enum kind kind, unsigned flags) {
  if (S.na == S.ca) S.a = realloc(S.a, (S.ca = S.ca ? 2 * S.ca : 256) * sizeof *S.a);
  long i = below(p) + 1;
  memmove(&S.a[i + 1], &S.a[i], (S.na++ - i) * sizeof *S.a);
  S.a[i] = (struct alloc){p, n, kind, true, flags, current(), ++S.ids, c->seq, c->api};
  S.mem[kind].total++;
  S.mem[kind].live++;
  S.mem[kind].bytes += n;
  if (S.mem[kind].bytes > S.mem[kind].peak) S.mem[kind].peak = S.mem[kind].bytes;
  return &S.a[i];
}

static size_t pages(size_t n) { return (n + 4095) & ~(size_t)4095; }

/* Addresses are never reused, and an inaccessible page follows each block. */
static CUresult allocate(struct call *c, uintptr_t *out, size_t n, enum kind kind, unsigned flags) {
  if (!n) return misuse(c, "invalid_argument", CUDA_ERROR_INVALID_VALUE, "allocation of 0 bytes");
  if (!S.arena)
    for (size_t size = (size_t)16 << 40; size >= (size_t)1 << 36; size /= 2) {
      void *p = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (p == MAP_FAILED) continue;
      S.arena = S.arena_next = (uintptr_t)p;
      S.arena_end = S.arena + size;
      break;
    }
  size_t span = pages(n);
  bool full = kind == DEVICE && (n > S.total || S.mem[DEVICE].bytes > S.total - n);
  if (full || !S.arena || span > S.arena_end - S.arena_next - 4096 || n > (size_t)1 << 46 ||
      mprotect((void *)S.arena_next, span, PROT_READ | PROT_WRITE)) {
    S.oom++;
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  *out = S.arena_next;
  S.arena_next += span + 4096;
  track(c, *out, n, kind, flags);
  return CUDA_SUCCESS;
}

static void release(struct alloc *a) {
  S.mem[a->kind].live--;
  S.mem[a->kind].bytes -= a->n;
  a->live = false;
  if (a->kind == REGISTERED) /* the caller's memory: forget it, its address may be reused */
    memmove(a, a + 1, (&S.a[--S.na] - a) * sizeof *a);
  else
    mmap((void *)a->p, pages(a->n), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
}

static CUresult find_base(struct call *c, uintptr_t p, unsigned kinds, const char *what, struct alloc **out) {
  long i = below(p);
  struct alloc *a = i >= 0 ? &S.a[i] : NULL;
  if (a && a->p == p && !a->live) return misuse(c, "double_free", CUDA_ERROR_INVALID_VALUE, "block #%lu (%s, %zu bytes) was already freed", a->id, kind_name[a->kind], a->n);
  if (!a || a->p != p || !(kinds & 1u << a->kind))
    return misuse(c, "invalid_free", CUDA_ERROR_INVALID_VALUE, "%#lx is not the start of %s", (unsigned long)p, what);
  *out = a;
  return CUDA_SUCCESS;
}

enum { ON_DEVICE, ON_HOST, ANYWHERE };
/* May [p, p+n) be used as this kind of memory? *kind gets what it is, or NKINDS for plain host memory. */
static CUresult check(struct call *c, uintptr_t p, size_t n, int want, const char *role, enum kind *kind) {
  long i = below(p);
  struct alloc *a = i >= 0 ? &S.a[i] : NULL;
  if (kind) *kind = NKINDS;
  if (a && (p - a->p < a->n || (in_arena(p) && in_arena(a->p)))) {
    if (!a->live) return misuse(c, "use_after_free", CUDA_ERROR_INVALID_VALUE, "%s: block #%lu (%s, %zu bytes) was freed", role, a->id, kind_name[a->kind], a->n);
    if (p - a->p > a->n || n > a->n - (p - a->p))
      return misuse(c, "out_of_bounds", CUDA_ERROR_INVALID_VALUE, "%s: %zu bytes at offset %zu of block #%lu (%s, %zu bytes)", role, n, (size_t)(p - a->p), a->id, kind_name[a->kind], a->n);
    if (want == ON_HOST && a->kind == DEVICE)
      return misuse(c, "wrong_memory", CUDA_ERROR_INVALID_VALUE, "%s: device block #%lu used as a host pointer", role, a->id);
    if (kind) *kind = a->kind;
    return CUDA_SUCCESS;
  }
  if (!n) return CUDA_SUCCESS;
  if (want == ON_DEVICE || !p)
    return misuse(c, p ? "invalid_pointer" : "null_pointer", CUDA_ERROR_INVALID_VALUE, "%s: %#lx is not device memory", role, (unsigned long)p);
  return CUDA_SUCCESS;
}

/* ---------------------------------------------------------------- work: now, or into a capture */

static size_t extent(size_t w, size_t h, size_t d, size_t pitch, size_t slice) {
  return w && h && d ? (d - 1) * slice + (h - 1) * pitch + w : 0;
}

static CUresult check_op(struct call *c, const struct op *o, enum kind *kd, enum kind *ks) {
  if (o->what == COPY) {
    CUresult r = check(c, o->dst, extent(o->w, o->h, o->d, o->dpitch, o->dslice), o->want_dst, "destination", kd);
    return r ? r : check(c, o->src, extent(o->w, o->h, o->d, o->spitch, o->sslice), o->want_src, "source", ks);
  }
  if (o->what == SET) {
    if (o->dst % o->elem) return misuse(c, "invalid_argument", CUDA_ERROR_INVALID_VALUE, "memset address not aligned to %u", o->elem);
    return check(c, o->dst, extent(o->w, o->h, 1, o->dpitch, 0), ON_DEVICE, "destination", kd);
  }
  if (o->what == LAUNCH) { struct obj *f; return get(c, FUNCTION, o->f, &f); }
  return CUDA_SUCCESS;
}

static CUresult drain(struct call *c, struct obj *s, struct obj *event, unsigned long record);

static CUresult run(struct call *c, const struct op *o, bool async) {
  enum kind kd = NKINDS, ks = NKINDS;
  CUresult r = check_op(c, o, &kd, &ks);
  if (r) return r;
  switch (o->what) {
  case COPY: {
    bool dd = kd == DEVICE || kd == MANAGED, sd = ks == DEVICE || ks == MANAGED;
    int way = sd ? (dd ? 2 : 1) : (dd ? 0 : 3);
    S.copy[way].n++;
    S.copy[way].bytes += o->w * o->h * o->d;
    if (async && (kd == NKINDS || ks == NKINDS)) S.pageable_async++;
    for (size_t z = 0; z < o->d; z++)
      for (size_t y = 0; y < o->h; y++)
        memmove((char *)o->dst + z * o->dslice + y * o->dpitch, (char *)o->src + z * o->sslice + y * o->spitch, o->w);
    break;
  }
  case SET:
    S.set.n++;
    S.set.bytes += o->w * o->h;
    for (size_t y = 0; y < o->h; y++) {
      char *p = (char *)o->dst + y * o->dpitch;
      if (o->elem == 1) memset(p, (int)o->value, o->w);
      else for (size_t x = 0; x < o->w; x += o->elem) memcpy(p + x, &o->value, o->elem); /* little-endian */
    }
    break;
  case LAUNCH:
    S.launches++;
    o->f->launches++;
    break;
  case CALL: {
    int depth = T.depth;
    T.call = NULL;
    for (int i = T.depth; i--;) pthread_mutex_unlock(&S.lock);
    T.depth = 0;
    o->fn(o->user);
    for (int i = depth; i--;) pthread_mutex_lock(&S.lock);
    T.depth = depth;
    T.call = c;
    CUresult r = T.fails;
    T.fails = CUDA_SUCCESS;
    return r;
  }
  case RECORD:
    if (o->record > o->event->done) o->event->done = o->record;
    clock_gettime(CLOCK_MONOTONIC, &o->event->when);
    break;
  case WAIT: return o->event->stream ? drain(c, o->event->stream, o->event, o->record) : CUDA_SUCCESS;
  }
  return CUDA_SUCCESS;
}

/* Carry out what a stream has queued: all, or up to a record of an event. The first error is returned. */
static CUresult drain(struct call *c, struct obj *s, struct obj *event, unsigned long record) {
  CUresult first = CUDA_SUCCESS;
  if (s->busy) return first; /* its own work asks, or another thread is at it */
  s->busy = true;
  while (s->head < s->nops && !(event && event->done >= record)) {
    struct op o = s->ops[s->head++];
    CUresult r = run(c, &o, true);
    if (!first) first = r;
  }
  if (s->head == s->nops) s->head = s->nops = 0;
  s->busy = false;
  return first;
}

static CUresult drain_all(struct call *c, bool nonblocking_too) {
  CUresult first = CUDA_SUCCESS;
  for EACH(s, STREAM) {
    CUresult r = s->flags & CU_STREAM_NON_BLOCKING && !nonblocking_too ? CUDA_SUCCESS : drain(c, s, NULL, 0);
    if (!first) first = r;
  }
  return first;
}

/* Calls that a capture forbids (cuThreadExchangeStreamCaptureMode in cuda.h has the rules). */
static CUresult not_while_capturing(struct call *c) {
  if (!S.captures || T.mode == CU_STREAM_CAPTURE_MODE_RELAXED) return CUDA_SUCCESS;
  for EACH(k, CAPTURE) {
    bool mine = pthread_equal(k->thread, pthread_self());
    if (k->mode == CU_STREAM_CAPTURE_MODE_RELAXED || (!mine && (k->mode != CU_STREAM_CAPTURE_MODE_GLOBAL || T.mode != CU_STREAM_CAPTURE_MODE_GLOBAL))) continue;
    k->broken = true;
    return misuse(c, "capture", CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "not permitted while a stream is being captured");
  }
  return CUDA_SUCCESS;
}

static void push_op(struct obj *to, const struct op *o) {
  if (to->nops == to->room) to->ops = realloc(to->ops, (to->room = to->room ? 2 * to->room : 16) * sizeof *to->ops);
  to->ops[to->nops++] = *o;
}

static CUresult submit(struct call *c, const struct op *o, CUstream hs) {
  struct obj *s;
  CUresult r = get_stream(c, hs, &s);
  if (r) return r;
  if (S.captures && !s && hs != CU_STREAM_PER_THREAD)
    for EACH(k, CAPTURE)
      if (!(k->origin->flags & CU_STREAM_NON_BLOCKING)) {
        k->broken = true;
        return misuse(c, "capture", CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, "the legacy stream would wait for a stream that is being captured");
      }
  if (!s && (r = drain_all(c, false))) return r;
  if (!s || (!s->capture && !S.lazy)) return run(c, o, true);
  enum kind kd = HOST, ks = HOST;
  if ((r = check_op(c, o, &kd, &ks))) return r;
  if (!s->capture && o->what == COPY && (kd == NKINDS || ks == NKINDS)) /* CUDA takes such memory at once */
    return (r = drain(c, s, NULL, 0)) ? r : run(c, o, true);
  push_op(s->capture ? s->capture->graph : s, o);
  return CUDA_SUCCESS;
}

static CUresult now(struct call *c, const struct op *o) { /* a synchronous call, on the legacy stream */
  CUresult r = not_while_capturing(c);
  if (!r) r = drain_all(c, false);
  return r ? r : run(c, o, false);
}

static struct op copy1(uintptr_t d, int wd, uintptr_t s, int ws, size_t n) {
  return (struct op){.what = COPY, .dst = d, .want_dst = wd, .src = s, .want_src = ws, .w = n, .h = 1, .d = 1};
}
static struct op set2(uintptr_t d, size_t pitch, unsigned v, unsigned elem, size_t w, size_t h) {
  return (struct op){.what = SET, .dst = d, .dpitch = pitch, .value = v, .elem = elem, .w = w * elem, .h = h};
}

/* ---------------------------------------------------------------- driver, device */

static const char *error_name(CUresult e);

API cuGetErrorName(CUresult error, const char **s) {
  ENTER(NEED_NOTHING, "%d", error);
  NONNULL(s);
  DONE((*s = error_name(error)) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE);
}
API cuGetErrorString(CUresult error, const char **s) FORWARD(NEED_NOTHING, cuGetErrorName(error, s)) /* real drivers have sentences */
API cuInit(unsigned flags) {
  ENTER(NEED_NOTHING, "%u", flags);
  if (S.forked) DONE(misuse(c, "use_after_fork", CUDA_ERROR_NOT_INITIALIZED, "CUDA was initialised before fork()"));
  if (flags) DONE(CUDA_ERROR_INVALID_VALUE);
  S.init = true;
  DONE(0);
}
API cuDriverGetVersion(int *v) { ENTER(NEED_NOTHING, " "); NONNULL(v); *v = DRIVER_VERSION; DONE(0); }

#define DEV(dev) do { if ((dev) != 0) DONE(misuse(c, "invalid_device", CUDA_ERROR_INVALID_DEVICE, "device %d; there is only 0", (int)(dev))); } while (0)

API cuDeviceGetCount(int *n) { ENTER(NEED_INIT, " "); NONNULL(n); *n = 1; DONE(0); }
API cuDeviceGet(CUdevice *d, int i) { ENTER(NEED_INIT, "%d", i); NONNULL(d); DEV(i); *d = 0; DONE(0); }
API cuDeviceGetName(char *s, int len, CUdevice d) { ENTER(NEED_INIT, "%d", d); NONNULL(s); DEV(d); snprintf(s, len, "%s", S.device); DONE(0); }
API cuDeviceTotalMem_v2(size_t *n, CUdevice d) { ENTER(NEED_INIT, "%d", d); NONNULL(n); DEV(d); *n = S.total; DONE(0); }
API cuDeviceComputeCapability(int *a, int *b, CUdevice d) { ENTER(NEED_INIT, "%d", d); DEV(d); *a = S.cc_major; *b = S.cc_minor; DONE(0); }
API cuDeviceGetUuid_v2(CUuuid *u, CUdevice d) { ENTER(NEED_INIT, "%d", d); NONNULL(u); DEV(d); memcpy(u->bytes, "nullcuda-device0", 16); DONE(0); }
API cuDeviceGetUuid(CUuuid *u, CUdevice d) FORWARD(NEED_INIT, cuDeviceGetUuid_v2(u, d))
API cuDeviceGetPCIBusId(char *s, int len, CUdevice d) { ENTER(NEED_INIT, "%d", d); NONNULL(s); DEV(d); snprintf(s, len, "0000:01:00.0"); DONE(0); }
API cuDeviceGetByPCIBusId(CUdevice *d, const char *s) {
  ENTER(NEED_INIT, "%s", s ? s : "");
  NONNULL(d);
  *d = 0;
  DONE(s && (!strcasecmp(s, "0000:01:00.0") || !strcasecmp(s, "01:00.0")) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE);
}
API cuDeviceCanAccessPeer(int *can, CUdevice a, CUdevice b) { ENTER(NEED_INIT, "%d, %d", a, b); NONNULL(can); DEV(a); DEV(b); *can = 0; DONE(0); }

API cuDeviceGetAttribute(int *v, CUdevice_attribute attr, CUdevice d) {
  static const int table[CU_DEVICE_ATTRIBUTE_MAX] = { /* a plausible small discrete GPU; the rest are 0 */
    [1] = 1024, [2] = 1024, [3] = 1024, [4] = 64, [5] = 2147483647, [6] = 65535, [7] = 65535,
    [8] = 49152, [9] = 65536, [10] = 32, [11] = 2147483647, [12] = 65536, [13] = 1500000, [14] = 512, [15] = 1,
    [16] = 16, [19] = 1, [21] = 131072, [22] = 131072, [23] = 65536, [24] = 16384, [25] = 16384, [26] = 16384,
    [27] = 32768, [28] = 32768, [29] = 2048, [30] = 512, [31] = 1, [33] = 1, [36] = 7000000, [37] = 128,
    [38] = 2 << 20, [39] = 1536, [40] = 2, [CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING] = 1, [42] = 32768, [43] = 2048,
    [44] = 1, [45] = 32768, [46] = 32768, [47] = 8192, [48] = 8192, [49] = 32768, [51] = 32, [69] = 268435456,
    [70] = 131072, [71] = 65000, [72] = 2097120, [CU_DEVICE_ATTRIBUTE_STREAM_PRIORITIES_SUPPORTED] = 1, [79] = 1,
    [80] = 1, [81] = 102400, [82] = 65536, [CU_DEVICE_ATTRIBUTE_MANAGED_MEMORY] = 1, [87] = 32, [89] = 1, [90] = 1,
    [CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM] = 1, [95] = 1, [97] = 101376, [99] = 1,
    [106] = 16, [111] = 1024, [CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED] = 1};
  ENTER(NEED_INIT, "%d, %d", attr, d);
  NONNULL(v);
  DEV(d);
  if (attr <= 0 || attr >= CU_DEVICE_ATTRIBUTE_MAX) DONE(CUDA_ERROR_INVALID_VALUE);
  *v = attr == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR ? S.cc_major : attr == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR ? S.cc_minor
     : attr == CU_DEVICE_ATTRIBUTE_INTEGRATED ? getenv("NULLCUDA_INTEGRATED") != NULL : table[attr];
  DONE(0);
}

API cuProfilerStart(void) { ENTER(NEED_CTX, " "); DONE(0); }
API cuProfilerStop(void) { ENTER(NEED_CTX, " "); DONE(0); }

/* ---------------------------------------------------------------- contexts */

static const char *unended(enum type t) { return t == STREAM || t == EVENT || t == GRAPH || t == EXEC || t == CAPTURE ? type_name[t] : NULL; }

static void end_ctx(struct call *c, struct obj *ctx) {
  drain_all(c, true);
  for (size_t i = S.na; i-- > 0;)
    if (S.a[i].live && S.a[i].ctx == ctx) {
      misuse(c, "leak", 0, "%s block #%lu (%zu bytes, %s, call %lu) was live when its context was destroyed", kind_name[S.a[i].kind], S.a[i].id, S.a[i].n, S.a[i].api, S.a[i].call);
      release(&S.a[i]);
    }
  for (int t = STREAM; t < NTYPES; t++)
    for EACH(o, t)
      if (o->ctx == ctx && o != S.pool) {
        if (unended(t)) misuse(c, "handle_leak", 0, "%s #%lu (call %lu) was live when its context was destroyed", type_name[t], o->id, o->call);
        o->live = false;
        S.captures -= t == CAPTURE;
      }
  ctx->live = false;
  if (S.primary == ctx) S.primary = NULL;
}

static CUresult push(struct call *c, struct obj *ctx) {
  if (T.n == 64) return CUDA_ERROR_INVALID_CONTEXT;
  T.stack[T.n++] = ctx;
  return CUDA_SUCCESS;
}

API cuCtxCreate_v2(CUcontext *out, unsigned flags, CUdevice d) {
  ENTER(NEED_INIT, "flags=%u, dev=%d", flags, d);
  NONNULL(out);
  DEV(d);
  struct obj *o = new_obj(c, CTX);
  o->flags = flags;
  o->refs = 1;
  TRY(push(c, o));
  *out = (CUcontext)o;
  DONE(0);
}
API cuCtxCreate_v4(CUcontext *out, CUctxCreateParams *p, unsigned flags, CUdevice d) FORWARD(NEED_INIT, cuCtxCreate_v2(out, flags, d))

static CUresult destroy_ctx(struct call *c, struct obj *o) {
  if (o->primary) return misuse(c, "invalid_handle", CUDA_ERROR_INVALID_CONTEXT, "the primary context is released, not destroyed");
  end_ctx(c, o);
  if (current() == o) T.n--;
  return CUDA_SUCCESS;
}
API cuCtxDestroy_v2(CUcontext h) { ENTER(NEED_INIT, "%p", (void *)h); DONE(destroy_ctx(c, GET(CTX, h))); }
API cuCtxAttach(CUcontext *out, unsigned flags) {
  ENTER(NEED_CTX, " ");
  NONNULL(out);
  if (flags) DONE(CUDA_ERROR_INVALID_VALUE);
  current()->refs++;
  *out = (CUcontext)current();
  DONE(0);
}
API cuCtxDetach(CUcontext h) {
  ENTER(NEED_CTX, "%p", (void *)h);
  struct obj *o = GET(CTX, h);
  if (o != current()) DONE(misuse(c, "wrong_context", CUDA_ERROR_INVALID_CONTEXT, "a context must be current to be detached"));
  if (o->primary) DONE(misuse(c, "primary_detach", CUDA_ERROR_INVALID_CONTEXT, "the primary context is released, not detached"));
  DONE(--o->refs ? CUDA_SUCCESS : destroy_ctx(c, o));
}
API cuCtxPushCurrent_v2(CUcontext h) { ENTER(NEED_INIT, "%p", (void *)h); DONE(push(c, GET(CTX, h))); }
API cuCtxPopCurrent_v2(CUcontext *out) {
  ENTER(NEED_INIT, " ");
  if (!T.n) DONE(misuse(c, "no_context", CUDA_ERROR_INVALID_CONTEXT, "pop from an empty context stack"));
  struct obj *o = T.stack[--T.n];
  if (out) *out = (CUcontext)o;
  DONE(0);
}
API cuCtxSetCurrent(CUcontext h) {
  ENTER(NEED_INIT, "%p", (void *)h);
  if (!h) { if (T.n) T.n--; DONE(0); }
  struct obj *o = GET(CTX, h);
  if (T.n) T.n--;
  DONE(push(c, o));
}
API cuCtxGetCurrent(CUcontext *out) { ENTER(NEED_INIT, " "); NONNULL(out); *out = (CUcontext)current(); DONE(0); }
API cuCtxGetDevice(CUdevice *d) { /* with no context this is a probe, not a mistake */
  ENTER(NEED_INIT, " ");
  NONNULL(d);
  *d = 0;
  DONE(current() ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT);
}
API cuCtxGetFlags(unsigned *f) { ENTER(NEED_CTX, " "); NONNULL(f); *f = current()->flags; DONE(0); }
API cuCtxGetId(CUcontext h, unsigned long long *id) { ENTER(NEED_INIT, "%p", (void *)h); NONNULL(id); struct obj *o = h ? GET(CTX, h) : current(); if (!o) DONE(CUDA_ERROR_INVALID_CONTEXT); *id = o->id; DONE(0); }
API cuCtxGetApiVersion(CUcontext h, unsigned *v) { ENTER(NEED_INIT, "%p", (void *)h); NONNULL(v); if (h) GET(CTX, h); *v = 3020; DONE(0); }
API cuCtxSynchronize(void) { ENTER(NEED_CTX, " "); TRY(not_while_capturing(c)); DONE(drain_all(c, true)); }
API cuCtxGetStreamPriorityRange(int *lo, int *hi) { ENTER(NEED_CTX, " "); if (lo) *lo = 0; if (hi) *hi = -5; DONE(0); }
API cuCtxGetCacheConfig(CUfunc_cache *v) { ENTER(NEED_CTX, " "); NONNULL(v); *v = CU_FUNC_CACHE_PREFER_NONE; DONE(0); }
API cuCtxSetCacheConfig(CUfunc_cache v) { ENTER(NEED_CTX, "%d", v); DONE(0); }
API cuCtxGetSharedMemConfig(CUsharedconfig *v) { ENTER(NEED_CTX, " "); NONNULL(v); *v = CU_SHARED_MEM_CONFIG_FOUR_BYTE_BANK_SIZE; DONE(0); }
API cuCtxSetSharedMemConfig(CUsharedconfig v) { ENTER(NEED_CTX, "%d", v); DONE(0); }
static size_t limits[CU_LIMIT_MAX] = {[CU_LIMIT_STACK_SIZE] = 1024, [CU_LIMIT_PRINTF_FIFO_SIZE] = 1 << 20, [CU_LIMIT_MALLOC_HEAP_SIZE] = 8 << 20};
API cuCtxGetLimit(size_t *v, CUlimit k) { ENTER(NEED_CTX, "%d", k); NONNULL(v); if ((unsigned)k >= CU_LIMIT_MAX) DONE(CUDA_ERROR_UNSUPPORTED_LIMIT); *v = limits[k]; DONE(0); }
API cuCtxSetLimit(CUlimit k, size_t v) { ENTER(NEED_CTX, "%d, %zu", k, v); if ((unsigned)k >= CU_LIMIT_MAX) DONE(CUDA_ERROR_UNSUPPORTED_LIMIT); limits[k] = v; DONE(0); }

API cuDevicePrimaryCtxRetain(CUcontext *out, CUdevice d) {
  ENTER(NEED_INIT, "%d", d);
  NONNULL(out);
  DEV(d);
  if (!S.primary) {
    S.primary = new_obj(c, CTX);
    S.primary->primary = true;
    S.primary->flags = S.primary_flags;
  }
  S.primary->refs++;
  *out = (CUcontext)S.primary;
  DONE(0);
}
API cuDevicePrimaryCtxRelease_v2(CUdevice d) {
  ENTER(NEED_INIT, "%d", d);
  DEV(d);
  if (!S.primary) DONE(misuse(c, "invalid_handle", CUDA_ERROR_INVALID_CONTEXT, "the primary context is not retained"));
  if (--S.primary->refs == 0) end_ctx(c, S.primary);
  DONE(0);
}
API cuDevicePrimaryCtxRelease(CUdevice d) FORWARD(NEED_INIT, cuDevicePrimaryCtxRelease_v2(d))
API cuDevicePrimaryCtxReset_v2(CUdevice d) { ENTER(NEED_INIT, "%d", d); DEV(d); if (S.primary) end_ctx(c, S.primary); DONE(0); }
API cuDevicePrimaryCtxReset(CUdevice d) FORWARD(NEED_INIT, cuDevicePrimaryCtxReset_v2(d))
API cuDevicePrimaryCtxSetFlags_v2(CUdevice d, unsigned f) { ENTER(NEED_INIT, "%d, %u", d, f); DEV(d); S.primary_flags = f; if (S.primary) S.primary->flags = f; DONE(0); }
API cuDevicePrimaryCtxSetFlags(CUdevice d, unsigned f) FORWARD(NEED_INIT, cuDevicePrimaryCtxSetFlags_v2(d, f))
API cuDevicePrimaryCtxGetState(CUdevice d, unsigned *f, int *active) { ENTER(NEED_INIT, "%d", d); DEV(d); if (f) *f = S.primary_flags; if (active) *active = !!S.primary; DONE(0); }

/* ---------------------------------------------------------------- allocation */

API cuMemGetInfo_v2(size_t *freed, size_t *total) {
  ENTER(NEED_CTX, " ");
  if (freed) *freed = S.total - S.mem[DEVICE].bytes;
  if (total) *total = S.total;
  DONE(0);
}
API cuMemAlloc_v2(CUdeviceptr *p, size_t n) {
  ENTER(NEED_CTX, "%zu", n);
  NONNULL(p);
  TRY(not_while_capturing(c));
  uintptr_t a = 0;
  TRY(allocate(c, &a, n, DEVICE, 0));
  *p = a;
  DONE(0);
}
API cuMemAllocPitch_v2(CUdeviceptr *p, size_t *pitch, size_t w, size_t h, unsigned elem) {
  ENTER(NEED_CTX, "%zu x %zu", w, h);
  NONNULL(p);
  NONNULL(pitch);
  TRY(not_while_capturing(c));
  if (elem != 4 && elem != 8 && elem != 16) DONE(CUDA_ERROR_INVALID_VALUE);
  size_t row = (w + 511) & ~(size_t)511;
  uintptr_t a = 0;
  TRY(allocate(c, &a, row * h, DEVICE, 0));
  *p = a;
  *pitch = row;
  DONE(0);
}
API cuMemAllocManaged(CUdeviceptr *p, size_t n, unsigned flags) {
  ENTER(NEED_CTX, "%zu, flags=%u", n, flags);
  NONNULL(p);
  TRY(not_while_capturing(c));
  if ((flags & 3) != CU_MEM_ATTACH_GLOBAL && (flags & 3) != CU_MEM_ATTACH_HOST) DONE(CUDA_ERROR_INVALID_VALUE);
  uintptr_t a = 0;
  TRY(allocate(c, &a, n, MANAGED, flags));
  *p = a;
  DONE(0);
}
API cuMemFree_v2(CUdeviceptr p) {
  ENTER(NEED_CTX, "%#llx", p);
  if (!p) DONE(0);
  TRY(not_while_capturing(c));
  TRY(drain_all(c, true)); /* freeing waits for the device */
  struct alloc *a;
  TRY(find_base(c, p, 1u << DEVICE | 1u << MANAGED, "a device allocation", &a));
  release(a);
  DONE(0);
}
API cuMemHostAlloc(void **p, size_t n, unsigned flags) {
  ENTER(NEED_CTX, "%zu, flags=%u", n, flags);
  NONNULL(p);
  TRY(not_while_capturing(c));
  if (flags & ~7u) DONE(CUDA_ERROR_INVALID_VALUE);
  uintptr_t a = 0;
  TRY(allocate(c, &a, n, HOST, flags));
  *p = (void *)a;
  DONE(0);
}
API cuMemAllocHost_v2(void **p, size_t n) FORWARD(NEED_CTX, cuMemHostAlloc(p, n, 0))
API cuMemFreeHost(void *p) {
  ENTER(NEED_CTX, "%p", p);
  if (!p) DONE(0);
  TRY(not_while_capturing(c));
  TRY(drain_all(c, true)); /* freeing waits for the device */
  struct alloc *a;
  TRY(find_base(c, (uintptr_t)p, 1u << HOST, "a page-locked allocation", &a));
  release(a);
  DONE(0);
}
API cuMemHostRegister_v2(void *p, size_t n, unsigned flags) {
  ENTER(NEED_CTX, "%p, %zu, flags=%u", p, n, flags);
  NONNULL(p);
  if (!n || flags & ~15u) DONE(CUDA_ERROR_INVALID_VALUE);
  long i = below((uintptr_t)p + n - 1);
  if (i >= 0 && S.a[i].live && S.a[i].p + S.a[i].n > (uintptr_t)p)
    DONE(misuse(c, "already_registered", CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED, "overlaps %s block #%lu", kind_name[S.a[i].kind], S.a[i].id));
  track(c, (uintptr_t)p, n, REGISTERED, flags);
  DONE(0);
}
API cuMemHostUnregister(void *p) {
  ENTER(NEED_CTX, "%p", p);
  TRY(drain_all(c, true));
  long i = below((uintptr_t)p);
  if (i < 0 || S.a[i].p != (uintptr_t)p || S.a[i].kind != REGISTERED)
    DONE(misuse(c, "invalid_free", CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED, "%p is not registered", p));
  release(&S.a[i]);
  DONE(0);
}
API cuMemHostGetDevicePointer_v2(CUdeviceptr *out, void *p, unsigned flags) {
  ENTER(NEED_CTX, "%p", p);
  NONNULL(out);
  enum kind k;
  TRY(check(c, (uintptr_t)p, 1, ON_HOST, "host pointer", &k));
  if (k != HOST && k != REGISTERED) DONE(misuse(c, "invalid_pointer", CUDA_ERROR_INVALID_VALUE, "%p is not page-locked host memory", p));
  *out = (uintptr_t)p;
  DONE(0);
}
API cuMemHostGetFlags(unsigned *flags, void *p) {
  ENTER(NEED_CTX, "%p", p);
  NONNULL(flags);
  enum kind k;
  TRY(check(c, (uintptr_t)p, 1, ON_HOST, "host pointer", &k));
  if (k != HOST) DONE(CUDA_ERROR_INVALID_VALUE);
  *flags = S.a[below((uintptr_t)p)].flags;
  DONE(0);
}
API cuMemGetAddressRange_v2(CUdeviceptr *base, size_t *n, CUdeviceptr p) {
  ENTER(NEED_CTX, "%#llx", p);
  TRY(check(c, p, 1, ON_DEVICE, "pointer", NULL));
  struct alloc *a = &S.a[below(p)];
  if (base) *base = a->p;
  if (n) *n = a->n;
  DONE(0);
}

static CUresult pointer_attribute(struct call *c, void *data, CUpointer_attribute attr, CUdeviceptr p) {
  long i = below(p);
  struct alloc *a = i >= 0 && S.a[i].live && p - S.a[i].p < S.a[i].n ? &S.a[i] : NULL;
  if (!a) return CUDA_ERROR_INVALID_VALUE; /* unknown memory: how callers ask "is it CUDA's?" */
  switch ((int)attr) {
  case CU_POINTER_ATTRIBUTE_CONTEXT: *(void **)data = a->ctx; break;
  case CU_POINTER_ATTRIBUTE_MEMORY_TYPE: *(unsigned *)data = a->kind == DEVICE || a->kind == MANAGED ? CU_MEMORYTYPE_DEVICE : CU_MEMORYTYPE_HOST; break;
  case CU_POINTER_ATTRIBUTE_DEVICE_POINTER: *(CUdeviceptr *)data = p; break;
  case CU_POINTER_ATTRIBUTE_HOST_POINTER: if (a->kind == DEVICE) return CUDA_ERROR_INVALID_VALUE; *(CUdeviceptr *)data = p; break;
  case CU_POINTER_ATTRIBUTE_BUFFER_ID: *(unsigned long long *)data = a->id; break;
  case CU_POINTER_ATTRIBUTE_IS_MANAGED: *(int *)data = a->kind == MANAGED; break;
  case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL: *(int *)data = 0; break;
  case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR: *(CUdeviceptr *)data = a->p; break;
  case CU_POINTER_ATTRIBUTE_RANGE_SIZE: *(size_t *)data = a->n; break;
  case CU_POINTER_ATTRIBUTE_MAPPED: *(int *)data = 1; break;
  default: return CUDA_ERROR_NOT_SUPPORTED;
  }
  return CUDA_SUCCESS;
}
API cuPointerGetAttribute(void *data, CUpointer_attribute attr, CUdeviceptr p) { ENTER(NEED_INIT, "%d, %#llx", attr, p); NONNULL(data); DONE(pointer_attribute(c, data, attr, p)); }
API cuPointerGetAttributes(unsigned n, CUpointer_attribute *attrs, void **data, CUdeviceptr p) {
  ENTER(NEED_INIT, "%u, %#llx", n, p);
  NONNULL(attrs);
  NONNULL(data);
  for (unsigned i = 0; i < n; i++) /* unlike the singular call, unknown memory gives zeros */
    if (pointer_attribute(c, data[i], attrs[i], p))
      switch ((int)attrs[i]) {
      case CU_POINTER_ATTRIBUTE_MEMORY_TYPE: case CU_POINTER_ATTRIBUTE_IS_MANAGED: case CU_POINTER_ATTRIBUTE_MAPPED: *(int *)data[i] = 0; break;
      case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL: *(int *)data[i] = -2; break;
      case CU_POINTER_ATTRIBUTE_CONTEXT: case CU_POINTER_ATTRIBUTE_DEVICE_POINTER: case CU_POINTER_ATTRIBUTE_HOST_POINTER: *(void **)data[i] = NULL; break;
      default: DONE(CUDA_ERROR_NOT_SUPPORTED);
      }
  DONE(0);
}

API cuMemAllocAsync(CUdeviceptr *p, size_t n, CUstream hs) {
  ENTER(NEED_CTX, "%zu, stream=%p", n, (void *)hs);
  NONNULL(p);
  struct obj *s = GET_STREAM(hs);
  if (s && s->capture) DONE(CUDA_ERROR_NOT_SUPPORTED); /* graph memory nodes are not implemented */
  uintptr_t a = 0;
  TRY(allocate(c, &a, n, DEVICE, 0));
  *p = a;
  DONE(0);
}
API cuMemAllocFromPoolAsync(CUdeviceptr *p, size_t n, CUmemoryPool pool, CUstream hs) {
  ENTER(NEED_CTX, "%zu, pool=%p, stream=%p", n, (void *)pool, (void *)hs);
  GET(POOL, pool);
  DONE(cuMemAllocAsync(p, n, hs));
}
API cuMemFreeAsync(CUdeviceptr p, CUstream hs) {
  ENTER(NEED_CTX, "%#llx, stream=%p", p, (void *)hs);
  struct obj *s = GET_STREAM(hs);
  if (s && s->capture) DONE(CUDA_ERROR_NOT_SUPPORTED);
  TRY(drain_all(c, true));
  struct alloc *a;
  TRY(find_base(c, p, 1u << DEVICE, "a device allocation", &a));
  release(a);
  DONE(0);
}
API cuDeviceGetDefaultMemPool(CUmemoryPool *out, CUdevice d) {
  ENTER(NEED_INIT, "%d", d);
  NONNULL(out);
  DEV(d);
  if (!S.pool) { S.pool = new_obj(c, POOL); S.pool->ctx = NULL; }
  *out = (CUmemoryPool)S.pool;
  DONE(0);
}
API cuDeviceGetMemPool(CUmemoryPool *out, CUdevice d) FORWARD(NEED_INIT, cuDeviceGetDefaultMemPool(out, d))
API cuMemPoolSetAttribute(CUmemoryPool pool, CUmemPool_attribute attr, void *v) { ENTER(NEED_INIT, "%p, %d", (void *)pool, attr); GET(POOL, pool); DONE(0); }
API cuMemPoolTrimTo(CUmemoryPool pool, size_t keep) { ENTER(NEED_INIT, "%p, %zu", (void *)pool, keep); GET(POOL, pool); DONE(0); }

/* hints */
API cuMemPrefetchAsync(CUdeviceptr p, size_t n, CUdevice d, CUstream hs) { ENTER(NEED_CTX, "%#llx, %zu", p, n); GET_STREAM(hs); DONE(check(c, p, n, ON_DEVICE, "range", NULL)); }
API cuMemPrefetchAsync_v2(CUdeviceptr p, size_t n, CUmemLocation l, unsigned f, CUstream hs) { ENTER(NEED_CTX, "%#llx, %zu", p, n); GET_STREAM(hs); DONE(check(c, p, n, ON_DEVICE, "range", NULL)); }
API cuMemAdvise(CUdeviceptr p, size_t n, CUmem_advise a, CUdevice d) { ENTER(NEED_CTX, "%#llx, %zu", p, n); DONE(check(c, p, n, ON_DEVICE, "range", NULL)); }
API cuMemAdvise_v2(CUdeviceptr p, size_t n, CUmem_advise a, CUmemLocation l) { ENTER(NEED_CTX, "%#llx, %zu", p, n); DONE(check(c, p, n, ON_DEVICE, "range", NULL)); }
API cuStreamAttachMemAsync(CUstream hs, CUdeviceptr p, size_t n, unsigned f) { ENTER(NEED_CTX, "%#llx, %zu", p, n); GET_STREAM(hs); DONE(check(c, p, n, ON_DEVICE, "range", NULL)); }

/* ---------------------------------------------------------------- copies and sets */

API cuMemcpyHtoD_v2(CUdeviceptr d, const void *s, size_t n) { ENTER(NEED_CTX, "%#llx, %p, %zu", d, s, n); struct op o = copy1(d, ON_DEVICE, (uintptr_t)s, ON_HOST, n); DONE(now(c, &o)); }
API cuMemcpyDtoH_v2(void *d, CUdeviceptr s, size_t n) { ENTER(NEED_CTX, "%p, %#llx, %zu", d, s, n); struct op o = copy1((uintptr_t)d, ON_HOST, s, ON_DEVICE, n); DONE(now(c, &o)); }
API cuMemcpyDtoD_v2(CUdeviceptr d, CUdeviceptr s, size_t n) { ENTER(NEED_CTX, "%#llx, %#llx, %zu", d, s, n); struct op o = copy1(d, ON_DEVICE, s, ON_DEVICE, n); DONE(now(c, &o)); }
API cuMemcpy(CUdeviceptr d, CUdeviceptr s, size_t n) { ENTER(NEED_CTX, "%#llx, %#llx, %zu", d, s, n); struct op o = copy1(d, ANYWHERE, s, ANYWHERE, n); DONE(now(c, &o)); }
API cuMemcpyHtoDAsync_v2(CUdeviceptr d, const void *s, size_t n, CUstream hs) { ENTER(NEED_CTX, "%#llx, %p, %zu, stream=%p", d, s, n, (void *)hs); struct op o = copy1(d, ON_DEVICE, (uintptr_t)s, ON_HOST, n); DONE(submit(c, &o, hs)); }
API cuMemcpyDtoHAsync_v2(void *d, CUdeviceptr s, size_t n, CUstream hs) { ENTER(NEED_CTX, "%p, %#llx, %zu, stream=%p", d, s, n, (void *)hs); struct op o = copy1((uintptr_t)d, ON_HOST, s, ON_DEVICE, n); DONE(submit(c, &o, hs)); }
API cuMemcpyDtoDAsync_v2(CUdeviceptr d, CUdeviceptr s, size_t n, CUstream hs) { ENTER(NEED_CTX, "%#llx, %#llx, %zu, stream=%p", d, s, n, (void *)hs); struct op o = copy1(d, ON_DEVICE, s, ON_DEVICE, n); DONE(submit(c, &o, hs)); }
API cuMemcpyAsync(CUdeviceptr d, CUdeviceptr s, size_t n, CUstream hs) { ENTER(NEED_CTX, "%#llx, %#llx, %zu, stream=%p", d, s, n, (void *)hs); struct op o = copy1(d, ANYWHERE, s, ANYWHERE, n); DONE(submit(c, &o, hs)); }

static CUresult side(CUmemorytype t, const void *host, CUdeviceptr dev, uintptr_t *p, int *want) {
  switch (t) {
  case CU_MEMORYTYPE_HOST: *p = (uintptr_t)host; *want = ON_HOST; return CUDA_SUCCESS;
  case CU_MEMORYTYPE_DEVICE: *p = dev; *want = ON_DEVICE; return CUDA_SUCCESS;
  case CU_MEMORYTYPE_UNIFIED: *p = dev; *want = ANYWHERE; return CUDA_SUCCESS;
  default: return CUDA_ERROR_NOT_SUPPORTED; /* arrays */
  }
}
static CUresult copy3(const CUDA_MEMCPY3D *m, struct op *o) {
  *o = (struct op){.what = COPY, .w = m->WidthInBytes, .h = m->Height, .d = m->Depth};
  CUresult r = side(m->srcMemoryType, m->srcHost, m->srcDevice, &o->src, &o->want_src);
  if (!r) r = side(m->dstMemoryType, m->dstHost, m->dstDevice, &o->dst, &o->want_dst);
  if (r) return r;
  o->spitch = m->srcPitch ? m->srcPitch : m->srcXInBytes + m->WidthInBytes;
  o->dpitch = m->dstPitch ? m->dstPitch : m->dstXInBytes + m->WidthInBytes;
  o->sslice = o->spitch * (m->srcHeight ? m->srcHeight : m->srcY + m->Height);
  o->dslice = o->dpitch * (m->dstHeight ? m->dstHeight : m->dstY + m->Height);
  o->src += m->srcZ * o->sslice + m->srcY * o->spitch + m->srcXInBytes;
  o->dst += m->dstZ * o->dslice + m->dstY * o->dpitch + m->dstXInBytes;
  return o->spitch < m->WidthInBytes || o->dpitch < m->WidthInBytes ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}
static CUresult copy2(const CUDA_MEMCPY2D *m, struct op *o) {
  CUDA_MEMCPY3D n = {.srcXInBytes = m->srcXInBytes, .srcY = m->srcY, .srcMemoryType = m->srcMemoryType, .srcHost = m->srcHost,
    .srcDevice = m->srcDevice, .srcPitch = m->srcPitch, .dstXInBytes = m->dstXInBytes, .dstY = m->dstY, .dstMemoryType = m->dstMemoryType,
    .dstHost = m->dstHost, .dstDevice = m->dstDevice, .dstPitch = m->dstPitch, .WidthInBytes = m->WidthInBytes, .Height = m->Height, .Depth = 1};
  return copy3(&n, o);
}
API cuMemcpy2D_v2(const CUDA_MEMCPY2D *m) { ENTER(NEED_CTX, "%p", (void *)m); NONNULL(m); struct op o; TRY(copy2(m, &o)); DONE(now(c, &o)); }
API cuMemcpy2DUnaligned_v2(const CUDA_MEMCPY2D *m) FORWARD(NEED_CTX, cuMemcpy2D_v2(m))
API cuMemcpy2DAsync_v2(const CUDA_MEMCPY2D *m, CUstream hs) { ENTER(NEED_CTX, "%p, stream=%p", (void *)m, (void *)hs); NONNULL(m); struct op o; TRY(copy2(m, &o)); DONE(submit(c, &o, hs)); }
API cuMemcpy3D_v2(const CUDA_MEMCPY3D *m) { ENTER(NEED_CTX, "%p", (void *)m); NONNULL(m); struct op o; TRY(copy3(m, &o)); DONE(now(c, &o)); }
API cuMemcpy3DAsync_v2(const CUDA_MEMCPY3D *m, CUstream hs) { ENTER(NEED_CTX, "%p, stream=%p", (void *)m, (void *)hs); NONNULL(m); struct op o; TRY(copy3(m, &o)); DONE(submit(c, &o, hs)); }

#define MEMSET(bits, T)                                                                                            \
  API cuMemsetD##bits##_v2(CUdeviceptr d, T v, size_t n) { ENTER(NEED_CTX, "%#llx, %u, %zu", d, (unsigned)v, n);     \
    struct op o = set2(d, 0, v, sizeof v, n, 1); DONE(submit(c, &o, NULL)); }                                       \
  API cuMemsetD##bits##Async(CUdeviceptr d, T v, size_t n, CUstream hs) {                                           \
    ENTER(NEED_CTX, "%#llx, %u, %zu, stream=%p", d, (unsigned)v, n, (void *)hs);                                    \
    struct op o = set2(d, 0, v, sizeof v, n, 1); DONE(submit(c, &o, hs)); }                                         \
  API cuMemsetD2D##bits##_v2(CUdeviceptr d, size_t pitch, T v, size_t w, size_t h) {                                \
    ENTER(NEED_CTX, "%#llx, %u, %zux%zu", d, (unsigned)v, w, h);                                                    \
    struct op o = set2(d, pitch, v, sizeof v, w, h); DONE(submit(c, &o, NULL)); }                                   \
  API cuMemsetD2D##bits##Async(CUdeviceptr d, size_t pitch, T v, size_t w, size_t h, CUstream hs) {                 \
    ENTER(NEED_CTX, "%#llx, %u, %zux%zu, stream=%p", d, (unsigned)v, w, h, (void *)hs);                             \
    struct op o = set2(d, pitch, v, sizeof v, w, h); DONE(submit(c, &o, hs)); }
MEMSET(8, unsigned char)
MEMSET(16, unsigned short)
MEMSET(32, unsigned)

/* ---------------------------------------------------------------- streams, events, captures */

API cuStreamCreateWithPriority(CUstream *out, unsigned flags, int prio) {
  ENTER(NEED_CTX, "flags=%u, priority=%d", flags, prio);
  NONNULL(out);
  if (flags & ~1u) DONE(CUDA_ERROR_INVALID_VALUE);
  struct obj *o = new_obj(c, STREAM);
  o->flags = flags;
  o->prio = prio > 0 ? 0 : prio < -5 ? -5 : prio;
  *out = (CUstream)o;
  DONE(0);
}
API cuStreamCreate(CUstream *out, unsigned flags) FORWARD(NEED_CTX, cuStreamCreateWithPriority(out, flags, 0))
static void end_capture(struct obj *k) {
  for EACH(s, STREAM)
    if (s->capture == k) s->capture = NULL;
  if (k->broken) k->graph->live = false;
  k->live = false;
  S.captures--;
}
API cuStreamDestroy_v2(CUstream h) {
  ENTER(NEED_CTX, "%p", (void *)h);
  struct obj *s = GET(STREAM, h);
  if (s->capture) {
    misuse(c, "capture", 0, "stream #%lu is destroyed while it is being captured", s->id);
    s->capture->broken = true;
    if (s->capture->origin == s) end_capture(s->capture);
  }
  TRY(drain(c, s, NULL, 0)); /* CUDA carries its work out too, later */
  s->live = false;
  DONE(0);
}
API cuStreamSynchronize(CUstream h) {
  ENTER(NEED_CTX, "%p", (void *)h);
  struct obj *s = GET_STREAM(h);
  if (s && s->capture) {
    s->capture->broken = true;
    DONE(misuse(c, "capture", CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "stream #%lu is being captured", s->id));
  }
  DONE(s ? drain(c, s, NULL, 0) : drain_all(c, false));
}
API cuStreamQuery(CUstream h) FORWARD(NEED_CTX, cuStreamSynchronize(h))
API cuStreamGetFlags(CUstream h, unsigned *v) { ENTER(NEED_CTX, "%p", (void *)h); NONNULL(v); struct obj *s = GET_STREAM(h); *v = s ? s->flags : 0; DONE(0); }
API cuStreamGetPriority(CUstream h, int *v) { ENTER(NEED_CTX, "%p", (void *)h); NONNULL(v); struct obj *s = GET_STREAM(h); *v = s ? s->prio : 0; DONE(0); }
API cuStreamGetId(CUstream h, unsigned long long *v) { ENTER(NEED_CTX, "%p", (void *)h); NONNULL(v); struct obj *s = GET_STREAM(h); *v = s ? s->id : (uintptr_t)h; DONE(0); }
API cuStreamGetCtx(CUstream h, CUcontext *v) { ENTER(NEED_CTX, "%p", (void *)h); NONNULL(v); struct obj *s = GET_STREAM(h); *v = (CUcontext)(s ? s->ctx : current()); DONE(0); }
API cuStreamGetDevice(CUstream h, CUdevice *v) { ENTER(NEED_CTX, "%p", (void *)h); NONNULL(v); GET_STREAM(h); *v = 0; DONE(0); }

API cuLaunchHostFunc(CUstream h, CUhostFn fn, void *user) {
  ENTER(NEED_CTX, "stream=%p", (void *)h);
  if (!fn) DONE(CUDA_ERROR_INVALID_VALUE);
  struct op o = {.what = CALL, .fn = fn, .user = user};
  DONE(submit(c, &o, h));
}
API cuStreamAddCallback(CUstream h, CUstreamCallback fn, void *user, unsigned flags) {
  ENTER(NEED_CTX, "stream=%p", (void *)h);
  if (!fn || flags) DONE(CUDA_ERROR_INVALID_VALUE);
  struct obj *s = GET_STREAM(h);
  if (s && s->capture) DONE(CUDA_ERROR_NOT_SUPPORTED);
  T.call = NULL;
  pthread_mutex_unlock(&S.lock);
  fn(h, CUDA_SUCCESS, user);
  pthread_mutex_lock(&S.lock);
  T.call = c;
  DONE(0);
}

API cuEventCreate(CUevent *out, unsigned flags) {
  ENTER(NEED_CTX, "flags=%u", flags);
  NONNULL(out);
  if (flags & ~7u) DONE(CUDA_ERROR_INVALID_VALUE);
  struct obj *o = new_obj(c, EVENT);
  o->flags = flags;
  *out = (CUevent)o;
  DONE(0);
}
API cuEventDestroy_v2(CUevent h) { ENTER(NEED_CTX, "%p", (void *)h); GET(EVENT, h)->live = false; DONE(0); }
API cuEventRecordWithFlags(CUevent h, CUstream hs, unsigned flags) {
  ENTER(NEED_CTX, "%p, stream=%p", (void *)h, (void *)hs);
  struct obj *e = GET(EVENT, h), *s = GET_STREAM(hs);
  if (e->ctx != (s ? s->ctx : current()))
    DONE(misuse(c, "wrong_context", CUDA_ERROR_INVALID_HANDLE, "event #%lu and the stream are of different contexts", e->id));
  e->capture = s ? s->capture : NULL;
  if (e->capture) DONE(0);
  struct op o = {.what = RECORD, .event = e, .record = ++e->records};
  e->stream = s;
  DONE(submit(c, &o, hs));
}
API cuEventRecord(CUevent h, CUstream hs) FORWARD(NEED_CTX, cuEventRecordWithFlags(h, hs, 0))
API cuEventSynchronize(CUevent h) {
  ENTER(NEED_CTX, "%p", (void *)h);
  struct obj *e = GET(EVENT, h);
  if (e->capture && e->capture->live) {
    e->capture->broken = true;
    DONE(misuse(c, "capture", CUDA_ERROR_CAPTURED_EVENT, "event #%lu was last recorded in a capture", e->id));
  }
  DONE(e->stream ? drain(c, e->stream, e, e->records) : CUDA_SUCCESS);
}
API cuEventQuery(CUevent h) FORWARD(NEED_CTX, cuEventSynchronize(h))
API cuEventElapsedTime_v2(float *ms, CUevent ha, CUevent hb) {
  ENTER(NEED_CTX, "%p, %p", (void *)ha, (void *)hb);
  NONNULL(ms);
  struct obj *a = GET(EVENT, ha), *b = GET(EVENT, hb);
  if (!a->records || !b->records || (a->flags | b->flags) & CU_EVENT_DISABLE_TIMING)
    DONE(misuse(c, "event_timing", CUDA_ERROR_INVALID_HANDLE, "an event was never recorded, or has timing disabled"));
  if (a->done < a->records || b->done < b->records) DONE(CUDA_ERROR_NOT_READY);
  *ms = (float)((b->when.tv_sec - a->when.tv_sec) * 1e3 + (b->when.tv_nsec - a->when.tv_nsec) * 1e-6);
  DONE(0);
}
API cuEventElapsedTime(float *ms, CUevent a, CUevent b) FORWARD(NEED_CTX, cuEventElapsedTime_v2(ms, a, b))
API cuStreamWaitEvent(CUstream hs, CUevent h, unsigned flags) {
  ENTER(NEED_CTX, "%p, event=%p", (void *)hs, (void *)h);
  struct obj *e = GET(EVENT, h), *s = GET_STREAM(hs);
  if (s && !s->capture && e->capture && e->capture->live) s->capture = e->capture; /* fork into the capture */
  if ((s && s->capture) || !e->records) DONE(0);
  struct op o = {.what = WAIT, .event = e, .record = e->records};
  DONE(submit(c, &o, hs));
}

API cuStreamBeginCapture_v2(CUstream hs, CUstreamCaptureMode mode) {
  ENTER(NEED_CTX, "%p, mode=%d", (void *)hs, mode);
  struct obj *s = GET_STREAM(hs);
  if (!s) DONE(misuse(c, "capture", CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "a default stream cannot be captured"));
  if (s->capture) DONE(misuse(c, "capture", CUDA_ERROR_ILLEGAL_STATE, "stream #%lu is being captured already", s->id));
  struct obj *k = new_obj(c, CAPTURE);
  k->origin = s;
  k->mode = mode;
  k->thread = pthread_self();
  k->graph = new_obj(c, GRAPH);
  s->capture = k;
  S.captures++;
  DONE(0);
}
API cuStreamEndCapture(CUstream hs, CUgraph *out) {
  ENTER(NEED_CTX, "%p", (void *)hs);
  NONNULL(out);
  *out = NULL;
  struct obj *s = GET(STREAM, hs), *k = s->capture;
  if (!k) DONE(misuse(c, "capture", CUDA_ERROR_ILLEGAL_STATE, "stream #%lu is not being captured", s->id));
  if (k->origin != s) DONE(misuse(c, "capture", CUDA_ERROR_STREAM_CAPTURE_UNMATCHED, "the capture began on another stream"));
  if (k->mode != CU_STREAM_CAPTURE_MODE_RELAXED && !pthread_equal(k->thread, pthread_self()))
    DONE(misuse(c, "capture", CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, "the capture began on another thread"));
  if (c->late) k->broken = true; /* refused: the stream is as before, and no graph was made */
  end_capture(k);
  if (k->broken) DONE(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
  *out = (CUgraph)k->graph;
  DONE(0);
}
API cuStreamIsCapturing(CUstream hs, CUstreamCaptureStatus *v) {
  ENTER(NEED_CTX, "%p", (void *)hs);
  NONNULL(v);
  struct obj *s = GET_STREAM(hs);
  *v = !s || !s->capture ? CU_STREAM_CAPTURE_STATUS_NONE : s->capture->broken ? CU_STREAM_CAPTURE_STATUS_INVALIDATED : CU_STREAM_CAPTURE_STATUS_ACTIVE;
  DONE(0);
}
API cuStreamGetCaptureInfo_v2(CUstream hs, CUstreamCaptureStatus *v, cuuint64_t *id, CUgraph *g, const CUgraphNode **deps, size_t *ndeps) {
  ENTER(NEED_CTX, "%p", (void *)hs);
  TRY(cuStreamIsCapturing(hs, v));
  if (*v == CU_STREAM_CAPTURE_STATUS_NONE) DONE(0);
  struct obj *k = GET_STREAM(hs)->capture;
  if (id) *id = k->id;
  if (g) *g = (CUgraph)k->graph;
  if (deps) *deps = NULL; /* dependencies are not kept: operations run in the order they were captured */
  if (ndeps) *ndeps = 0;
  DONE(0);
}
API cuStreamGetCaptureInfo_v3(CUstream hs, CUstreamCaptureStatus *v, cuuint64_t *id, CUgraph *g, const CUgraphNode **deps, const CUgraphEdgeData **edges, size_t *ndeps) {
  ENTER(NEED_CTX, "%p", (void *)hs);
  if (edges) *edges = NULL;
  DONE(cuStreamGetCaptureInfo_v2(hs, v, id, g, deps, ndeps));
}
API cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode *m) {
  ENTER(NEED_INIT, " ");
  NONNULL(m);
  CUstreamCaptureMode old = T.mode;
  T.mode = *m;
  *m = old;
  DONE(0);
}

/* ---------------------------------------------------------------- graphs */

static void copy_ops(struct obj *to, const struct obj *from) {
  free(to->ops);
  to->nops = from->nops;
  to->room = from->nops + 1;
  to->ops = malloc(to->room * sizeof *to->ops);
  if (from->nops) memcpy(to->ops, from->ops, from->nops * sizeof *to->ops);
}
API cuGraphCreate(CUgraph *out, unsigned flags) { ENTER(NEED_CTX, "%u", flags); NONNULL(out); *out = (CUgraph)new_obj(c, GRAPH); DONE(0); }
API cuGraphDestroy(CUgraph h) { ENTER(NEED_CTX, "%p", (void *)h); GET(GRAPH, h)->live = false; DONE(0); }
API cuGraphClone(CUgraph *out, CUgraph h) { ENTER(NEED_CTX, "%p", (void *)h); NONNULL(out); struct obj *g = GET(GRAPH, h), *n = new_obj(c, GRAPH); copy_ops(n, g); *out = (CUgraph)n; DONE(0); }
API cuGraphGetNodes(CUgraph h, CUgraphNode *nodes, size_t *n) {
  ENTER(NEED_CTX, "%p", (void *)h);
  NONNULL(n);
  struct obj *g = GET(GRAPH, h);
  if (nodes) for (size_t i = 0; i < *n; i++) nodes[i] = i < g->nops ? (CUgraphNode)&g->ops[i] : NULL; /* opaque */
  if (!nodes || *n > g->nops) *n = g->nops;
  DONE(0);
}
API cuGraphInstantiateWithFlags(CUgraphExec *out, CUgraph h, unsigned long long flags) {
  ENTER(NEED_CTX, "%p, flags=%llu", (void *)h, flags);
  NONNULL(out);
  struct obj *g = GET(GRAPH, h), *x = new_obj(c, EXEC);
  copy_ops(x, g);
  *out = (CUgraphExec)x;
  DONE(0);
}
API cuGraphInstantiate_v2(CUgraphExec *out, CUgraph h, CUgraphNode *node, char *log, size_t n) {
  ENTER(NEED_CTX, "%p", (void *)h);
  if (node) *node = NULL;
  if (log && n) *log = 0;
  DONE(cuGraphInstantiateWithFlags(out, h, 0));
}
API cuGraphInstantiateWithParams(CUgraphExec *out, CUgraph h, CUDA_GRAPH_INSTANTIATE_PARAMS *p) {
  ENTER(NEED_CTX, "%p", (void *)h);
  if (p) { p->result_out = CUDA_GRAPH_INSTANTIATE_SUCCESS; p->hErrNode_out = NULL; }
  DONE(cuGraphInstantiateWithFlags(out, h, p ? p->flags : 0));
}
API cuGraphExecUpdate_v2(CUgraphExec h, CUgraph hg, CUgraphExecUpdateResultInfo *info) {
  ENTER(NEED_CTX, "%p, %p", (void *)h, (void *)hg);
  struct obj *x = GET(EXEC, h), *g = GET(GRAPH, hg);
  bool same = x->nops == g->nops;
  for (size_t i = 0; same && i < g->nops; i++) same = x->ops[i].what == g->ops[i].what;
  if (info) { memset(info, 0, sizeof *info); info->result = same ? CU_GRAPH_EXEC_UPDATE_SUCCESS : CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED; }
  if (same) copy_ops(x, g);
  DONE(same ? CUDA_SUCCESS : CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE);
}
API cuGraphExecDestroy(CUgraphExec h) { ENTER(NEED_CTX, "%p", (void *)h); GET(EXEC, h)->live = false; DONE(0); }
API cuGraphUpload(CUgraphExec h, CUstream hs) { ENTER(NEED_CTX, "%p, stream=%p", (void *)h, (void *)hs); GET(EXEC, h); GET_STREAM(hs); DONE(0); }
API cuGraphLaunch(CUgraphExec h, CUstream hs) {
  ENTER(NEED_CTX, "%p, stream=%p", (void *)h, (void *)hs);
  struct obj *x = GET(EXEC, h), *s = GET_STREAM(hs);
  if (s && s->capture) DONE(CUDA_ERROR_NOT_SUPPORTED); /* child graphs are not implemented */
  S.graph_launches++;
  for (size_t i = 0; i < x->nops; i++) TRY(submit(c, &x->ops[i], hs)); /* each pointer is checked again, every launch */
  DONE(0);
}

/* ---------------------------------------------------------------- code: accepted, counted, never run */

static CUresult load(struct call *c, void *out, const void *image) {
  if (!out || !image) return misuse(c, "invalid_argument", CUDA_ERROR_INVALID_VALUE, "NULL image or result");
  struct obj *m = new_obj(c, MODULE);
  *(void **)out = m;
  return CUDA_SUCCESS;
}
static CUresult load_file(struct call *c, void *out, const char *path) {
  return !path || access(path, R_OK) ? CUDA_ERROR_FILE_NOT_FOUND : load(c, out, path);
}
static CUresult function(struct call *c, struct obj *m, void *out, const char *name) {
  if (!out || !name || !*name) return CUDA_ERROR_INVALID_VALUE;
  struct obj *f = NULL;
  for EACH(o, FUNCTION)
    if (o->module == m && !strcmp(o->name, name)) f = o;
  if (!f) {
    f = new_obj(c, FUNCTION);
    f->module = m;
    f->name = strdup(name);
  }
  *(void **)out = f;
  return CUDA_SUCCESS;
}
static CUresult unload(struct obj *m) {
  for EACH(o, FUNCTION)
    if (o->module == m) o->live = false;
  m->live = false;
  return CUDA_SUCCESS;
}
API cuModuleLoad(CUmodule *out, const char *path) { ENTER(NEED_CTX, "%s", path ? path : "NULL"); DONE(load_file(c, out, path)); }
API cuModuleLoadData(CUmodule *out, const void *image) { ENTER(NEED_CTX, "%p", image); DONE(load(c, out, image)); }
API cuModuleLoadDataEx(CUmodule *out, const void *image, unsigned n, CUjit_option *o, void **v) { ENTER(NEED_CTX, "%p", image); DONE(load(c, out, image)); }
API cuModuleLoadFatBinary(CUmodule *out, const void *image) { ENTER(NEED_CTX, "%p", image); DONE(load(c, out, image)); }
API cuModuleUnload(CUmodule h) { ENTER(NEED_CTX, "%p", (void *)h); DONE(unload(GET(MODULE, h))); }
API cuModuleGetFunction(CUfunction *out, CUmodule h, const char *name) { ENTER(NEED_CTX, "%p, %s", (void *)h, name ? name : "NULL"); DONE(function(c, GET(MODULE, h), out, name)); }
API cuModuleGetGlobal_v2(CUdeviceptr *p, size_t *n, CUmodule h, const char *name) { ENTER(NEED_CTX, "%p, %s", (void *)h, name ? name : "NULL"); GET(MODULE, h); DONE(CUDA_ERROR_NOT_FOUND); }
API cuModuleGetLoadingMode(CUmoduleLoadingMode *m) { ENTER(NEED_INIT, " "); NONNULL(m); *m = CU_MODULE_EAGER_LOADING; DONE(0); }

/* a library is a module, a kernel is a function */
API cuLibraryLoadData(CUlibrary *out, const void *image, CUjit_option *jo, void **jv, unsigned nj, CUlibraryOption *lo, void **lv, unsigned nl) { ENTER(NEED_INIT, "%p", image); DONE(load(c, out, image)); }
API cuLibraryLoadFromFile(CUlibrary *out, const char *path, CUjit_option *jo, void **jv, unsigned nj, CUlibraryOption *lo, void **lv, unsigned nl) { ENTER(NEED_INIT, "%s", path ? path : "NULL"); DONE(load_file(c, out, path)); }
API cuLibraryUnload(CUlibrary h) { ENTER(NEED_INIT, "%p", (void *)h); DONE(unload(GET(MODULE, h))); }
API cuLibraryGetKernel(CUkernel *out, CUlibrary h, const char *name) { ENTER(NEED_INIT, "%p, %s", (void *)h, name ? name : "NULL"); DONE(function(c, GET(MODULE, h), out, name)); }
API cuLibraryGetModule(CUmodule *out, CUlibrary h) { ENTER(NEED_CTX, "%p", (void *)h); NONNULL(out); *out = (CUmodule)GET(MODULE, h); DONE(0); }
API cuKernelGetFunction(CUfunction *out, CUkernel h) { ENTER(NEED_CTX, "%p", (void *)h); NONNULL(out); *out = (CUfunction)GET(FUNCTION, h); DONE(0); }

static CUresult attribute(int *v, CUfunction_attribute a) {
  if (!v || (unsigned)a >= CU_FUNC_ATTRIBUTE_MAX) return CUDA_ERROR_INVALID_VALUE;
  *v = a == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : a == CU_FUNC_ATTRIBUTE_NUM_REGS ? 32 :
       a == CU_FUNC_ATTRIBUTE_PTX_VERSION || a == CU_FUNC_ATTRIBUTE_BINARY_VERSION ? S.cc_major * 10 + S.cc_minor : 0;
  return CUDA_SUCCESS;
}
API cuFuncGetAttribute(int *v, CUfunction_attribute a, CUfunction h) { ENTER(NEED_CTX, "%d, %p", a, (void *)h); GET(FUNCTION, h); DONE(attribute(v, a)); }
API cuFuncSetAttribute(CUfunction h, CUfunction_attribute a, int v) { ENTER(NEED_CTX, "%p, %d, %d", (void *)h, a, v); GET(FUNCTION, h); DONE(0); }
API cuFuncSetCacheConfig(CUfunction h, CUfunc_cache v) { ENTER(NEED_CTX, "%p, %d", (void *)h, v); GET(FUNCTION, h); DONE(0); }
API cuFuncSetSharedMemConfig(CUfunction h, CUsharedconfig v) { ENTER(NEED_CTX, "%p, %d", (void *)h, v); GET(FUNCTION, h); DONE(0); }
API cuFuncGetModule(CUmodule *out, CUfunction h) { ENTER(NEED_CTX, "%p", (void *)h); NONNULL(out); *out = (CUmodule)GET(FUNCTION, h)->module; DONE(0); }
API cuFuncGetName(const char **out, CUfunction h) { ENTER(NEED_CTX, "%p", (void *)h); NONNULL(out); *out = GET(FUNCTION, h)->name; DONE(0); }
API cuKernelGetName(const char **out, CUkernel h) { ENTER(NEED_INIT, "%p", (void *)h); NONNULL(out); *out = GET(FUNCTION, h)->name; DONE(0); }
API cuKernelGetAttribute(int *v, CUfunction_attribute a, CUkernel h, CUdevice d) { ENTER(NEED_INIT, "%d, %p", a, (void *)h); GET(FUNCTION, h); DONE(attribute(v, a)); }
API cuKernelSetAttribute(CUfunction_attribute a, int v, CUkernel h, CUdevice d) { ENTER(NEED_INIT, "%d, %d, %p", a, v, (void *)h); GET(FUNCTION, h); DONE(0); }

static CUresult launch(struct call *c, CUfunction h, const unsigned g[3], const unsigned b[3], unsigned shared, CUstream hs) {
  struct obj *f;
  CUresult r = get(c, FUNCTION, h, &f);
  if (r) return r;
  if (!g[0] || !g[1] || !g[2] || !b[0] || !b[1] || !b[2] || g[0] > 2147483647u || g[1] > 65535 || g[2] > 65535 ||
      (unsigned long long)b[0] * b[1] * b[2] > 1024 || b[2] > 64 || shared > 101376)
    return misuse(c, "launch_config", CUDA_ERROR_INVALID_VALUE, "%s: grid %ux%ux%u, block %ux%ux%u, %u bytes shared", f->name, g[0], g[1], g[2], b[0], b[1], b[2], shared);
  struct obj *s;
  if ((r = get_stream(c, hs, &s))) return r;
  if (s && s->ctx != current()) return misuse(c, "wrong_context", CUDA_ERROR_INVALID_HANDLE, "stream #%lu is not of the current context", s->id);
  struct op o = {.what = LAUNCH, .f = f};
  return submit(c, &o, hs);
}
API cuLaunchKernel(CUfunction h, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, CUstream hs, void **params, void **extra) {
  ENTER(NEED_CTX, "%p, grid=%ux%ux%u, block=%ux%ux%u, stream=%p", (void *)h, gx, gy, gz, bx, by, bz, (void *)hs);
  DONE(launch(c, h, (unsigned[]){gx, gy, gz}, (unsigned[]){bx, by, bz}, shared, hs));
}
API cuLaunchKernelEx(const CUlaunchConfig *k, CUfunction h, void **params, void **extra) {
  ENTER(NEED_CTX, "%s", "");
  NONNULL(k);
  DONE(cuLaunchKernel(h, k->gridDimX, k->gridDimY, k->gridDimZ, k->blockDimX, k->blockDimY, k->blockDimZ, k->sharedMemBytes, k->hStream, params, extra));
}
API cuLaunchCooperativeKernel(CUfunction h, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, CUstream hs, void **params) {
  ENTER(NEED_CTX, "%s", "");
  DONE(cuLaunchKernel(h, gx, gy, gz, bx, by, bz, shared, hs, params, NULL));
}
/* the launch interface deprecated since CUDA 4; pycuda's unprepared calls still use it */
API cuFuncSetBlockShape(CUfunction h, int x, int y, int z) {
  ENTER(NEED_CTX, "%p, %dx%dx%d", (void *)h, x, y, z);
  memcpy(GET(FUNCTION, h)->block, (unsigned[]){x, y, z}, sizeof(unsigned[3]));
  DONE(0);
}
API cuFuncSetSharedSize(CUfunction h, unsigned n) { ENTER(NEED_CTX, "%p, %u", (void *)h, n); GET(FUNCTION, h)->shared = n; DONE(0); }
static CUresult param(struct call *c, CUfunction h, long offset, unsigned long n) {
  struct obj *f;
  CUresult r = get(c, FUNCTION, h, &f);
  return r ? r : offset < 0 || offset + n > 4096 ? misuse(c, "launch_config", CUDA_ERROR_INVALID_VALUE, "parameters beyond 4096 bytes") : CUDA_SUCCESS;
}
API cuParamSetSize(CUfunction h, unsigned n) { ENTER(NEED_CTX, "%p, %u", (void *)h, n); DONE(param(c, h, 0, n)); }
API cuParamSeti(CUfunction h, int offset, unsigned v) { ENTER(NEED_CTX, "%p, %d, %u", (void *)h, offset, v); DONE(param(c, h, offset, 4)); }
API cuParamSetf(CUfunction h, int offset, float v) { ENTER(NEED_CTX, "%p, %d, %g", (void *)h, offset, v); DONE(param(c, h, offset, 4)); }
API cuParamSetv(CUfunction h, int offset, void *v, unsigned n) { ENTER(NEED_CTX, "%p, %d, %u bytes", (void *)h, offset, n); NONNULL(v); DONE(param(c, h, offset, n)); }
API cuLaunchGridAsync(CUfunction h, int gx, int gy, CUstream hs) {
  ENTER(NEED_CTX, "%p, grid=%dx%d, stream=%p", (void *)h, gx, gy, (void *)hs);
  struct obj *f = GET(FUNCTION, h);
  DONE(launch(c, h, (unsigned[]){gx, gy, 1}, f->block, f->shared, hs));
}
API cuLaunchGrid(CUfunction h, int gx, int gy) FORWARD(NEED_CTX, cuLaunchGridAsync(h, gx, gy, NULL))
API cuLaunch(CUfunction h) FORWARD(NEED_CTX, cuLaunchGridAsync(h, 1, 1, NULL))

API cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, CUfunction h, int block, size_t shared, unsigned flags) {
  ENTER(NEED_CTX, "%p, %d", (void *)h, block);
  NONNULL(n);
  GET(FUNCTION, h);
  if (block <= 0 || block > 1024) DONE(CUDA_ERROR_INVALID_VALUE);
  *n = 1536 / block > 16 ? 16 : 1536 / block;
  DONE(0);
}
API cuOccupancyMaxActiveBlocksPerMultiprocessor(int *n, CUfunction h, int block, size_t shared) FORWARD(NEED_CTX, cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(n, h, block, shared, 0))

/* ---------------------------------------------------------------- entry points */

API cuGetExportTable(const void **table, const CUuuid *id) { /* private tables: none here */
  ENTER(NEED_NOTHING, " ");
  if (table) *table = NULL;
  DONE(CUDA_ERROR_NOT_SUPPORTED);
}
API cuGetProcAddress_v2(const char *name, void **fn, int version, cuuint64_t flags, CUdriverProcAddressQueryResult *status);
API cuGetProcAddress(const char *name, void **fn, int version, cuuint64_t flags) FORWARD(NEED_CTX, cuGetProcAddress_v2(name, fn, version, flags, NULL))

#ifndef NULLCUDA_SCAN
#include "gen.inc"

API cuGetProcAddress_v2(const char *name, void **fn, int version, cuuint64_t flags, CUdriverProcAddressQueryResult *status) {
  ENTER(NEED_NOTHING, "%s, %d", name ? name : "NULL", version);
  if (!name || !fn || version > DRIVER_VERSION) { if (fn) *fn = NULL; DONE(CUDA_ERROR_INVALID_VALUE); }
  CUdriverProcAddressQueryResult found = CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
  *fn = NULL;
  for (int i = 0; proc_table[i].name; i++) { /* versions ascend: the last that fits is the newest */
    if (strcmp(proc_table[i].name, name)) continue;
    if (proc_table[i].version <= version) { *fn = proc_table[i].fn; found = CU_GET_PROC_ADDRESS_SUCCESS; }
    else if (!*fn) found = CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT;
  }
  if (status) *status = found;
  DONE(0);
}
static const char *error_name(CUresult e) {
  for (int i = 0; error_names[i].name; i++)
    if (error_names[i].code == (int)e) return error_names[i].name;
  return NULL;
}
#else
API cuGetProcAddress_v2(const char *name, void **fn, int version, cuuint64_t flags, CUdriverProcAddressQueryResult *status) {}
#endif

/* ---------------------------------------------------------------- report */

static void put(struct text *t, const char *fmt, ...) PRINTF(2, 3);
static void put(struct text *t, const char *fmt, ...) {
  for (;;) {
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(t->s ? t->s + t->n : NULL, t->cap - t->n, fmt, ap);
    va_end(ap);
    if (t->n + n < t->cap) { t->n += n; return; }
    t->s = realloc(t->s, t->cap = 2 * (t->n + n + 512));
  }
}
static void put_string(struct text *t, const char *s) {
  put(t, "\"");
  for (; *s; s++)
    if (*s == '"' || *s == '\\') put(t, "\\%c", *s);
    else if ((unsigned char)*s < 32) put(t, "\\u%04x", *s);
    else put(t, "%c", *s);
  put(t, "\"");
}

static char *report(void) {
  struct text t = {0};
  const char *sep = "";
  put(&t, "{\n \"pid\": %ld,\n \"calls\": %lu,\n \"errors\": %lu,\n \"errors_by_kind\": {", (long)getpid(), S.calls, S.nerrors);
  for (struct error *e = S.errors; e; e = e->next) {
    unsigned long n = 0;
    bool first = true;
    for (struct error *f = S.errors; f != e; f = f->next) first &= strcmp(f->kind, e->kind) != 0;
    for (struct error *f = e; f; f = f->next) n += !strcmp(f->kind, e->kind);
    if (first) { put(&t, "%s\"%s\": %lu", sep, e->kind, n); sep = ", "; }
  }
  put(&t, "},\n \"error_list\": [");
  sep = "";
  int listed = 0;
  for (struct error *e = S.errors; e && listed < 200; e = e->next, listed++) {
    put(&t, "%s\n  {\"kind\": \"%s\", \"api\": \"%s\", \"call\": %lu, \"detail\": ", sep, e->kind, e->api, e->call);
    put_string(&t, e->detail);
    put(&t, "}");
    sep = ",";
  }
  put(&t, "],\n \"memory\": {");
  for (int k = 0; k < NKINDS; k++)
    put(&t, "%s\n  \"%s\": {\"allocations\": %lu, \"live\": %lu, \"bytes_live\": %zu, \"bytes_peak\": %zu}", k ? "," : "", kind_name[k], S.mem[k].total, S.mem[k].live, S.mem[k].bytes, S.mem[k].peak);
  put(&t, "},\n \"out_of_memory\": %lu,\n \"copies\": {", S.oom);
  static const char *const way[] = {"htod", "dtoh", "dtod", "htoh"};
  for (int i = 0; i < 4; i++) put(&t, "%s\"%s\": {\"count\": %lu, \"bytes\": %zu}", i ? ", " : "", way[i], S.copy[i].n, S.copy[i].bytes);
  put(&t, "},\n \"async_copies_of_pageable_memory\": %lu,\n \"memsets\": {\"count\": %lu, \"bytes\": %zu},\n \"launches\": %lu,\n \"launches_by_kernel\": {", S.pageable_async, S.set.n, S.set.bytes, S.launches);
  sep = "";
  for (struct chunk *k = S.chunks; k; k = k->next)
    for (int i = 0; i < k->used; i++)
      if (k->o[i].type == FUNCTION && k->o[i].launches) {
        put(&t, "%s", sep);
        put_string(&t, k->o[i].name);
        put(&t, ": %lu", k->o[i].launches);
        sep = ", ";
      }
  put(&t, "},\n \"graph_launches\": %lu,\n \"objects_live\": {", S.graph_launches);
  for (int k = CTX; k < CAPTURE; k++) {
    unsigned long n = 0;
    for EACH(o, k) n++;
    put(&t, "%s\"%s\": %lu", k > CTX ? ", " : "", type_name[k], n);
  }
  for (int stub = 1; stub >= 0; stub--) {
    put(&t, "},\n \"%s\": {", stub ? "not_implemented" : "calls_by_name");
    sep = "";
    for (struct stat *s = S.stats; s; s = s->next)
      if (s->stub == (bool)stub) { put(&t, "%s\"%s\": %lu", sep, s->name, s->calls); sep = ", "; }
  }
  put(&t, "}\n}\n");
  return t.s;
}

/* For tests in the same process (ctypes): not part of the CUDA API. */
const char *nullcuda_report(void) { /* JSON; valid until the next call */
  static char *last;
  pthread_mutex_lock(&S.lock);
  free(last);
  last = report();
  pthread_mutex_unlock(&S.lock);
  return last;
}
unsigned long nullcuda_errors(const char *kind) { /* NULL: all kinds */
  unsigned long n = 0;
  pthread_mutex_lock(&S.lock);
  for (struct error *e = S.errors; e; e = e->next) n += !kind || !strcmp(kind, e->kind);
  pthread_mutex_unlock(&S.lock);
  return n;
}
void nullcuda_clear_errors(void) {
  pthread_mutex_lock(&S.lock);
  for (struct error *e = S.errors, *n; e; e = n) { n = e->next; free(e); }
  S.errors = NULL;
  S.errors_end = &S.errors;
  S.nerrors = 0;
  pthread_mutex_unlock(&S.lock);
}

/* Let calls of this name ("*": any that works with the GPU) fail with this code: ``count`` of them after the first ``skip``; "" ends it. */
void nullcuda_refuse(const char *api, int code, unsigned long skip, unsigned long count) {
  pthread_mutex_lock(&S.lock);
  memset(&S.refuse, 0, sizeof S.refuse);
  snprintf(S.refuse.api, sizeof S.refuse.api, "%s", api);
  S.refuse.code = (CUresult)code;
  S.refuse.skip = skip;
  S.refuse.count = count;
  pthread_mutex_unlock(&S.lock);
}
unsigned long nullcuda_refused(int seen) { /* how many were refused (or looked at) since */
  return seen ? S.refuse.seen : S.refuse.refused;
}
void nullcuda_lazy(int on) {
  pthread_mutex_lock(&S.lock);
  S.lazy = on;
  pthread_mutex_unlock(&S.lock);
}
/* What a kernel may touch: 0 if these bytes are memory of the device, else misuse is reported. For pretended kernels. */
int nullcuda_reach(uintptr_t p, size_t n) {
  pthread_mutex_lock(&S.lock);
  struct call c_ = {.api = "kernel", .seq = S.calls}, *c = &c_;
  int r = (int)check(c, p, n, ON_DEVICE, "kernel", NULL);
  pthread_mutex_unlock(&S.lock);
  return r;
}
void nullcuda_kernel_fails(int code) { T.fails = (CUresult)code; } /* called by one: the error of whoever waits for it */

/* ---------------------------------------------------------------- start and end */

static void child(void) { /* after fork() */
  S.lock = (pthread_mutex_t)PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
  S.child = true;
  S.forked = S.init;
}

static void path_from(const char *var, char *out, size_t n) { /* %p stands for the process id */
  const char *v = getenv(var), *p = v ? strstr(v, "%p") : NULL;
  if (p) snprintf(out, n, "%.*s%ld%s", (int)(p - v), v, (long)getpid(), p + 2);
  else if (v) snprintf(out, n, "%s", v);
}

__attribute__((constructor)) static void start(void) {
  const char *v;
  path_from("NULLCUDA_LOG", S.log_path, sizeof S.log_path);
  path_from("NULLCUDA_REPORT", S.report_path, sizeof S.report_path);
  if (*S.log_path && !(S.log = fopen(S.log_path, "w"))) perror(S.log_path);
  if ((v = getenv("NULLCUDA_STRICT"))) S.strict = !strcmp(v, "abort") ? 1 : !strcmp(v, "exit") ? 2 : 0;
  if ((v = getenv("NULLCUDA_IGNORE"))) snprintf(S.ignore, sizeof S.ignore, "%s", v);
  if ((v = getenv("NULLCUDA_MEMORY_MB"))) S.total = strtoull(v, NULL, 0) << 20;
  if ((v = getenv("NULLCUDA_NAME"))) snprintf(S.device, sizeof S.device, "%s", v);
  if ((v = getenv("NULLCUDA_CC"))) sscanf(v, "%d.%d", &S.cc_major, &S.cc_minor);
  S.quiet = getenv("NULLCUDA_QUIET") != NULL;
  S.lazy = getenv("NULLCUDA_LAZY") != NULL;
  pthread_atfork(NULL, NULL, child);
}

__attribute__((destructor)) static void end(void) {
  pthread_mutex_lock(&S.lock);
  struct call c_ = {.api = "exit", .seq = S.calls}, *c = &c_;
  if (!S.done && (S.child ? S.init && !S.forked : true)) { /* a forked child that did nothing leaves the report alone */
    for (size_t i = 0; i < S.na; i++)
      if (S.a[i].live) misuse(c, "leak", 0, "%s block #%lu (%zu bytes, %s, call %lu) was never freed", kind_name[S.a[i].kind], S.a[i].id, S.a[i].n, S.a[i].api, S.a[i].call);
    for (int t = STREAM; t < NTYPES; t++)
      if (unended(t))
        for EACH(o, t) misuse(c, "handle_leak", 0, "%s #%lu (call %lu) was never destroyed", type_name[t], o->id, o->call);
    FILE *f = *S.report_path ? fopen(S.report_path, "w") : NULL;
    if (f) { fputs(report(), f); fclose(f); }
    else if (*S.report_path) perror(S.report_path);
  }
  if (S.log) fflush(S.log);
  S.done = true;
  bool fail = S.strict == 2 && S.nerrors && !S.forked;
  pthread_mutex_unlock(&S.lock);
  if (fail) { fflush(NULL); _exit(86); }
}
