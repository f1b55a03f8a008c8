// This library computes products, convolutions (by oneDNN) and loops of float32 arrays for ideep4py.py, in threads.
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#if defined __x86_64__ && __GNUC__ >= 12 && !defined __clang__
#define FOR_EACH_CPU __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EACH_CPU
#endif
#define INLINE inline __attribute__((always_inline))
#ifdef __x86_64__
#include <pmmintrin.h>
#endif

struct array {  // the first members of NumPy's PyArrayObject
    long references;
    void *type, *data;
};

// The type of cblas_sgemm; the BLAS must use one thread.
typedef void sgemm(int order, int trans_a, int trans_b, int64_t m, int64_t n, int64_t k, float alpha,
                   const float *a, int64_t lda, const float *b, int64_t ldb, float beta, float *c, int64_t ldc);
typedef void task(const void *arguments, long part, long parts);  // does one of several parts of a loop
enum {ROWS = 101, PLAIN = 111, TRANSPOSED = 112, FEW = 64, SPINS = 500};

static long least(long a, long b) { return a < b ? a : b; }
static long most(long a, long b) { return a > b ? a : b; }

static sgemm *gemm;
static int threads;

// The team is the caller and its threads. Each takes a part of the present task until none is left, so a thread that wakes
// late, on cores that others need, delays nobody with a part that it has not begun.
static struct {
    pthread_mutex_t busy, lock;
    pthread_cond_t wake;
    atomic_long left, working;  // parts that nobody has begun; parts that have not ended
    long size, parts;
    task *work;
    const void *arguments;
} team = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0, 0, 1, 0, 0, 0};

static void help(void) {
    for (long left = atomic_load(&team.left); left;)
        if (atomic_compare_exchange_weak(&team.left, &left, left - 1)) {
            team.work(team.arguments, team.parts - left, team.parts);
            atomic_fetch_sub(&team.working, 1);
            left = atomic_load(&team.left);
        }
}

// Runs in each thread of the team: waits for the next task. It stays awake for some 0.2 ms: waking takes 0.05 ms.
static void *member(void *unused) {
    for (;; help()) {
        for (int spins = 0; spins < SPINS && !atomic_load(&team.left); spins++) sched_yield();
        pthread_mutex_lock(&team.lock);
        while (!atomic_load(&team.left)) pthread_cond_wait(&team.wake, &team.lock);
        pthread_mutex_unlock(&team.lock);
    }
    return unused;
}

// Empties the team in a child process after fork(), which has none of the threads.
static void disband(void) {
    pthread_mutex_init(&team.busy, 0);
    pthread_mutex_init(&team.lock, 0);
    pthread_cond_init(&team.wake, 0);
    team.left = 0;
    team.size = 1;
}

// Enlarges the team to this size if the system allows; returns its size.
static long hire(long size) {
    pthread_t id;
    for (; team.size < size; team.size++)
        if (pthread_create(&id, 0, member, 0) || pthread_detach(id)) break;
    return team.size;
}

// Returns how many threads there are: the system can refuse some.
int set_up(sgemm *gemm_, int threads_) {
    gemm = gemm_, threads = least(threads_, hire(threads_));
    pthread_atfork(0, 0, disband);
    return threads;
}

// Runs a task in the team; the caller has locked team.busy.
static void run(task *work, const void *arguments, long parts) {
    team.work = work, team.arguments = arguments, team.parts = parts;
    atomic_store(&team.working, parts);
    pthread_mutex_lock(&team.lock);
    atomic_store(&team.left, parts);
    pthread_cond_broadcast(&team.wake);
    pthread_mutex_unlock(&team.lock);
    help();
    while (atomic_load(&team.working)) sched_yield();
    pthread_mutex_unlock(&team.busy);
}

struct flushed {task *work; const void *arguments;};

// Runs a task with numbers under 1.2e-38 taken as zero: CPUs take a hundred times as long for them, and Adam's averages
// of gradients that have become zero (black pixels, units that no image activates) decay through that range.
static void flushed(const void *f_, long part, long parts) {
    const struct flushed *f = f_;
#ifdef __x86_64__
    unsigned before = _mm_getcsr();
    _mm_setcsr(before | _MM_FLUSH_ZERO_ON | _MM_DENORMALS_ZERO_ON);
    f->work(f->arguments, part, parts);
    _mm_setcsr(before);
#elif defined __aarch64__
    uint64_t before;
    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    __asm__ volatile("msr fpcr, %0" : : "r"(before | 1 << 24) : "memory");
    f->work(f->arguments, part, parts);
    __asm__ volatile("msr fpcr, %0" : : "r"(before) : "memory");
#else
    f->work(f->arguments, part, parts);
#endif
}

// Runs a task in as many parts as there are threads, or in one if it is small; alone if the team is busy.
static void together(task *work, const void *arguments, long operations) {
    const struct flushed f = {work, arguments};
    const long parts = operations < 1 << 18 ? 1 : threads;
    if (parts == 1 || pthread_mutex_trylock(&team.busy)) {
        for (long part = 0; part < parts; part++) flushed(&f, part, parts);
        return;
    }
    hire(parts);
    run(flushed, &f, parts);
}

struct jobs {void (*job)(int, void *, int); char *data; size_t size; int argument;};

static void do_job(const void *j_, long part, long parts) {
    const struct jobs *j = j_;
    (void)parts;
    j->job(part, j->data + part * j->size, j->argument);
}

// Runs the jobs of NumPy's OpenBLAS, which wait for each other, so each needs a thread: one team for all is quicker
// than two that compete for the cores.
void run_jobs(int sync, void (*job)(int, void *, int), int count, size_t size, void *data, int argument) {
    const struct jobs j = {job, data, size, argument};
    (void)sync;
    pthread_mutex_lock(&team.busy);
    for (int tries = 0; hire(count) < count; tries++) {
        if (tries == 10) fputs("chainer_fast: system refuses threads: set OPENBLAS_NUM_THREADS=1\n", stderr), abort();
        usleep(100000);
    }
    run(do_job, &j, count);
}

// Returns the index at which a part begins: a multiple of 16 floats, a cache line.
static long start(long n, long part, long parts) {
    return part == parts ? n : n * part / parts / 16 * 16;
}

struct adam {
    float *p, *m, *v;
    const float *g;
    long n;
    float beta1, beta2, alpha, eps;  // beta1 and beta2 are 1 - Chainer's
};

FOR_EACH_CPU static void adam_part(const void *a_, long part, long parts) {
    const struct adam *a = a_;
    const long from = start(a->n, part, parts), to = start(a->n, part + 1, parts);
    float *restrict p = a->p, *restrict m = a->m, *restrict v = a->v;
    const float *restrict g = a->g;
    const float beta1 = a->beta1, beta2 = a->beta2, alpha = a->alpha, eps = a->eps;
    for (long i = from; i < to; i++) {
        m[i] += beta1 * (g[i] - m[i]);
        v[i] += beta2 * (g[i] * g[i] - v[i]);
        p[i] -= alpha * m[i] / (sqrtf(v[i]) + eps);
    }
}

void adam(struct array *p, struct array *m, struct array *v, struct array *g, long n,
          float beta1, float beta2, float alpha, float eps) {
    struct adam a = {p->data, m->data, v->data, g->data, n, beta1, beta2, alpha, eps};
    together(adam_part, &a, 10 * n);
}

struct product {
    const float *a, *b, *bias;  // bias: or 0
    float *c;
    long m, n, k, trans_a, trans_b;
};

FOR_EACH_CPU static void add_bias(const struct product *p, long from, long to) {
    float *restrict c = p->c;
    const float *restrict bias = p->bias;
    for (long i = 0; i < p->m; i++, c += p->n)
        for (long j = from; j < to; j++) c[j] += bias[j];
}

typedef float quad __attribute__((vector_size(16), aligned(4)));
typedef float lanes __attribute__((vector_size(32), aligned(4)));
#ifdef __clang__
#define PICK __builtin_shufflevector
#else
#define PICK(a, b, ...) __builtin_shuffle(a, b, (int __attribute__((vector_size(16)))){__VA_ARGS__})
#endif

static INLINE quad half(const lanes *a) { return ((const quad *)a)[0] + ((const quad *)a)[1]; }
static INLINE quad zip(quad a, quad b) { return PICK(a, b, 0, 4, 1, 5) + PICK(a, b, 2, 6, 3, 7); }

// Returns the totals of four sums of eight lanes.
static INLINE quad totals(const lanes *s) {
    const quad a = zip(half(s), half(s + 1)), b = zip(half(s + 2), half(s + 3));
    return PICK(a, b, 0, 1, 4, 5) + PICK(a, b, 2, 3, 6, 7);
}

// Computes products of rows of a with four of b. A row's sums have one order, whatever the other rows.
static INLINE void dots(const float *a, const float *const *b, quad bias, long length, float *c, long n, long columns,
                        const int rows) {
    lanes sums[3][4] = {0};  // as many as fit the registers
    quad y[3];
    long k = 0;
    for (; k + 8 <= length; k += 8)
        for (int r = 0; r < rows; r++)
            for (int l = 0; l < 4; l++)
                sums[r][l] += *(const lanes *)(a + r * length + k) * *(const lanes *)(b[l] + k);
    for (int r = 0; r < rows; r++) y[r] = totals(sums[r]) + bias;
    for (; k < length; k++)
        for (int r = 0; r < rows; r++) y[r] += a[r * length + k] * (quad){b[0][k], b[1][k], b[2][k], b[3][k]};
    for (int r = 0; r < rows; r++)
        if (columns >= 4) *(quad *)(c + r * n) = y[r];
        else memcpy(c + r * n, &y[r], columns * sizeof *c);
}

FOR_EACH_CPU static void few_rows(const struct product *p_, long from, long to) {
    const struct product p = *p_;
    for (long j = from; j < to; j += 4) {
        const float *b[4];
        quad bias = {0};
        for (int c = 0; c < 4; c++) {
            const long column = least(j + c, to - 1);
            b[c] = p.b + column * p.k;
            if (p.bias) bias[c] = p.bias[column];
        }
        if (p.m == 1) dots(p.a, b, bias, p.k, p.c + j, p.n, to - j, 1);
        else if (p.m == 2) dots(p.a, b, bias, p.k, p.c + j, p.n, to - j, 2);
        else for (long i = 0; i < p.m; i += 3) {
            const long row = least(i, p.m - 3);
            dots(p.a + row * p.k, b, bias, p.k, p.c + row * p.n + j, p.n, to - j, 3);
        }
    }
}

static void product_part(const void *p_, long part, long parts) {
    const struct product *p = p_;
    const long n = p->n, k = p->k, size = p->trans_a ? p->m : n;
    const long from = start(size, part, parts), to = start(size, part + 1, parts);
    if (from == to) return;
    if (p->trans_a) {
        gemm(ROWS, TRANSPOSED, PLAIN, to - from, n, k, 1, p->a + from, p->m, p->b, n, 0, p->c + from * n, n);
    } else if (!p->trans_b) {
        gemm(ROWS, PLAIN, PLAIN, p->m, to - from, k, 1, p->a, k, p->b + from, n, 0, p->c + from, n);
    } else if (p->m <= FEW) {  // sgemm would first copy b
        few_rows(p, from, to);
    } else {
        gemm(ROWS, PLAIN, TRANSPOSED, p->m, to - from, k, 1, p->a, k, p->b + from * k, k, 0, p->c + from, n);
        if (p->bias) add_bias(p, from, to);
    }
}

// Computes c (m, n) as a b, a' b, or a b' + bias, where bias may be 0.
void product(struct array *c, struct array *a, struct array *b, struct array *bias, long m, long n, long k,
             long trans_a, long trans_b) {
    struct product p = {a->data, b->data, bias ? bias->data : 0, c->data, m, n, k, trans_a, trans_b};
    // One row waits longer for a thread than it gains, where another process computes.
    together(product_part, &p, m * n * k / (m == 1 ? 2 : 1));
}

// oneDNN's functions, and OpenMP's: oneDNN must not start OpenMP's threads, as the team is there.
static struct {
    int (*create)(void **memory, const void *description, void *engine, void *data);
    int (*destroy)(void *memory);
    int (*execute)(void *primitive, void *stream, int count, const void *arguments);
    int (*most_threads)(void);
    void (*set_threads)(int);
    void *engine, *stream;
} dnn;
static pthread_key_t kept;

void set_up_dnn(void **functions) {
    memcpy(&dnn, functions, sizeof dnn);
    pthread_key_create(&kept, free);
}

// Returns memory that a thread keeps for its next call.
static char *buffer(long size) {
    long *memory = pthread_getspecific(kept);
    if (!memory || *memory < size) {
        free(memory);
        memory = aligned_alloc(64, size + 64);
        pthread_setspecific(kept, memory);
        if (!memory) return 0;
        *memory = size;
    }
    return (char *)memory + 64;
}

// An array has the layout `user` in Chainer and `inner` in the primitive; `reorder` leads to the output, or is 0.
struct operand {void *user, *inner, *reorder; long argument, size;};
struct kernel {void *primitive, *bias, *scratch; struct operand of[3]; long scratch_size;};  // of: inputs, the output
struct piece {const struct kernel *kernel; long offsets[4], part, sum, adds;};  // in floats: the operands, the bias
struct plan {const struct piece *pieces; long count, parts, space, output, sums, operations;};
struct convolution {const struct plan *plan; float *data[4]; char *memory; atomic_int *failed;};

// Executes a primitive with up to five arguments.
static int execute(void *primitive, int count, const long *names, void *const *descriptions, void *const *data) {
    struct {int name; void *memory;} arguments[5];
    int failed = 0;
    for (int i = 0; i < count; i++) {
        arguments[i].name = names[i];
        failed |= dnn.create(&arguments[i].memory, descriptions[i], dnn.engine, data[i]);
    }
    failed = failed || dnn.execute(primitive, dnn.stream, count, arguments);
    for (int i = 0; i < count; i++) dnn.destroy(arguments[i].memory);
    return failed;
}

static int reorder(const struct operand *o, void *from, void *to, int inward) {
    const long names[] = {1, 17};
    void *descriptions[] = {inward ? o->user : o->inner, inward ? o->inner : o->user}, *data[] = {from, to};
    return execute(o->reorder, 2, names, descriptions, data);
}

static void add(float *restrict to, const float *restrict from, long n) {
    for (long i = 0; i < n; i++) to[i] += from[i];
}

// Returns where the threads but the first sum up.
static float *sums(const struct convolution *c) {
    return (float *)(c->memory + c->plan->space * c->plan->parts);
}

// Does one piece; `last` is the one before it in this thread, whose weights may be there already.
static int do_piece(const struct convolution *c, const struct piece *p, const struct piece *last, char *memory) {
    const struct kernel *k = p->kernel;
    void *data[5], *descriptions[5] = {k->of[0].inner, k->of[1].inner, k->of[2].inner, k->scratch, k->bias};
    const long names[5] = {k->of[0].argument, k->of[1].argument, k->of[2].argument, 80, 41};
    float *output = (p->sum ? sums(c) + c->plan->output * (p->sum - 1) : c->data[2]) + p->offsets[2], *target = output;
    int failed = 0;
    for (int i = 0; i < 3; i++) {
        data[i] = i < 2 ? c->data[i] + p->offsets[i] : output;
        if (!k->of[i].reorder) continue;
        const int there = last && last->kernel == k && last->offsets[i] == p->offsets[i];
        if (i < 2 && !there) failed |= reorder(&k->of[i], data[i], memory, 1);
        data[i] = memory;
        memory += k->of[i].size;
    }
    data[3] = memory, data[4] = c->data[3] ? c->data[3] + p->offsets[3] : 0;
    memory += k->scratch_size;
    if (p->adds) target = (float *)memory;
    if (!k->of[2].reorder) data[2] = target;
    failed = failed || execute(k->primitive, k->bias ? 5 : 4, names, descriptions, data);
    if (k->of[2].reorder) failed = failed || reorder(&k->of[2], data[2], target, 0);
    if (p->adds) add(output, target, p->adds);
    return failed;
}

static void convolution_part(const void *c_, long part, long parts) {
    const struct convolution *c = c_;
    const int threads_before = dnn.most_threads();
    dnn.set_threads(1);
    const struct piece *last = 0, *end = c->plan->pieces + c->plan->count;
    for (const struct piece *p = c->plan->pieces; p < end; p++)
        if (p->part % parts == part) {
            if (last && last->part != p->part) last = 0;
            if (do_piece(c, p, last, c->memory + p->part * c->plan->space)) atomic_store(c->failed, 1);
            last = p;
        }
    dnn.set_threads(threads_before);
}

static void sum_part(const void *c_, long part, long parts) {
    const struct convolution *c = c_;
    const long n = c->plan->output, from = start(n, part, parts), to = start(n, part + 1, parts);
    for (long i = 0; i < c->plan->sums; i++) add(c->data[2] + from, sums(c) + i * n + from, to - from);
}

// Computes a convolution or a gradient of it from a and b; returns whether that failed.
int convolve(const struct plan *plan, struct array *a, struct array *b, struct array *result, struct array *bias) {
    atomic_int failed = 0;
    struct convolution c = {plan, {a->data, b->data, result->data, bias ? bias->data : 0}, 0, &failed};
    c.memory = buffer(plan->space * plan->parts + plan->output * plan->sums * sizeof(float));
    if (!c.memory) return 1;
    together(convolution_part, &c, plan->operations);
    if (plan->sums) together(sum_part, &c, plan->output * plan->sums);
    return failed;
}

struct map {float *y; const float *x, *condition; long n; float slope;};

FOR_EACH_CPU static void rectify_part(const void *m_, long part, long parts) {
    const struct map *m = m_;
    const long from = start(m->n, part, parts), to = start(m->n, part + 1, parts);
    float *restrict y = m->y;
    const float *restrict x = m->x, *restrict condition = m->condition, slope = m->slope;
    if (!condition && !slope)
        for (long i = from; i < to; i++) y[i] = x[i] < 0 ? 0 : x[i];
    else if (!condition)
        for (long i = from; i < to; i++) y[i] = x[i] <= 0 ? x[i] * slope : x[i];
    else if (!slope)
        for (long i = from; i < to; i++) y[i] = x[i] * (condition[i] > 0);
    else
        for (long i = from; i < to; i++) y[i] = condition[i] <= 0 ? x[i] * slope : x[i];
}

// Computes the (leaky) rectifier of x, or multiplies x by its gradient at the condition, which may be 0.
void rectify(struct array *y, struct array *x, struct array *condition, long n, float slope) {
    struct map m = {y->data, x->data, condition ? condition->data : 0, n, slope};
    together(rectify_part, &m, n);
}

struct pool {long h, w, out_h, out_w, kh, kw, sy, sx, ph, pw, planes; float *y, *x; int32_t *indexes;};

// Pools one output row of one plane; -infinity, or 0 for averages, surrounds the plane.
static INLINE void pool_row(const struct pool *p, const float *x, long i, float *y, int32_t *indexes) {
    const long kh = p->kh, kw = p->kw, top = i * p->sy - p->ph, r0 = most(0, -top), r1 = least(kh, p->h - top);
    for (long j = 0; j < p->out_w; j++) {
        const long left = j * p->sx - p->pw, c0 = most(0, -left), c1 = least(kw, p->w - left);
        float best = -INFINITY, sum = 0;
        long index = 0;
        for (long r = r0; r < r1; r++)
            for (long c = c0; c < c1; c++) {
                const float v = x[(top + r) * p->w + left + c];
                if (!indexes) {
                    sum += v;
                    continue;
                }
                const int more = v > best || (v != v && best == best);  // a NaN is the greatest
                best = more ? v : best, index = more ? r * kw + c : index;
            }
        y[j] = indexes ? best : sum / (kh * kw);
        if (indexes) indexes[j] = index;
    }
}

// The same for windows of 2 x 2 at stride 2 that lie in the plane.
static inline void pool_pairs(const float *x, long w, long n, float *y, int32_t *indexes) {
    for (long j = 0; j < n; j++) {
        const float a = x[2 * j], b = x[2 * j + 1], c = x[w + 2 * j], d = x[w + 2 * j + 1];
        const int right = b > a || (b != b && a == a), low = d > c || (d != d && c == c);
        const float upper = right ? b : a, lower = low ? d : c;
        const int down = lower > upper || (lower != lower && upper == upper);
        y[j] = down ? lower : upper;
        indexes[j] = down ? 2 + low : right;
    }
}

FOR_EACH_CPU static void pool_part(const void *p_, long part, long parts) {
    const struct pool *p = p_;
    const int pairs = p->indexes && p->kh == 2 && p->kw == 2 && p->sy == 2 && p->sx == 2 && !p->ph && !p->pw;
    for (long plane = p->planes * part / parts; plane < p->planes * (part + 1) / parts; plane++)
        for (long i = 0; i < p->out_h; i++) {
            const long at = (plane * p->out_h + i) * p->out_w;
            const float *x = p->x + plane * p->h * p->w;
            if (pairs && 2 * p->out_h <= p->h && 2 * p->out_w <= p->w)
                pool_pairs(x + 2 * i * p->w, p->w, p->out_w, p->y + at, p->indexes + at);
            else
                pool_row(p, x, i, p->y + at, p->indexes ? p->indexes + at : 0);
        }
}

// Computes the gradient of pooling: to where the greatest is, or to all in the window.
FOR_EACH_CPU static void unpool_part(const void *p_, long part, long parts) {
    const struct pool *p = p_;
    const float share = 1.0f / (p->kh * p->kw);
    const long from = p->planes * part / parts, to = p->planes * (part + 1) / parts, plane = p->h * p->w;
    memset(p->x + from * plane, 0, (to - from) * plane * sizeof(float));
    for (long row = from * p->out_h; row < to * p->out_h; row++)
        for (long j = 0; j < p->out_w; j++) {
            float *x = p->x + row / p->out_h * plane;
            const long at = row * p->out_w + j, top = row % p->out_h * p->sy - p->ph, left = j * p->sx - p->pw;
            if (p->indexes) {
                const long r = top + p->indexes[at] / p->kw, c = left + p->indexes[at] % p->kw;
                if (r >= 0 && c >= 0 && r < p->h && c < p->w) x[r * p->w + c] += p->y[at];
                continue;
            }
            for (long r = most(0, top); r < least(top + p->kh, p->h); r++)
                for (long c = most(0, left); c < least(left + p->kw, p->w); c++) x[r * p->w + c] += p->y[at] * share;
        }
}

void pool(struct array *y, struct array *x, struct array *indexes, const struct pool *sizes) {
    struct pool p = *sizes;
    p.y = y->data, p.x = x->data, p.indexes = indexes ? indexes->data : 0;
    together(pool_part, &p, p.planes * p.out_h * p.out_w * p.kh * p.kw);
}

void unpool(struct array *gx, struct array *gy, struct array *indexes, const struct pool *sizes) {
    struct pool p = *sizes;
    p.y = gy->data, p.x = gx->data, p.indexes = indexes ? indexes->data : 0;
    together(unpool_part, &p, p.planes * p.out_h * p.out_w * (indexes ? 4 : p.kh * p.kw));
}

// Batch normalization of x (n, channels, area); the forward's outputs and the backward's.
struct norm {
    const float *x, *gy, *gamma, *beta;
    float *y, *mean, *var, *inverse, *ggamma, *gbeta;
    long n, channels, area, given;
    double eps;
};

// Returns the sum of (a - shift) times b, or times itself, or of a - shift alone, in one order for any length.
static INLINE double total(const float *a, const float *b, float shift, long n, const int kind) {
    lanes sums[4] = {0};
    double sum = 0;
    long i = 0;
    for (; i + 32 <= n; i += 32)
        for (int l = 0; l < 4; l++) {
            const lanes v = *(const lanes *)(a + i + 8 * l) - shift;
            sums[l] += kind == 0 ? v : kind == 1 ? v * v : v * *(const lanes *)(b + i + 8 * l);
        }
    for (; i < n; i++) sum += kind == 0 ? a[i] - shift : (a[i] - shift) * (kind == 1 ? a[i] - shift : b[i]);
    for (int l = 0; l < 32; l++) sum += sums[l / 8][l % 8];
    return sum;
}

static INLINE double over_planes(const struct norm *p, const float *a, const float *b, long c, float shift,
                                 const int kind) {
    double sum = 0;
    for (long i = 0; i < p->n; i++) {
        const long at = (i * p->channels + c) * p->area;
        sum += total(a + at, b + at, shift, p->area, kind);
    }
    return sum;
}

// Computes y = (a - shift) * by + b * times + offset in a channel; b may be 0.
static INLINE void scale(const struct norm *p, long c, const float *a, float shift, float by, const float *b,
                         float times, float offset) {
    for (long i = 0; i < p->n; i++) {
        const long at = (i * p->channels + c) * p->area;
        for (long j = at; j < at + p->area; j++) p->y[j] = (a[j] - shift) * by + (b ? b[j] * times : 0) + offset;
    }
}

FOR_EACH_CPU static void norm_part(const void *p_, long part, long parts) {
    const struct norm *p = p_;
    const double m = p->n * p->area;
    for (long c = p->channels * part / parts; c < p->channels * (part + 1) / parts; c++) {
        if (!p->given) {
            p->mean[c] = over_planes(p, p->x, p->x, c, 0, 0) / m;
            p->var[c] = over_planes(p, p->x, p->x, c, p->mean[c], 1) / m;
            p->inverse[c] = 1 / sqrt(p->var[c] + p->eps);
        }
        const float inverse = 1 / sqrt(p->var[c] + p->eps);
        scale(p, c, p->x, p->mean[c], p->gamma[c] * inverse, 0, 0, p->beta[c]);
    }
}

FOR_EACH_CPU static void norm_gradient_part(const void *p_, long part, long parts) {
    const struct norm *p = p_;
    const double m = p->n * p->area;
    for (long c = p->channels * part / parts; c < p->channels * (part + 1) / parts; c++) {
        const float mean = p->mean[c], inverse = 1 / sqrt(p->var[c] + p->eps), by = p->gamma[c] * inverse;
        p->gbeta[c] = over_planes(p, p->gy, p->gy, c, 0, 0);
        p->ggamma[c] = over_planes(p, p->x, p->gy, c, mean, 2) * inverse;
        scale(p, c, p->x, mean, -by * inverse * p->ggamma[c] / m, p->gy, by, -by * p->gbeta[c] / m);
    }
}

// The same for an area of 1, row by row.
FOR_EACH_CPU static void norm_rows_part(const void *p_, long part, long parts) {
    const struct norm *p = p_;
    const long from = start(p->channels, part, parts), to = start(p->channels, part + 1, parts);
    float *restrict mean = p->mean, *restrict var = p->var, *restrict inverse = p->inverse, *restrict y = p->y;
    const float *restrict x = p->x, *restrict gamma = p->gamma, *restrict beta = p->beta, eps = p->eps, n = p->n;
    const long size = p->n * p->channels;
    if (!p->given) {
        for (long c = from; c < to; c++) mean[c] = var[c] = 0;
        for (long row = 0; row < size; row += p->channels)
            for (long c = from; c < to; c++) mean[c] += x[row + c];
        for (long c = from; c < to; c++) mean[c] /= n;
        for (long row = 0; row < size; row += p->channels)
            for (long c = from; c < to; c++) var[c] += (x[row + c] - mean[c]) * (x[row + c] - mean[c]);
        for (long c = from; c < to; c++) var[c] /= n;
    }
    for (long c = from; c < to; c++) inverse[c] = 1 / sqrtf(var[c] + eps);
    for (long row = 0; row < size; row += p->channels)
        for (long c = from; c < to; c++) y[row + c] = (x[row + c] - mean[c]) * (gamma[c] * inverse[c]) + beta[c];
}

FOR_EACH_CPU static void norm_rows_gradient_part(const void *p_, long part, long parts) {
    const struct norm *p = p_;
    const long from = start(p->channels, part, parts), to = start(p->channels, part + 1, parts);
    float *restrict inverse = p->inverse, *restrict ggamma = p->ggamma, *restrict gbeta = p->gbeta, *restrict y = p->y;
    const float *restrict x = p->x, *restrict gy = p->gy, *restrict mean = p->mean, *restrict gamma = p->gamma;
    const long size = p->n * p->channels;
    const float n = p->n;
    for (long c = from; c < to; c++) ggamma[c] = gbeta[c] = 0, inverse[c] = 1 / sqrtf(p->var[c] + (float)p->eps);
    for (long row = 0; row < size; row += p->channels)
        for (long c = from; c < to; c++)
            gbeta[c] += gy[row + c], ggamma[c] += gy[row + c] * ((x[row + c] - mean[c]) * inverse[c]);
    for (long row = 0; row < size; row += p->channels)
        for (long c = from; c < to; c++)
            y[row + c] = gamma[c] * inverse[c] *
                (gy[row + c] - ((x[row + c] - mean[c]) * inverse[c] * ggamma[c] + gbeta[c]) / n);
}

void norm(struct array *x, struct array *gamma, struct array *beta, struct array *y, struct array *mean,
          struct array *var, struct array *inverse, long n, long channels, long area, long given, double eps) {
    struct norm p = {x->data, 0, gamma->data, beta->data, y->data, mean->data, var->data, inverse->data, 0, 0,
                     n, channels, area, given, eps};
    together(area == 1 ? norm_rows_part : norm_part, &p, 8 * n * channels * area);
}

void norm_gradient(struct array *x, struct array *gy, struct array *gamma, struct array *gx, struct array *mean,
                   struct array *var, struct array *inverse, struct array *ggamma, struct array *gbeta,
                   long n, long channels, long area, double eps) {
    struct norm p = {x->data, gy->data, gamma->data, 0, gx->data, mean->data, var->data, inverse->data, ggamma->data,
                     gbeta->data, n, channels, area, 1, eps};
    together(area == 1 ? norm_rows_gradient_part : norm_gradient_part, &p, 8 * n * channels * area);
}

// One step of an LSTM's layer: x (rows, units, 4), whose last axis is a, i, f and o; c and h (rows, units).
struct cell {float *x, *c, *h; const float *gates, *gh, *before; long n;};

// Returns e to the power of x, within 3e-7 of it: 2 to a whole power times a series.
static INLINE float exponential(float x) {
    x = x > 88 ? 88 : x < -87 ? -87 : x;
    const float whole = x * 1.44269504f + 12582912 - 12582912, r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    const float series = 1.6666665459e-1f + r * (4.1665795894e-2f + r * (8.3334519073e-3f + r * 1.3981999507e-3f));
    const int32_t bits = ((int32_t)whole + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return (1 + r + r * r * (0.5f + r * series)) * power;
}

static INLINE float sigmoid(float x) { return 1 / (1 + exponential(-x)); }

// Returns the hyperbolic tangent of x, also of small ones within 3e-7 of it, where the exponential loses digits.
static INLINE float tangent(float x) {
    const float z = x * x, far = 1 - 2 / (1 + exponential(2 * x));
    const float series = -5.37397155531e-2f + z * (2.06390887954e-2f + z * -5.70498872745e-3f);
    return z < 0.39f ? x + x * z * (-3.33332819422e-1f + z * (1.33314422036e-1f + z * series)) : far;
}

FOR_EACH_CPU static void cell_part(const void *s_, long part, long parts) {
    const struct cell *s = s_;
    const long from = start(s->n, part, parts), to = start(s->n, part + 1, parts);
    float *restrict x = s->x, *restrict c = s->c, *restrict h = s->h;
    for (long k = from; k < to; k++) {
        const float a = tangent(x[4 * k]), i = sigmoid(x[4 * k + 1]), f = sigmoid(x[4 * k + 2]);
        const float o = sigmoid(x[4 * k + 3]);
        c[k] = a * i + f * c[k];
        h[k] = o * tangent(c[k]);
        x[4 * k] = a, x[4 * k + 1] = i, x[4 * k + 2] = f, x[4 * k + 3] = o;
    }
}

// Computes a step from x, which becomes the gates, and c, which becomes the next.
void cell(struct array *x, struct array *c, struct array *h, long n) {
    struct cell s = {x->data, c->data, h->data, 0, 0, 0, n};
    together(cell_part, &s, 64 * n);
}

FOR_EACH_CPU static void cell_gradient_part(const void *s_, long part, long parts) {
    const struct cell *s = s_;
    const long from = start(s->n, part, parts), to = start(s->n, part + 1, parts);
    float *restrict gx = s->x, *restrict gc = s->c;
    const float *restrict gh = s->gh, *restrict gates = s->gates, *restrict before = s->before;
    for (long k = from; k < to; k++) {
        const float a = gates[4 * k], i = gates[4 * k + 1], f = gates[4 * k + 2], o = gates[4 * k + 3];
        const float y = tangent(a * i + f * before[k]), g = gc[k] + gh[k] * o * (1 - y * y);
        gx[4 * k] = g * i * (1 - a * a);
        gx[4 * k + 1] = g * a * i * (1 - i);
        gx[4 * k + 2] = g * before[k] * f * (1 - f);
        gx[4 * k + 3] = gh[k] * y * o * (1 - o);
        gc[k] = g * f;
    }
}

// Computes a step's gradients from its gates and the c before; gc becomes the gradient of that.
void cell_gradient(struct array *gx, struct array *gc, struct array *gh, struct array *gates, struct array *before,
                   long n) {
    struct cell s = {gx->data, gc->data, 0, gates->data, gh->data, before->data, n};
    together(cell_gradient_part, &s, 64 * n);
}
